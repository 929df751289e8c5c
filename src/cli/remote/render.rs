//! What a control plane answers, as tables, lines and documents.
//!
//! Answers are read by where a value stands in them, not by a type: a newer control plane may say more than we know.

use serde_json::Value;

use crate::app::clock::SystemClock;
use crate::cli::{Output, print, show};
use crate::domain::time::{Clock, Timestamp};

/// Now, as the machine says.
pub(super) fn now() -> Timestamp {
    SystemClock::new().now().wall
}

/// A column of a table: its heading, and what stands in it.
pub(super) type Column = (&'static str, fn(&Value, Timestamp) -> String);

/// Entries for reading or for programs; `none` is said where there are none.
pub(super) fn list(output: Output, items: &[Value], columns: &[Column], none: &str) -> anyhow::Result<()> {
    match output {
        Output::Table if items.is_empty() => print::out(&format!("{none}\n")),
        Output::Table => print::out(&table(items, columns, now(), print::colours_out())),
        Output::Json => print::out(&format!("{:#}\n", Value::from(items))),
        Output::Yaml => print::out(&serde_saphyr::to_string(&items)?),
    }
    Ok(())
}

/// One document for reading or for programs.
pub(super) fn one(output: Output, document: &Value, lines: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
    match output {
        Output::Table => print::out(&lines(document)),
        Output::Json => print::out(&show::json(document)),
        Output::Yaml => print::out(&serde_saphyr::to_string(document)?),
    }
    Ok(())
}

fn table(items: &[Value], columns: &[Column], now: Timestamp, colours: bool) -> String {
    let mut rows = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    for item in items {
        rows.push(columns.iter().map(|(_, cell)| one_line(&cell(item, now))).collect());
    }
    print::painted(&rows, colours)
}

/// Names and values, one a line; empty values are left out.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .filter(|(_, value)| !value.is_empty() && value != "-")
        .map(|(name, value)| vec![format!("  {name}"), one_line(value)])
        .collect();
    print::painted(&rows, print::colours_out())
}

fn one_line(text: &str) -> String {
    print::safe(text).replace('\n', " ")
}

/// The first value that is there, as text; `-` for none.
pub(super) fn text(value: &Value, pointers: &[&str]) -> String {
    let found = pointers.iter().filter_map(|pointer| value.pointer(pointer)).find(|value| !value.is_null());
    found.map_or_else(|| "-".to_owned(), plain)
}

/// The same, where an answer without it is of no use.
pub(super) fn must<'v>(value: &'v Value, pointer: &str) -> anyhow::Result<&'v str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.ok_or_else(|| anyhow::anyhow!("the control plane's answer has no `{}`", pointer.trim_start_matches('/')))
}

/// A value in one line.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// How far a time is from now: `in 12m`, `3m ago`.
pub(super) fn when(value: &Value, pointers: &[&str], now: Timestamp) -> String {
    let text = text(value, pointers);
    Timestamp::parse(&text).map_or(text, |time| relative(time, now))
}

/// A time, and how far it is from now.
pub(super) fn when_exactly(value: &Value, pointers: &[&str], now: Timestamp) -> String {
    let text = text(value, pointers);
    match Timestamp::parse(&text) {
        Ok(time) => format!("{} ({})", Timestamp::from_seconds(time.as_seconds()), relative(time, now)),
        Err(_) => text,
    }
}

fn relative(time: Timestamp, now: Timestamp) -> String {
    let (ahead, passed) = (time.since(now).as_secs(), now.since(time).as_secs());
    match (ahead, passed) {
        (0, 0) => "now".to_owned(),
        (ahead, 0) => format!("in {}", span(ahead)),
        (_, passed) => format!("{} ago", span(passed)),
    }
}

/// A length of time in its largest unit, or in two where the second says something.
pub(super) fn span(seconds: u64) -> String {
    let two = |large: u64, name: &str, small: u64, other: &str| match small {
        0 => format!("{large}{name}"),
        _ => format!("{large}{name}{small}{other}"),
    };
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// A number of seconds as people write it.
pub(super) fn duration(value: &Value, key: &str) -> String {
    match value.get(key).and_then(Value::as_u64) {
        None => "-".to_owned(),
        Some(seconds) if seconds % 3_600 == 0 && seconds > 0 => format!("{}h", seconds / 3_600),
        Some(seconds) if seconds % 60 == 0 && seconds > 0 => format!("{}m", seconds / 60),
        Some(seconds) => format!("{seconds}s"),
    }
}

/// How many uses were taken, of how many.
pub(super) fn uses(grant: &Value) -> String {
    let taken = grant.get("uses").and_then(Value::as_u64).unwrap_or(0);
    match grant.get("uses_max").and_then(Value::as_u64) {
        Some(most) => format!("{taken}/{most}"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_told_from_now() {
        let now = Timestamp::from_seconds(1_000_000);
        for (seconds, expected) in [
            (0, "now"),
            (45, "in 45s"),
            (-45, "45s ago"),
            (720, "in 12m"),
            (-180, "3m ago"),
            (7_200, "in 2h"),
            (9_000, "in 2h30m"),
            (-200_000, "2d7h ago"),
        ] {
            assert_eq!(relative(Timestamp::from_seconds(1_000_000 + seconds), now), expected);
        }
        assert_eq!(when(&json!({"a": "never"}), &["/a"], now), "never");
        assert_eq!(when(&json!({"a": null}), &["/a"], now), "-");
        let shown = when_exactly(&json!({"a": "1970-01-12T13:58:40.123Z"}), &["/a"], now);
        assert_eq!(shown, "1970-01-12T13:58:40Z (in 12m)");
    }

    #[test]
    fn a_table_shows_what_is_there() {
        let columns: &[Column] = &[
            ("ID", |item, _| text(item, &["/id"])),
            ("ACTIONS", |item, _| text(item, &["/actions"])),
            ("USES", |item, _| uses(item)),
        ];
        let items = [
            json!({"id": "grt_1", "actions": ["a", "b"], "uses": 1, "uses_max": 3}),
            json!({"id": "grt\u{1b}[2J\n2", "actions": [], "uses": 1, "uses_max": null}),
        ];
        let shown = table(&items, columns, Timestamp::from_seconds(0), false);
        assert_eq!(shown, "ID              ACTIONS  USES\ngrt_1           a, b     1/3\ngrt\\u{1b}[2J 2  -        -\n");
    }

    #[test]
    fn durations_are_written_as_people_do() {
        for (seconds, expected) in [(90, "90s"), (900, "15m"), (7_200, "2h")] {
            assert_eq!(duration(&json!({"d": seconds}), "d"), expected);
        }
    }
}
