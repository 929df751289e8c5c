//! `leasehold demo`: everything in one process, shown live.
//!
//! A small admin API that demands a credential, a sidecar in front of it, the control plane beside it, a bot that asks and
//! a person who approves. All of it is real HTTP over loopback; what is printed is what came back.

mod folder;
mod shop;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::control::{Up, start_up};
use crate::config;
use crate::domain::time::{Clock, Timestamp};
use folder::Folder;

const ISSUER: &str = "https://idp.demo";
const AUDIENCE: &str = "leasehold-demo";
const BOT: &str = "deploy-bot";
const PERSON: &str = "erin";

/// A demo that is up: what to call and with what.
pub struct Demo {
    up: Up,
    folder: Folder,
    shop: SocketAddr,
    sidecar: SocketAddr,
    api: SocketAddr,
    bot: String,
    person: String,
    local: String,
}

/// What came back from one call.
#[derive(Debug)]
pub struct Seen {
    /// The status.
    pub status: StatusCode,
    /// The body, or as much of it as came.
    pub body: String,
    /// Whether the body came whole.
    pub whole: bool,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Starts everything on free ports of the loopback address.
///
/// # Errors
/// When something cannot be started; nothing runs then.
pub async fn start_demo() -> anyhow::Result<Demo> {
    let now = super::clock::SystemClock::new().now().wall;
    let folder = Folder::new()?;
    let secret = random_text();
    let shop = shop::serve(secret.clone()).await?;
    let key = Ed25519KeyPair::generate().map_err(|_| anyhow!("no key could be made"))?;
    folder.write("shop-secret", secret.as_bytes())?;
    folder.write("keys.json", keys(&key)?.as_bytes())?;
    folder.write("actions.yaml", ACTIONS.as_bytes())?;
    folder.write("documents.yaml", DOCUMENTS.as_bytes())?;
    folder.write("leasehold.yaml", configuration(shop).as_bytes())?;
    let (bot, person) = (token(&key, BOT, now)?, token(&key, PERSON, now)?);
    folder.write("bot.token", bot.as_bytes())?;
    folder.write("erin.token", person.as_bytes())?;
    let (sidecar, control) =
        config::load_up(&folder.path().join("leasehold.yaml")).map_err(|errors| anyhow!("{errors}"))?;
    let up = start_up(sidecar, &control).await?;
    let local = std::fs::read_to_string(up.control.token_file())?;
    let (sidecar, api) = (up.sidecar.address("demo").context("the demo listens on TCP")?, up.control.address());
    Ok(Demo { up, folder, shop, sidecar, api, bot, person, local })
}

impl Demo {
    /// Makes one call of the bot's through the sidecar.
    ///
    /// # Errors
    /// When the sidecar cannot be reached or answers no HTTP.
    pub async fn call(&self, method: Method, path: &str) -> anyhow::Result<Seen> {
        read(send(self.sidecar, method, path, &self.bot, "", None).await?).await
    }

    /// Asks the control plane for something, with somebody's token.
    ///
    /// # Errors
    /// When it cannot be reached or answers no HTTP.
    async fn ask(&self, token: &str, path: &str, fields: &str, body: &Value) -> anyhow::Result<Seen> {
        read(send(self.api, Method::POST, path, token, fields, Some(body)).await?).await
    }

    /// The bot asks for an elevation.
    async fn request(&self, entitlement: &str, more: &Value) -> anyhow::Result<Value> {
        let mut body = json!({"entitlement": entitlement});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        Ok(self.ask(&self.bot, "/v1/requests", "", &body).await?.json())
    }

    /// Somebody agrees to a request that they saw as it is.
    async fn approve(&self, token: &str, request: &Value) -> anyhow::Result<Seen> {
        let path = format!("/v1/requests/{}/approve", request["id"].as_str().unwrap_or_default());
        self.ask(token, &path, &format!("\"{}\"", request["version"]), &json!({})).await
    }

