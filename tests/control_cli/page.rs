//! The page about the command line names every command, and no other.

use std::collections::BTreeSet;

use crate::world::Person;

/// The commands that `--help` lists.
fn commands(help: &str) -> BTreeSet<String> {
    let listed = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_row() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let shown: BTreeSet<String> = rows.map(|row| row.split(' ').next().unwrap().to_owned()).collect();
    let folder = tempfile::tempdir().unwrap();
    let person = Person::at(folder.path());
    assert_eq!(shown, commands(&person.ok(&["--help"])));
    for command in &shown {
        let help = person.ok(&[command, "--help"]);
        let teaches = help.contains("Exit codes:") || help.contains("Commands:") || help.contains("Examples:");
        assert!(teaches, "`{command} --help` says nothing of how it ends:\n{help}");
    }
    for code in ["| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 4 |"] {
        assert!(page.contains(code), "{code}");
    }
}
