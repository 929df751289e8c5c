//! Programs of the machine: found, run, and ended with the test.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

#[path = "../common/wait.rs"]
mod wait;

pub use wait::{DEADLINE, wait_for};

/// A program that `scripts/test` installs.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    // RabbitMQ's own script first, because the one on the path changes the user; then the Node that was installed where
    // the machine's own is too old.
    let path = std::env::var("PATH").unwrap_or_default();
    let node = concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/bin");
    let places = format!("/usr/lib/rabbitmq/bin:{node}:{path}:/usr/sbin:/sbin");
    let found = places.split(':').map(|place| PathBuf::from(place).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is not installed; run scripts/test once, it installs what the tests need"))
}

/// A port that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A server in a process group of its own, which ends with this value.
pub struct Server(Child);

impl Server {
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).process_group(0);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Starts one that several tests share. `script` is for `sh`, its end is the end of this process: a keeper waits for
    /// the pipe from us to close, and then ends the whole group.
    pub fn start_shared(script: &str, command: &mut Command) -> Self {
        let keeper = format!("{script} cat > /dev/null; kill -KILL 0");
        command.args(["-c", &keeper]).stdin(Stdio::piped()).process_group(0);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Starts a client script of `tests/clients` that is spoken to line by line.
    pub fn script(name: &str, words: &[&str]) -> (Self, BufReader<ChildStdout>) {
        let mut command = Command::new(venv());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/").to_owned() + name).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut server = Self(command.spawn().unwrap());
        let lines = BufReader::new(server.stdout());
        (server, lines)
    }

    /// Says one line to it.
    pub fn say(&mut self, line: &str) {
        self.0.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// What it prints, where its output is a pipe.
    pub fn stdout(&mut self) -> ChildStdout {
        self.0.stdout.take().unwrap()
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal);
    }

    /// Waits for its end; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// What `curl` got.
#[derive(Debug)]
pub struct Curled {
    pub status: u16,
    pub body: String,
    pub head: String,
}

/// Calls with `curl`; `words` are its arguments.
#[track_caller]
pub fn curl(words: &[&str]) -> Curled {
    let output = Command::new(program("curl"))
        .args(["-sS", "-m", "30", "-i", "--path-as-is", "-w", "\n%{http_code}"])
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (rest, status) = text.rsplit_once('\n').unwrap_or(("", ""));
    let (head, body) = rest.split_once("\r\n\r\n").unwrap_or((rest, ""));
    let status = status.parse().unwrap_or_else(|_| panic!("curl {words:?}: {output:?}"));
    assert!(status > 0, "curl {words:?}: {output:?}");
    Curled { status, body: body.to_owned(), head: head.to_owned() }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The Python that has the clients of `tests/clients/requirements.txt`.
#[track_caller]
pub fn venv() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(path.exists(), "{} is missing; run scripts/test once, it installs what the tests need", path.display());
    path
}
