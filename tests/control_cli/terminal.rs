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
        let whole = format!("exec {} {}", env!("CARGO_BIN_EXE_leasehold"), line.trim_start_matches("leasehold "));
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

impl Drop for Terminal {
    /// Ctrl-C, for what runs until then: killing `script` alone would leave it running.
    fn drop(&mut self) {
        let has_ended = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_some());
        if !has_ended(&mut self.child) {
            let _ = self.child.stdin.as_mut().unwrap().write_all(b"\x03");
            wait_for("the end", || has_ended(&mut self.child).then_some(()));
        }
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

#[test]
fn the_lines_that_the_demo_prints_can_be_typed() {
    let folder = tempfile::tempdir().unwrap();
    let person = Person::at(folder.path());
    let demo = Terminal::start(&person, "up");
    let shown = demo.waits_for("Ctrl-C ends it.");
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    let server = lines.iter().find_map(|line| line.strip_prefix("export LEASEHOLD_SERVER=")).unwrap();
    let person = person.with("LEASEHOLD_SERVER", server);
    let words = |mark: &str| {
        let line = lines.iter().find(|line| line.starts_with("leasehold ") && line.contains(mark));
        let line = line.unwrap_or_else(|| panic!("{mark} is not in {shown}")).replace('\'', "");
        line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let says = |mark: &str| {
        let words = words(mark);
        person.says(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let asked = says(" request ");
    assert_eq!(asked.code, Some(3), "{asked:?}");
    let inbox = says(" --can-approve").out;
    let id = inbox.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut terminal = Terminal::start(&person, &words(" approve ").join(" ").replace("REQUEST", &id));
    terminal.waits_for("Approve it? [y/N]");
    terminal.answers("y\n");
    terminal.waits_for("is approved: grant");
    assert_eq!(terminal.ends(), Some(0));
    let revoked = says(" revoke ");
    assert!(revoked.code == Some(0) && revoked.out.ends_with(" revoked\n"), "{revoked:?}");
}
