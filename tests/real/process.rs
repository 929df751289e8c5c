//! The process itself: its secrets, its records when it is killed, its end, its metrics.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use super::proxy::{Proxy, bot, grant};
use super::rabbitmq::rabbit;
use super::tools::{curl, program, run, wait_for};

/// In front of RabbitMQ, with a grant to read the overview.
fn start(more: &str) -> Proxy {
    let mut setup = rabbit().setup("");
    setup.grants = grant("g1", &bot(), "rabbitmq", "overview.read", "**", 300);
    setup.more = more.to_owned();
    Proxy::start(&setup)
}

#[test]
fn the_credential_is_nowhere_but_on_the_backends_connection() {
    let proxy = start("access_log: stdout\n");
    let secret = &rabbit().password;
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("root-admin:{secret}"));
    let mut seen = String::new();
    for (method, path) in [
        ("GET", "/api/overview"),
        ("GET", "/api/users"),
        ("GET", "/api/definitions"),
        ("GET", "/nowhere"),
        ("GET", "/api/../api/users"),
        ("TRACE", "/api/overview"),
        ("HEAD", "/api/overview"),
    ] {
        let more: &[&str] = if method == "HEAD" { &["-I"] } else { &[] };
        let answer = proxy.call_with(method, path, more);
        seen += &(answer.head + &answer.body);
    }
    for path in ["/metrics", "/status", "/grants", "/healthz", "/readyz", "/debug/pprof", "/config"] {
        let answer = proxy.admin(path);
        seen += &(answer.head + &answer.body);
    }
    wait_for("the records", || (proxy.records().len() >= 7).then_some(()));
    seen += &proxy.record();
    seen += &proxy.log();
    let process = format!("/proc/{}", proxy.server.id());
    for name in ["environ", "cmdline", "maps", "status"] {
        seen += &String::from_utf8_lossy(&std::fs::read(format!("{process}/{name}")).unwrap());
    }
    assert!(seen.contains("overview.read"), "what is searched holds the calls");
    for text in [secret.as_str(), encoded.as_str(), proxy.token.as_str()] {
        assert!(!seen.contains(text), "a secret is where it must not be");
    }
}

#[test]
fn it_leaves_no_core_file() {
    let proxy = start("");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.server.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // That it is not dumpable it checks itself: it would not have started.
}

#[test]
fn its_metrics_are_as_the_tools_want_them() {
    let proxy = start("");
    proxy.call("GET", "/api/overview");
    proxy.call("GET", "/api/users");
    wait_for("the records", || (proxy.records().len() >= 3).then_some(()));
    let metrics = proxy.admin("/metrics").body;
    let mut check = Command::new(program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.trim().is_empty(), "{said}");
    for name in [
        "leasehold_calls_total",
        "leasehold_call_own_seconds",
        "leasehold_call_upstream_seconds",
        "leasehold_grants",
        "leasehold_view_age_seconds",
        "leasehold_audit_spool_bytes",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let permits = metrics.lines().find(|line| {
        line.starts_with("leasehold_calls_total{")
            && line.contains("action=\"overview.read\"")
            && line.contains("permit")
    });
    assert!(permits.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
}

#[test]
fn a_killed_process_takes_no_record_along() {
    // BI-AUD-001: every call that a caller saw answered by the backend is on record by its own name.
    for round in 0..5 {
        let mut setup = rabbit().setup("");
        setup.grants = grant("g1", &bot(), "rabbitmq", "queue.read", "vhosts/%2F/queues/*", 300);
        let proxy = Proxy::start(&setup);
        let stop = AtomicBool::new(false);
        let answered = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let (proxy, stop, answered) = (&proxy, &stop, &answered);
                scope.spawn(move || {
                    let mut client = keep_alive::Client::connect(proxy.address);
                    for number in 0.. {
                        let queue = format!("vhosts/%2F/queues/k{round}-{caller}-{number}");
                        let path = format!("/api/{}", queue.replace("vhosts/%2F/queues", "queues/%2F"));
                        if stop.load(Ordering::Relaxed) || client.call(&path, &proxy.token) != Some(404) {
                            return;
                        }
                        answered.lock().unwrap().push(queue);
                    }
                });
            }
            wait_for("some load", || (answered.lock().unwrap().len() >= 60).then_some(()));
            proxy.server.signal(Signal::KILL);
            stop.store(true, Ordering::Relaxed);
        });
        let record = proxy.record();
        for queue in answered.into_inner().unwrap() {
            let intent = format!("\"resource\":\"{queue}\"");
            assert!(
                record.lines().any(|line| line.contains("\"kind\":\"intent\"") && line.contains(&intent)),
                "{queue}"
            );
        }
    }
}

