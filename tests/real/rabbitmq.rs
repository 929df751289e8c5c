//! In front of RabbitMQ's management API.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::issuer::in_seconds;
use super::proxy::{Proxy, Setup, bot, grant};
use super::tools::{Server, curl, free, program, wait_for};

const ADMIN: &str = "root-admin";

pub struct Rabbit {
    pub api: SocketAddr,
    /// The administrator's password: what no caller may ever see.
    pub password: String,
    _folder: TempDir,
    _server: Server,
}

/// One server for all tests of this process. It ends when this process does: its keeper reads from us.
pub fn rabbit() -> &'static Rabbit {
    static RABBIT: OnceLock<Rabbit> = OnceLock::new();
    RABBIT.get_or_init(Rabbit::start)
}

impl Rabbit {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (api, amqp, dist, epmd) = (free(), free(), free(), free());
        let mut random = [0; 12];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let password = format!("canary-{}", random.iter().map(|b| format!("{b:02x}")).collect::<String>());
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(
            folder.path().join("rabbitmq.conf"),
            format!(
                "listeners.tcp.1 = {amqp}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\ndefault_user = {ADMIN}\ndefault_pass = {password}\nloopback_users = none\n",
                api.port()
            ),
        )
        .unwrap();
        std::fs::write(folder.path().join("plugins"), "[rabbitmq_management].\n").unwrap();
        // The name server is started here, because one that the broker starts would outlive it.
        let script = format!(
            "{} -port {} -address 127.0.0.1 & {} < /dev/null &",
            program("epmd").display(),
            epmd.port(),
            program("rabbitmq-server").display()
        );
        let server = Server::start_shared(
            &script,
            Command::new(program("sh"))
                .env("HOME", folder.path())
                .env("RABBITMQ_NODENAME", format!("test{}@localhost", api.port()))
                .env("RABBITMQ_MNESIA_BASE", path("mnesia"))
                .env("RABBITMQ_LOG_BASE", path("log"))
                .env("RABBITMQ_CONFIG_FILE", path("rabbitmq"))
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins"))
                .env("RABBITMQ_DIST_PORT", dist.port().to_string())
                .env("ERL_EPMD_PORT", epmd.port().to_string())
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let rabbit = Self { api, password, _folder: folder, _server: server };
        wait_for("RabbitMQ", || (rabbit.try_direct("GET", "/api/whoami", &[]) == Some(200)).then_some(()));
        rabbit
    }

    fn try_direct(&self, method: &str, path: &str, more: &[&str]) -> Option<u16> {
        let (user, url) = (format!("{ADMIN}:{}", self.password), format!("http://{}{path}", self.api));
        let output = Command::new(program("curl"))
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-u", &user, &url])
            .args(more)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().parse().ok()
    }

    /// Past the sidecar, as the administrator.
    #[track_caller]
    fn direct(&self, method: &str, path: &str, body: &str) -> u16 {
        self.try_direct(method, path, &["-H", "content-type: application/json", "-d", body]).unwrap()
    }

    fn body(&self, path: &str) -> String {
        let user = format!("{ADMIN}:{}", self.password);
        curl(&["-u", &user, &format!("http://{}{path}", self.api)]).body
    }

    pub fn setup(&self, more: &str) -> Setup {
        Setup {
            backends: format!(
                "  - name: rabbitmq\n    upstream: http://{}\n    action_map: builtin:rabbitmq\n    credential: rabbit-admin\n    canonical: {{encoded_slash: keep}}\n{more}",
                self.api
            ),
            credentials: format!(
                "  - {{name: rabbit-admin, source: {{file: password}}, inject: {{basic: {{username: {ADMIN}}}}}}}\n  - {{name: rabbit-monitor, source: {{file: monitor}}, inject: {{basic: {{username: monitor}}}}}}\n"
            ),
            files: vec![("password", self.password.clone()), ("monitor", "monitor-password".to_owned())],
            ..Setup::default()
        }
    }

    #[track_caller]
    fn declare(&self, queue: &str) {
        let status = self.direct("PUT", &format!("/api/queues/%2F/{queue}"), "{}");
        assert!(matches!(status, 201 | 204), "{status}");
    }

    fn has(&self, queue: &str) -> bool {
        self.try_direct("GET", &format!("/api/queues/%2F/{queue}"), &[]) == Some(200)
    }
}