    /// Waits until a call of the bot's is answered otherwise than it was refused before.
    async fn in_force(&self, method: Method, path: &str) -> anyhow::Result<Seen> {
        for _ in 0..500 {
            let seen = self.call(method.clone(), path).await?;
            if seen.status == StatusCode::OK {
                return Ok(seen);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(anyhow!("the grant is not in force after five seconds"))
    }

    /// Stops everything.
    ///
    /// # Errors
    /// When the last records could not be written.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.up.stop().await
    }
}

/// As [`show`], on a runtime of its own.
///
/// # Errors
/// As [`show`].
pub fn run(out: &mut (dyn Write + Send), stay: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(show(out, stay))
}

type Out<'a> = &'a mut (dyn Write + Send);

fn line(out: Out<'_>, what: &str, came: &str) -> std::io::Result<()> {
    writeln!(out, "   {what:<44} {came}")
}

fn answer(out: Out<'_>, what: &str, seen: &Seen) -> std::io::Result<()> {
    let first = seen.body.lines().next().unwrap_or_default();
    line(out, what, &format!("{} {}", seen.status.as_u16(), shorten(first)))
}

/// The whole show, printed to `out`; `stay` keeps it up until the process is told to stop.
///
/// # Errors
/// When something cannot be started or a call cannot be made.
pub async fn show(out: &mut (dyn Write + Send), stay: bool) -> anyhow::Result<()> {
    let demo = start_demo().await?;
    writeln!(out, "A shop's admin API on http://{} demands a credential that no caller has.", demo.shop)?;
    writeln!(
        out,
        "In front of it a sidecar, http://{}; beside that the control plane, http://{}.\n",
        demo.sidecar, demo.api
    )?;

    writeln!(out, "1. The bot {ISSUER}#{BOT} holds nothing:")?;
    answer(out, "DELETE /orders/17", &demo.call(Method::DELETE, "/orders/17").await?)?;
    show_approval(&demo, out).await?;
    show_policy(&demo, out).await?;
    show_end(&demo, out).await?;
    show_record(&demo, out).await?;
    if stay {
        stay_up(&demo, out).await?;
    }
    demo.stop().await
}

async fn show_approval(demo: &Demo, out: Out<'_>) -> anyhow::Result<()> {
    writeln!(out, "2. It asks to remove order 17, for the ticket jira:OPS-17. Somebody else has to agree:")?;
    let asked = demo.request("order-removal", &json!({"resources": ["orders/17"], "task": "jira:OPS-17"})).await?;
    line(out, "the bot requests order-removal", asked["state"].as_str().unwrap_or_default())?;
    answer(out, "the bot approves it itself", &demo.approve(&demo.bot, &asked).await?)?;
    let approved = demo.approve(&demo.person, &asked).await?.json();
    line(out, "erin approves", approved["state"].as_str().unwrap_or_default())?;
    answer(out, "DELETE /orders/17", &demo.in_force(Method::DELETE, "/orders/17").await?)?;
    answer(out, "DELETE /orders/18", &demo.call(Method::DELETE, "/orders/18").await?)?;
    answer(out, "GET /orders/17/../18", &demo.call(Method::GET, "/orders/17/../18").await?)?;
    Ok(())
}

async fn show_policy(demo: &Demo, out: Out<'_>) -> anyhow::Result<()> {
    writeln!(out, "3. Reading for an incident that is open needs nobody, says policy; here for two seconds:")?;
    let asked = demo.request("order-reading", &json!({"task": "pagerduty:P1", "duration_seconds": 2})).await?;
    line(
        out,
        "the bot requests order-reading",
        &format!("{} by {}", text(&asked["state"]), asked["ruling"]["determining"][1]),
    )?;
    answer(out, "GET /orders/18", &demo.in_force(Method::GET, "/orders/18").await?)?;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    answer(out, "GET /orders/18, two seconds later", &demo.call(Method::GET, "/orders/18").await?)?;
    Ok(())
}

async fn show_end(demo: &Demo, out: Out<'_>) -> anyhow::Result<()> {
    writeln!(out, "4. A stream of events for that incident, which is resolved while it runs:")?;
    demo.request("event-watching", &json!({"task": "pagerduty:P1"})).await?;
    let resolve = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        demo.ask(&demo.local, "/v1/tasks/pagerduty:P1/close", "", &json!({})).await
    };
    let (seen, resolved) = tokio::join!(demo.watched(), resolve);
    resolved?;
    let seen = seen?;
    for text in seen.body.lines().filter(|text| !text.is_empty()) {
        writeln!(out, "   {text}")?;
    }
    writeln!(out, "   the stream was {}", if seen.whole { "not cut" } else { "cut" })?;
    answer(out, "GET /events", &demo.call(Method::GET, "/events").await?)?;
    Ok(())
}

impl Demo {
    /// The stream of events, from when the grant is in force to its end.
    async fn watched(&self) -> anyhow::Result<Seen> {
        for _ in 0..500 {
            let response = send(self.sidecar, Method::GET, "/events", &self.bot, "", None).await?;
            if response.status() == StatusCode::OK {
                return read(response).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(anyhow!("the grant is not in force after five seconds"))
    }
}

async fn show_record(demo: &Demo, out: Out<'_>) -> anyhow::Result<()> {
    writeln!(out, "5. What was asked, agreed and ended is on record, each entry with the hash of the one before:")?;
    let page =
        read(send(demo.api, Method::GET, "/v1/audit/entries?page_size=500", &demo.local, "", None).await?).await?;
    let page = page.json();
    let shown = ["request.", "grant.active", "grant.revoked", "task.closed"];
    for entry in page["items"].as_array().into_iter().flatten() {
        let event = text(&entry["event"]);
        if shown.iter().any(|kind| event.starts_with(kind)) {
            line(out, event, text(&entry["actor"]))?;
        }
    }
    writeln!(out)?;
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

async fn stay_up(demo: &Demo, out: Out<'_>) -> anyhow::Result<()> {
    let folder = demo.folder.path().display();
    let (sidecar, api, admin) = (demo.sidecar, demo.api, demo.up.sidecar.admin());
    writeln!(out, "It stays up. Ask as the bot, approve as erin, then call:\n")?;
    writeln!(out, "  export LEASEHOLD_SERVER=http://{api}")?;
    writeln!(out, "  leasehold --token-file {folder}/bot.token request order-removal --task jira:OPS-18")?;
    writeln!(out, "  leasehold --token-file {folder}/erin.token requests --can-approve")?;
    writeln!(out, "  leasehold --token-file {folder}/erin.token approve REQUEST")?;
    writeln!(
        out,
        "  curl -i -X DELETE -H \"Authorization: Bearer $(cat {folder}/bot.token)\" http://{sidecar}/orders/18"
    )?;
    writeln!(out, "  leasehold --token-file {folder}/leasehold.data/admin.token revoke --principal '{ISSUER}#{BOT}'")?;
    writeln!(out, "  curl -s http://{admin}/metrics | grep leasehold_calls_total")?;
    writeln!(out, "  tail -n 3 {folder}/audit/*.jsonl\n\nCtrl-C ends it.")?;
    out.flush()?;
    super::Stop::listen()?.heard().await;
    Ok(())
}

fn shorten(text: &str) -> String {
    if let Ok(problem) = serde_json::from_str::<Value>(text)
        && let Some(reason) = problem.get("reason").or_else(|| problem.get("code")).and_then(Value::as_str)
    {
        return format!("{reason}: {}", problem.get("detail").and_then(Value::as_str).unwrap_or_default());
    }
    text.chars().take(100).collect()
}

const ACTIONS: &str = "rules:
  - {action: order.read, class: read, method: GET, path: '/orders/{order}', resource: 'orders/{order}'}
  - {action: order.delete, class: write, method: DELETE, path: '/orders/{order}', resource: 'orders/{order}'}
  - {action: event.watch, class: read, method: GET, path: /events, resource: events, streaming: true}
";

const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Principal
metadata: {name: deploy-bot}
spec: {principal: "https://idp.demo#deploy-bot", type: ci, groups: [bots], owner: "https://idp.demo#frank"}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: erin}
spec: {principal: "https://idp.demo#erin", type: user, groups: [shop-oncall]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: order-removal}
spec:
  backend: shop
  actions: [order.delete]
  resources: ["orders/*"]
  eligible: [bots]
  duration_max: 15m
  task: required
  approval: {steps: [{approvers: [shop-oncall], quorum: 1}]}
  concurrent_max: 3
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: order-reading}
spec:
  backend: shop
  actions: [order.read]
  resources: ["orders/*"]
  eligible: [bots]
  duration_max: 15m
  approval: {steps: [{approvers: [shop-oncall], quorum: 1}]}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: event-watching}
spec:
  backend: shop
  actions: [event.watch]
  resources: [events]
  eligible: [bots]
  duration_max: 15m
  approval: {steps: [{approvers: [shop-oncall], quorum: 1}]}
---
apiVersion: leasehold/v1
kind: Policy
metadata: {name: incidents}
spec:
  target: elevation
  cedar: |
    @id("reading-for-an-open-incident")
    permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource)
    when { context has task && context.task.source == "pagerduty" && context.task.open }
    unless { resource == Leasehold::Entitlement::"order-removal" };
