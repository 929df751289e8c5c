//! A PostgreSQL of our own: in a folder of its own, on a port of its own, gone when the process that started it is.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// A server. Whoever dies, a keeper ends it: it waits for the pipe from us to close.
pub struct Server {
    keeper: Child,
    folder: PathBuf,
    port: u16,
}

#[track_caller]
fn program(name: &str) -> PathBuf {
    let path = Path::new(PROGRAMS).join(name);
    assert!(path.is_file(), "`{}` is missing; run scripts/test once, it installs PostgreSQL 15", path.display());
    path
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &Path) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    if rustix::process::geteuid().is_root() {
        words.extend(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"].map(str::to_owned));
    }
    words.push(program.display().to_string());
    words
}

fn run(words: &[String]) {
    let output = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("leasehold-postgres-").tempdir().unwrap().keep();
        if rustix::process::geteuid().is_root() {
            run(&["chown", "postgres", &folder.display().to_string()].map(str::to_owned));
        }
        let data = folder.join("data");
        let mut words = as_postgres(&program("initdb"));
        words.extend(
            ["--auth=trust", "--username=leasehold", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]
                .map(str::to_owned),
        );
        words.push(data.display().to_string());
        run(&words);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { keeper: Self::keeper(&folder, port), folder, port };
        server.wait();
        server
    }

    fn keeper(folder: &Path, port: u16) -> Child {
        let server = as_postgres(&program("postgres")).join(" ");
        let script = format!(
            "{server} -D '{folder}/data' -p {port} -k '{folder}' -c listen_addresses=127.0.0.1 -c max_connections=300 > '{folder}/log' 2>&1 & \
             cat > /dev/null; kill -QUIT $(head -n 1 '{folder}/data/postmaster.pid' 2> /dev/null) 2> /dev/null; wait; rm -rf '{folder}'",
            folder = folder.display(),
        );
        Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until it answers.
    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        let port = self.port.to_string();
        loop {
            let ready =
                Command::new(program("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap();
            if ready.success() {
                return;
            }
            let log = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < until, "PostgreSQL did not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An empty database, by its URL.
    pub fn database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://leasehold@127.0.0.1:{}/{name}", self.port)
    }

    /// Has a statement run in a database.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let port = self.port.to_string();
        let words = ["-h", "127.0.0.1", "-p", &port, "-U", "leasehold", "-d", database, "-qAtX", "-c", statement];
        let output = Command::new(program("psql")).args(words).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Has the server's control program do something: `stop`, `start`, `restart`.
    pub fn control(&self, words: &[&str]) {
        let mut all = as_postgres(&program("pg_ctl"));
        let (data, log) = (self.folder.join("data"), self.folder.join("log-again"));
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c max_connections=300",
            self.port,
            self.folder.display()
        );
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all.extend(["-w", "-D"].map(str::to_owned));
        all.push(data.display().to_string());
        all.extend(["-l".to_owned(), log.display().to_string(), "-o".to_owned(), options]);
        run(&all);
    }

    /// The process of the server itself.
    pub fn pid(&self) -> rustix::process::Pid {
        let text = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        rustix::process::Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// The one that all tests share who do nothing to the server itself.
pub fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}