#[test]
fn a_caller_deletes_the_queue_it_was_granted_and_no_other() {
    let rabbit = rabbit();
    rabbit.declare("orders");
    rabbit.declare("invoices");
    let proxy = Proxy::start(&Setup {
        grants: grant("g1", &bot(), "rabbitmq", "queue.delete", "vhosts/%2F/queues/orders", 300),
        ..rabbit.setup("")
    });
    for (method, path) in [
        ("DELETE", "/api/queues/%2F/invoices"),
        ("DELETE", "/api/queues/%2f/invoices"),
        ("GET", "/api/queues/%2F/orders"),
        ("GET", "/api/users"),
        ("GET", "/api/definitions"),
        ("PUT", "/api/users/evil"),
        ("GET", "/api/queues/%2F/orders/../../../users"),
        ("GET", "/api/queues/%2F/orders/%2e%2e/%2e%2e/%2e%2e/users"),
        ("DELETE", "/api/queues/%2F/orders/../invoices"),
        ("DELETE", "/api/queues/%2F/orders%2F..%2Finvoices"),
        ("DELETE", "/api//queues/%2F/invoices"),
        ("DELETE", "/API/queues/%2F/orders"),
        ("DELETE", "/api/queues/%2F/orders;x=y/../invoices"),
        ("DELETE", "/api/queues/%252F/orders"),
        ("DELETE", "/api/queues/%2F/Orders"),
        ("POST", "/api/queues/%2F/orders"),
    ] {
        let refused = proxy.call(method, path);
        assert!(matches!(refused.status, 400 | 403), "{method} {path}: {refused:?}");
    }
    assert!(rabbit.has("orders") && rabbit.has("invoices"));
    assert!(!rabbit.body("/api/users").contains("evil"));

    let done = proxy.call("DELETE", "/api/queues/%2F/orders");
    assert_eq!(done.status, 204, "{done:?}");
    assert!(!rabbit.has("orders") && rabbit.has("invoices"));
    let permitted: Vec<_> = proxy.records().into_iter().filter(|record| record["kind"] == "intent").collect();
    assert_eq!(permitted.len(), 1);
    assert_eq!(permitted[0]["resource"], "vhosts/%2F/queues/orders");
}

#[test]
fn a_grant_that_is_over_deletes_nothing() {
    let rabbit = rabbit();
    rabbit.declare("held");
    let entry = |id, seconds| grant(id, &bot(), "rabbitmq", "queue.delete", "vhosts/%2F/queues/held", seconds);
    let counted = |id| {
        grant(id, &bot(), "rabbitmq", "queue.read", "vhosts/%2F/queues/held", 300)
            .replace("task:", "uses_max: 2, task:")
    };
    let proxy = Proxy::start(&Setup { grants: entry("g1", -1), ..rabbit.setup("") });
    let delete = || proxy.call("DELETE", "/api/queues/%2F/held");
    assert!(delete().body.contains("\"expired\"") || delete().body.contains("no_grant"), "{:?}", delete());
    proxy.grants(&entry("g3", 300).replace("task:", &format!("not_before: \"{}\", task:", in_seconds(200))));
    assert!(delete().body.contains("not_yet"), "{:?}", delete());
    proxy.grants(&entry("g4", 300).replace("task:", "state: revoked, task:"));
    assert_eq!(delete().status, 403);
    proxy.grants(&counted("g2"));
    let read = || proxy.call("GET", "/api/queues/%2F/held").status;
    assert_eq!([read(), read(), read()], [200, 200, 403]);
    proxy.grants("");
    assert_eq!(delete().status, 403);
    assert!(rabbit.has("held"));
}

#[test]
fn a_baseline_uses_its_own_lesser_credential() {
    let rabbit = rabbit();
    rabbit.direct("PUT", "/api/users/monitor", r#"{"password": "monitor-password", "tags": "monitoring"}"#);
    let baseline = format!(
        "    baseline:\n      - principals: [\"{}\"]\n        actions: [overview.read]\n        resources: [\"**\"]\n        credential: rabbit-monitor\n",
        bot()
    );
    let proxy = Proxy::start(&Setup {
        grants: grant("g1", &bot(), "rabbitmq", "user.read", "**", 300),
        ..rabbit.setup(&baseline)
    });
    let who = proxy.call("GET", "/api/whoami");
    assert_eq!(who.status, 200, "{who:?}");
    assert!(who.body.contains("\"name\":\"monitor\""), "{who:?}");
    assert_eq!(proxy.call("GET", "/api/users").status, 200, "what is granted uses the administrator's");
    let calls = proxy.records();
    let reasons: Vec<_> =
        calls.iter().filter(|call| call["kind"] == "intent").map(|call| call["grant"].clone()).collect();
    assert_eq!(reasons, [serde_json::Value::Null, "g1".into()]);
}

#[test]
fn what_is_only_observed_passes_and_is_recorded() {
    let rabbit = rabbit();
    let proxy = Proxy::start(&Setup { ..rabbit.setup("    mode: observe\n") });
    assert_eq!(proxy.call("GET", "/api/overview").status, 200);
    let call = wait_for("its record", || proxy.records().into_iter().find(|record| record["kind"] == "call"));
    assert_eq!((call["decision"].as_str(), call["reason"].as_str()), (Some("would_deny"), Some("no_grant")));
    assert!(proxy.admin("/metrics").body.contains("decision=\"would_deny\""));
}

#[test]
fn a_credential_that_the_backend_refuses_is_no_business_of_the_callers() {
    let rabbit = rabbit();
    let mut setup = rabbit.setup("");
    setup.files[0].1 = "not-the-password".to_owned();
    setup.grants = grant("g1", &bot(), "rabbitmq", "overview.read", "**", 300);
    let proxy = Proxy::start(&setup);
    let refused = proxy.call("GET", "/api/overview");
    assert_eq!(refused.status, 502);
    assert!(refused.body.contains("upstream_auth_failed"), "{refused:?}");
    assert!(!refused.head.to_ascii_lowercase().contains("www-authenticate"), "{refused:?}");
    // Mended in the file, it works without a restart.
    std::fs::write(proxy.path("new"), &rabbit.password).unwrap();
    std::fs::rename(proxy.path("new"), proxy.path("password")).unwrap();
    wait_for("the new credential", || (proxy.call("GET", "/api/overview").status == 200).then_some(()));
}
