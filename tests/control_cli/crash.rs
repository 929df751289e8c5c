//! A control plane that is killed while it answers: what was answered is there, and nothing is there by half.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};

use crate::client::Client;
use crate::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::world::Control;

const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Backend
metadata: {name: shop}
spec: {actions: [{name: order.read, class: read}]}
---
apiVersion: leasehold/v1
kind: Principal
metadata: {name: bot}
spec: {principal: "https://idp.test#bot", type: ci, groups: [bots], grants_max: 1000000}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: auto}
spec: {backend: shop, actions: [order.read], resources: ["orders/**"], eligible: [bots], duration_max: 1h, concurrent_max: 100000}
---
apiVersion: leasehold/v1
kind: Entitlement
metadata: {name: asked}
spec:
  backend: shop
  actions: [order.read]
  resources: ["orders/**"]
  eligible: [bots]
  duration_max: 1h
  concurrent_max: 100000
  approval: {steps: [{approvers: [leads], quorum: 1}]}
---
apiVersion: leasehold/v1
kind: Policy
metadata: {name: automatic}
spec:
  target: elevation
  cedar: |
    @id("automatic")
    permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource == Leasehold::Entitlement::"auto");
"#;

/// How many ask at a time.
const ASKERS: usize = 4;

/// What somebody was answered.
enum Answered {
    /// Under which key, and the request.
    Asked(String, Value),
    /// A grant that was given back.
    Released(Value),
}

/// Somebody who asks and gives back on one connection.
struct Asker {
    client: Client,
    token: String,
}

impl Asker {
    fn new(address: SocketAddr, token: &str) -> Self {
        Self { client: Client::connect(address), token: token.to_owned() }
    }

    /// What came of a call; nothing where no whole answer came.
    fn call(&mut self, path: &str, fields: &str, body: &Value) -> Option<Value> {
        let (token, body) = (&self.token, body.to_string());
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{fields}content-length: {length}\r\n\r\n"
        );
        self.client.send((head + &body).as_bytes());
        let answer = self.client.answer_to("POST").filter(|answer| answer.whole)?;
        assert!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
        Some(answer.json())
    }

    fn ask(&mut self, key: &str) -> Option<Value> {
        let entitlement = if key.ends_with('0') { "asked" } else { "auto" };
        let body = json!({"entitlement": entitlement, "justification": key});
        self.call("/v1/requests", &format!("idempotency-key: {key}\r\n"), &body)
    }

    /// Asks until no answer comes, and gives every third grant back; the key that got no answer, if it was one.
    fn until_it_dies(mut self, name: &str, told: &Sender<Answered>) -> Option<String> {
        for n in 0.. {
            let key = format!("{name}-{n}");
            let Some(request) = self.ask(&key) else { return Some(key) };
            let grant = request["grant_id"].as_str().map(str::to_owned);
            told.send(Answered::Asked(key, request)).unwrap();
            if let Some(grant) = grant.filter(|_| n % 3 == 1) {
                told.send(Answered::Released(self.call(&format!("/v1/grants/{grant}/release"), "", &json!({}))?))
                    .unwrap();
            }
        }
        None
    }
}

fn address(control: &Control) -> SocketAddr {
    control.url.trim_start_matches("http://").parse().unwrap()
}

/// Runs a control plane until so many answers came, and kills it; the keys that got none.
fn killed_after(
    enough: usize,
    round: usize,
    control: &mut Control,
    token: &str,
    all: &mut Vec<Answered>,
) -> Vec<String> {
    let (told, answers) = channel();
    let askers: Vec<_> = (0..ASKERS)
        .map(|n| {
            let (asker, told) = (Asker::new(address(control), token), told.clone());
            std::thread::spawn(move || asker.until_it_dies(&format!("{round}-{n}"), &told))
        })
        .collect();
    drop(told);
    all.extend(answers.iter().take(enough));
    control.kill();
    let lost = askers.into_iter().filter_map(|asker| asker.join().unwrap()).collect();
    all.extend(answers.try_iter());
    lost
}

/// Everything of the store, by id.
fn listed(control: &Control, what: &str) -> BTreeMap<String, Value> {
    let list = control.admin().json(&[what, "--limit", "1000000"]);
    list.as_array().unwrap().iter().map(|row| (row["id"].as_str().unwrap().to_owned(), row.clone())).collect()
}

/// Holds what is there to what was answered, and to itself.
fn check(control: &Control, answered: &[Answered]) {
    control.admin().ok(&["audit", "verify"]);
    let (requests, grants) = (listed(control, "requests"), listed(control, "grants"));
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in control.admin().json(&["audit", "list", "--limit", "1000000"]).as_array().unwrap() {
        let of = |key: &str| entry[key].as_str().unwrap().to_owned();
        events.entry(of("subject")).or_default().push(of("event"));
    }
    let events = |id: &str| events.get(id).map(|list| list.join(" ")).unwrap_or_default();
    for answer in answered {
        match answer {
            Answered::Asked(key, request) => {
                let row = requests.get(request["id"].as_str().unwrap()).unwrap_or_else(|| panic!("{key} is lost"));
                assert_eq!((&row["state"], &row["justification"]), (&request["state"], &json!(key)));
            }
            Answered::Released(grant) => {
                assert_eq!(grants[grant["id"].as_str().unwrap()]["state"], "released", "it was given back: {grant}");
            }
        }
    }
    let mut keys: Vec<&Value> = requests.values().map(|row| &row["justification"]).collect();
    keys.sort_unstable_by_key(|key| key.as_str());
    keys.dedup();
    assert_eq!(keys.len(), requests.len(), "a key is one request");
    let mut granted = 0;
    for (id, row) in &requests {
        let state = row["state"].as_str().unwrap();
        assert_eq!(events(id), format!("request.{state}"), "a request has its entry: {row}");
        if let Some(grant) = row["grant_id"].as_str() {
            granted += 1;
            assert_eq!(grants[grant]["request"].as_str(), Some(id.as_str()), "an approved request has its grant");
            let released = if grants[grant]["state"] == "released" { " grant.released" } else { "" };
            assert_eq!(events(grant), format!("grant.active{released}"), "a grant has its entries");
        }
    }
    assert_eq!(granted, grants.len(), "a grant has its request");
}

#[test]
fn what_was_answered_is_there_after_a_kill() {
    let issuer = Issuer::new("people");
    let mut control = Control::start_with(
        &[("keys.json", &issuer.jwks()), ("documents.yaml", DOCUMENTS)],
        &format!(
            "identity: {{issuers: [{{name: people, issuer: '{ISSUER}', audience: ['{AUDIENCE}'], algorithm: EdDSA, keys: {{file: keys.json}}}}]}}\n"
        ),
        ", calls_per_second: 1000000, documents: [documents.yaml]",
    );
    let token = issuer.token("bot");
    let mut answered = Vec::new();
    for round in 0..8 {
        let lost = killed_after(1 + round * 17, round, &mut control, &token, &mut answered);
        control.start_again();
        check(&control, &answered);
        // Whoever was left without an answer asks again, and gets the one request that there is or was not.
        let mut asker = Asker::new(address(&control), &token);
        for key in lost {
            let request = asker.ask(&key).unwrap();
            answered.push(Answered::Asked(key, request));
        }
        check(&control, &answered);
    }
    let released = answered.iter().filter(|answer| matches!(answer, Answered::Released(_))).count();
    assert!(answered.len() > 400 && released > 50, "{} answers, {released} released", answered.len());
}
