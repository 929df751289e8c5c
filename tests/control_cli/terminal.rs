//! Questions on a terminal, by `script` of util-linux, which every Debian has.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::tools::{program, wait_for};
use crate::world::{Person, World};

/// A command on a terminal, spoken to line by line.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(person: &Person, line: &str) -> Self {
        let whole = format!("exec {} {line}", env!("CARGO_BIN_EXE_leasehold"));
        let mut command = Command::new(program("script"));
        command.args(["-q", "-e", "-c", &whole, "/dev/null"]).current_dir(&person.folder);
        command.env_clear().env("HOME", &person.folder).env("TERM", "xterm").env("SHELL", "/bin/sh");
        command.envs(person.variables.iter().map(|(name, value)| (*name, value.as_str())));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut out, seen) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut piece = [0; 1024];
            while let Ok(length @ 1..) = out.read(&mut piece) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..length]));
            }
        });
        Self { child, shown }
    }

    fn waits_for(&self, text: &str) -> String {
        wait_for(text, || {
            let shown = self.shown.lock().unwrap().clone();
            shown.contains(text).then_some(shown)
        })
    }

    /// Answers; what was shown before is forgotten.
    fn answers(&mut self, line: &str) {
        self.shown.lock().unwrap().clear();
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn ends(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn what_changed_in_between_is_shown_again() {
    let world = World::new();
    let id = world.person("bot").asks(&["migration"]);
    let mut terminal = Terminal::start(&world.person("bob"), &format!("approve {id}"));
    let shown = terminal.waits_for("Approve it? [y/N] ");
    assert!(shown.contains("It lets https://idp.test#bot do order.*") && shown.contains("2 of leads"), "{shown}");
    world.person("carol").ok(&["approve", &id, "--yes", "--reason", "first"]);
    terminal.answers("y\n");
    let shown = terminal.waits_for("Approve it? [y/N] ");
    assert!(shown.contains("it is not what you saw any more"), "{shown}");
    assert!(shown.contains("1 of leads") && shown.contains("first"), "{shown}");
    terminal.answers("yes\n");
    terminal.waits_for("is approved: grant");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn a_no_does_nothing_and_a_terminal_has_colours() {
    let world = World::new();
    let id = world.person("bot").asks(&["clean-up"]);
    let mut terminal = Terminal::start(&world.person("bob"), &format!("approve {id}"));
    terminal.waits_for("[y/N]");
    terminal.answers("\n");
    terminal.waits_for("nothing was done");
    assert_eq!(terminal.ends(), Some(1));
    let terminal = Terminal::start(&world.person("bob"), "requests");
    assert!(terminal.waits_for("clean-up").contains("\u{1b}[33mpending"));
    assert_eq!(terminal.ends(), Some(0));
    let terminal = Terminal::start(&world.person("bob").with("NO_COLOR", "1"), "requests");
    assert!(!terminal.waits_for("clean-up").contains('\u{1b}'));

    world.person("bob").ok(&["approve", &id, "--yes"]);
    let mut terminal = Terminal::start(&world.admin(), "revoke --backend shop");
    assert!(terminal.waits_for("Revoke them? [y/N]").contains("1 grant would end:"));
    terminal.answers("n\n");
    assert_eq!(terminal.ends(), Some(1));
    assert_eq!(world.admin().json(&["grants", "--state", "active"]).as_array().unwrap().len(), 1);
    let mut terminal = Terminal::start(&world.admin(), "revoke --backend shop");
    terminal.waits_for("Revoke them? [y/N]");
    terminal.answers("y\n");
    terminal.waits_for("revoked");
    assert_eq!(terminal.ends(), Some(0));
}
