//! Standard output and standard error.

use std::io::{BufRead, IsTerminal, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::client as config;

/// Prints a result. A reader who has gone away is no failure.
pub(super) fn out(text: &str) {
    let _ = try_out(text);
}

/// As [`out`], for who goes on printing.
///
/// # Errors
/// Nothing more can be printed; `BrokenPipe` where the reader has gone away.
pub(super) fn try_out(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Whether the reader of results has gone away; so far as can be told without printing.
pub(super) fn is_unread() -> bool {
    let out = std::io::stdout();
    let mut seen = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut seen, Some(&now)).is_ok() && seen[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
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
    let _ = if err.is_terminal() && !config::no_colour() {
        writeln!(err, "\u{1b}[1;{colour}m{label}:\u{1b}[0m {text}")
    } else {
        writeln!(err, "{label}: {text}")
    };
}

/// Prints what is no result: how far something is, what to do next.
pub(super) fn aside(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{}", safe(text));
}

/// Whether results may have colours.
pub(super) fn colours_out() -> bool {
    std::io::stdout().is_terminal() && !config::no_colour()
}

/// Whether somebody is there to answer a question.
pub(super) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a question on the terminal; anything but a plain yes is a no.
pub(super) fn ask(question: &str) -> bool {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{} [y/N] ", safe(question)).and_then(|()| err.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
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
    painted(rows, false)
}

/// As [`table`], with words of state in the colour of their kind.
pub(super) fn painted(rows: &[Vec<String>], colours: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            match colour(cell).filter(|_| colours) {
                Some(colour) => line.push_str(&format!("\u{1b}[{colour}m{cell:<width$}\u{1b}[0m  ")),
                None => line.push_str(&format!("{cell:<width$}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn colour(word: &str) -> Option<&'static str> {
    match word {
        "active" | "approved" | "open" | "created" => Some("32"),
        "pending" | "warning" | "changed" => Some("33"),
        "denied" | "revoked" | "error" => Some("31"),
        "expired" | "exhausted" | "released" | "cancelled" | "closed" | "unchanged" => Some("2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_change_no_width() {
        let rows = [vec!["pending".to_owned(), "x".to_owned()], vec!["a".to_owned(), "y".to_owned()]];
        assert_eq!(painted(&rows, true), "\u{1b}[33mpending\u{1b}[0m  x\na        y\n");
    }

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