"#;

fn configuration(shop: SocketAddr) -> String {
    format!(
        "listeners:
  - {{name: demo, address: '127.0.0.1:0', backends: [shop]}}
identity:
  issuers:
    - {{name: idp, issuer: {ISSUER}, audience: [{AUDIENCE}], algorithm: EdDSA, keys: {{file: keys.json}}}}
backends:
  - {{name: shop, upstream: 'http://{shop}', action_map: actions.yaml, credential: shop-admin}}
credentials:
  - {{name: shop-admin, source: {{file: shop-secret}}, inject: {{bearer: true}}}}
audit: {{directory: audit}}
admin: {{address: '127.0.0.1:0'}}
control: {{address: '127.0.0.1:0', documents: [documents.yaml]}}
workers: 1
drain_timeout: 1s
"
    )
}

fn keys(key: &Ed25519KeyPair) -> anyhow::Result<String> {
    let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
    let key = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "demo", "x": x});
    Ok(serde_json::to_string(&json!({"keys": [key]}))?)
}

fn token(key: &Ed25519KeyPair, subject: &str, now: Timestamp) -> anyhow::Result<String> {
    let der = key.to_pkcs8().map_err(|_| anyhow!("the key cannot be written"))?;
    let header = Header { kid: Some("demo".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let claims = json!({
        "iss": ISSUER, "sub": subject, "aud": AUDIENCE, "iat": now.as_seconds(), "exp": now.as_seconds() + 36_000,
    });
    Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(der.as_ref()))?)
}

fn random_text() -> String {
    let mut bytes = [0u8; 24];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers, or nothing here is safe to do");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// One request over a connection of its own; `seen` is the version that an approver saw.
async fn send(
    to: SocketAddr,
    method: Method,
    path: &str,
    token: &str,
    seen: &str,
    body: Option<&Value>,
) -> anyhow::Result<Response<Incoming>> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", to.to_string())
        .header("authorization", format!("Bearer {token}"));
    if !seen.is_empty() {
        request = request.header("if-match", seen);
    }
    let body = match body {
        Some(body) => {
            request = request.header("content-type", "application/json");
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };
    Ok(sender.send_request(request.body(Full::new(body))?).await?)
}

async fn read(response: Response<Incoming>) -> anyhow::Result<Seen> {
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    let whole = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
        }
    };
    Ok(Seen { status, body: String::from_utf8_lossy(&text).trim().to_owned(), whole })
}