#[test]
fn it_stops_when_it_is_told_and_says_so_with_its_exit_code() {
    let mut proxy = start("");
    assert_eq!(proxy.call("GET", "/api/overview").status, 200);
    proxy.server.signal(Signal::TERM);
    assert_eq!(proxy.server.ended(), Some(0), "{}", proxy.log());
    assert!(proxy.records().iter().any(|record| record["kind"] == "call" && record["ended"] == "complete"));
    assert!(std::net::TcpStream::connect(proxy.address).is_err());
}

#[test]
fn a_configuration_that_became_wrong_changes_nothing() {
    let proxy = start("");
    let file = proxy.path("leasehold.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("action_map: builtin:rabbitmq", "action_mop: builtin:rabbitmq")).unwrap();
    wait_for("the complaint", || proxy.log().contains("action_mop").then_some(()));
    assert_eq!(proxy.call("GET", "/api/overview").status, 200);
    std::fs::write(&file, text.replace("mode: enforce", "") + "\n# changed\n").unwrap();
    assert_eq!(proxy.call("GET", "/api/overview").status, 200);
}

#[test]
fn the_command_line_shows_what_a_running_proxy_knows() {
    let proxy = start("");
    let admin = format!("http://{}", proxy.admin);
    let ask = |words: &[&str]| {
        let output = run(Command::new(env!("CARGO_BIN_EXE_leasehold")).args(words).args(["--admin", &admin]));
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let grants = ask(&["grants"]);
    assert!(grants.contains("g1") && grants.contains("overview.read") && grants.contains("active"), "{grants}");
    let status: serde_json::Value = serde_json::from_str(&ask(&["status", "--output", "json"])).unwrap();
    assert!(status.to_string().contains("revision"), "{status}");
    let (bot, stranger) = (bot(), "https://idp.test#stranger");
    let permitted = ask(&["explain", "--principal", &bot, "GET", "/api/overview"]);
    assert!(permitted.contains("g1") && permitted.contains("overview.read"), "{permitted}");
    let denied = ask(&["explain", "--principal", stranger, "DELETE", "/api/queues/%2F/orders"]);
    assert!(denied.contains("no_grant") && denied.contains("vhosts/%2F/queues/orders"), "{denied}");
    assert!(
        curl(&[&format!("{admin}/grants"), "-H", "host: evil.test"]).status >= 400,
        "a browser is not let in by another name"
    );
}

mod keep_alive {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpStream};

    /// A caller that makes call after call over one connection.
    pub struct Client {
        stream: BufReader<TcpStream>,
        host: SocketAddr,
    }

    impl Client {
        pub fn connect(host: SocketAddr) -> Self {
            Self { stream: BufReader::new(TcpStream::connect(host).unwrap()), host }
        }

        /// The status, or nothing where the connection ended.
        pub fn call(&mut self, path: &str, token: &str) -> Option<u16> {
            let host = self.host;
            let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n");
            self.stream.get_mut().write_all(request.as_bytes()).ok()?;
            let (mut status, mut length) = (None, 0);
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line).ok()?;
                let line = line.trim_end().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(rest) = line.strip_prefix("http/1.1 ") {
                    status = rest[..3].parse().ok();
                } else if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().ok()?;
                }
            }
            self.stream.read_exact(&mut vec![0; length]).ok()?;
            status
        }
    }
}
