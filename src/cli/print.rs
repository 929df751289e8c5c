//! Standard output and standard error.

use std::io::{IsTerminal, Write};

/// Prints a result. A reader who has gone away is no failure.
pub(super) fn out(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints why a command failed.
pub(super) fn error(text: &str) {
    labelled("error", "31", text);
}

/// Prints what deserves a look.
pub(super) fn notice(label: &str, text: &str) {
    labelled(label, "33", text);
}

fn labelled(label: &str, colour: &str, text: &str) {
    let mut err = std::io::stderr().lock();
    let text = safe(text);
    let _ = if err.is_terminal() {
        writeln!(err, "\u{1b}[1;{colour}m{label}:\u{1b}[0m {text}")
    } else {
        writeln!(err, "{label}: {text}")
    };
}

/// A text that cannot steer the terminal: control characters other than a line end are shown, not sent.
pub(super) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Lines of columns, each as wide as its widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(table(&[row(["ID", "STATE"]), row(["long-id", "active"])]), "ID       STATE\nlong-id  active\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(safe("a\u{1b}[2Jb\rc\nd"), "a\\u{1b}[2Jb\\rc\nd");
    }
}
