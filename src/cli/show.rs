//! `leasehold grants` and `leasehold status`.

use serde_json::Value;

use super::admin::{self, AdminUrl};
use super::{Output, print};

/// Columns of the table: heading, and the keys of the document that may fill it, the first that is there.
const COLUMNS: [(&str, &[&str]); 9] = [
    ("ID", &["id"]),
    ("STATE", &["state"]),
    ("PRINCIPAL", &["principal"]),
    ("BACKEND", &["backend"]),
    ("ACTIONS", &["actions"]),
    ("RESOURCES", &["resources"]),
    ("EXPIRES", &["expires_at"]),
    ("USES", &["uses_left", "uses_max"]),
    ("TASK", &["task"]),
];

/// `leasehold grants`.
pub(super) fn grants(admin: &AdminUrl, output: Output) -> anyhow::Result<()> {
    let document = admin::get(admin, "/grants")?;
    if output != Output::Table {
        print::out(&document_text(&document, output)?);
        return Ok(());
    }
    let list = document.get("grants").unwrap_or(&document).as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        print::out("no grants: every call that no baseline covers is denied\n");
        return Ok(());
    }
    print::out(&table(list));
    Ok(())
}

/// `leasehold status`.
pub(super) fn status(admin: &AdminUrl, output: Output) -> anyhow::Result<()> {
    let document = admin::get(admin, "/status")?;
    print::out(&document_text(&document, output)?);
    Ok(())
}

/// A document for whoever reads it.
pub(super) fn document_text(document: &Value, output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Table => lines(document),
        Output::Json => json(document),
        Output::Yaml => serde_saphyr::to_string(document)?,
    })
}

/// A document for programs.
pub(super) fn json(document: &Value) -> String {
    format!("{document:#}\n")
}

/// A document for reading: a line for each value, its path in front.
pub(super) fn lines(document: &Value) -> String {
    let mut rows = Vec::new();
    walk(document, String::new(), &mut rows);
    print::table(&rows)
}

fn walk(value: &Value, path: String, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = print::safe(key).replace('\n', " ");
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                walk(value, path, rows);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (index, value) in list.iter().enumerate() {
                walk(value, format!("{path}[{index}]"), rows);
            }
        }
        value => rows.push(vec![path, cell(Some(value))]),
    }
}

fn table(grants: &[Value]) -> String {
    let mut rows = vec![COLUMNS.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    for grant in grants {
        let bound = grant.get("arguments").is_some_and(|digest| !digest.is_null());
        let more = |heading: &str| if bound && heading == "RESOURCES" { " (one call)" } else { "" };
        let column =
            COLUMNS.iter().map(|(heading, keys)| cell(keys.iter().find_map(|key| grant.get(key))) + more(heading));
        rows.push(column.collect());
    }
    print::table(&rows)
}

/// A value in one line.
fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(list)) => list.iter().map(|v| cell(Some(v))).collect::<Vec<_>>().join(","),
        Some(other) => other.to_string(),
    };
    print::safe(&text).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_make_a_table() {
        let grants = serde_json::json!([
            {"id": "grt_1", "state": "active", "principal": "a#b", "backend": "db", "actions": ["x", "y"],
             "resources": ["r\u{1b}"], "expires_at": "2026-11-23T15:15:00Z", "uses_left": 2, "task": null}
        ]);
        let text = table(grants.as_array().expect("a list"));
        let cells: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(cells, ["grt_1", "active", "a#b", "db", "x,y", "r\\u{1b}", "2026-11-23T15:15:00Z", "2", "-"]);
    }

    #[test]
    fn a_document_makes_lines() {
        let text = lines(&serde_json::json!({"grants": {"active": 2}, "list": [{"a": 1}], "reasons": ["x", "y"]}));
        assert_eq!(text, "grants.active  2\nlist[0].a      1\nreasons        x,y\n");
    }
}
