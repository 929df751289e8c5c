//! An etcd of our own, with the one token that it takes.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::tools::{Server, curl, free, program, wait_for};

const ROOT: &str = "canary-root-password";

/// An etcd that demands its token, without `Bearer` before it.
pub struct Etcd {
    pub client: SocketAddr,
    pub token: String,
    _folder: TempDir,
    _server: Server,
}

impl Etcd {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (client, peer) = (free(), free());
        let server = Server::start(
            Command::new(program("etcd"))
                .args(["--data-dir", folder.path().join("data").to_str().unwrap(), "--name", "test"])
                .args(["--listen-client-urls", &format!("http://{client}"), "--advertise-client-urls"])
                .args([&format!("http://{client}"), "--listen-peer-urls", &format!("http://{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
                .args(["--initial-cluster", &format!("test=http://{peer}"), "--auth-token", "simple"])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let post = |path: &str, body: &str| curl(&["-d", body, &format!("http://{client}{path}")]);
        wait_for("etcd", || {
            let health =
                Command::new(program("curl")).args(["-s", &format!("http://{client}/health")]).output().unwrap();
            String::from_utf8_lossy(&health.stdout).contains("true").then_some(())
        });
        for (path, body) in [
            ("/v3/auth/user/add", format!(r#"{{"name": "root", "password": "{ROOT}"}}"#)),
            ("/v3/auth/role/add", r#"{"name": "root"}"#.to_owned()),
            ("/v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#.to_owned()),
            ("/v3/auth/enable", "{}".to_owned()),
        ] {
            assert_eq!(post(path, &body).status, 200, "{path}");
        }
        let signed_in = post("/v3/auth/authenticate", &format!(r#"{{"name": "root", "password": "{ROOT}"}}"#));
        let token =
            serde_json::from_str::<serde_json::Value>(&signed_in.body).unwrap()["token"].as_str().unwrap().to_owned();
        Self { client, token, _folder: folder, _server: server }
    }
}
