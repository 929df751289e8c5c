//! Documents and policies: what is refused when they are read, and what they say when they are asked.

#![allow(missing_docs, clippy::unwrap_used)]

mod cli;
mod documents;
mod examples;
mod guardrail;
mod load;
mod property;
mod quota;
mod ruling;

use std::time::Duration;

use leasehold::control::catalogue::Catalogue;
use leasehold::control::document::Document;
use leasehold::control::route::{Asked, Ruling};
use leasehold::domain::arguments::ArgumentDigest;
use leasehold::domain::id::{EntitlementName, TaskRef};
use leasehold::domain::principal::Principal;
use leasehold::domain::task::Task;
use leasehold::domain::time::Timestamp;
use serde_json::{Value, json};

pub const BOT: &str = "spiffe://prod.example/bot";
pub const AGENT: &str = "spiffe://prod.example/agent";
pub const ALICE: &str = "https://idp.example#alice";
pub const BOB: &str = "https://idp.example#bob";

pub fn document(kind: &str, name: &str, spec: Value) -> Document {
    let document = json!({"apiVersion": "leasehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(document).unwrap()
}

pub fn policy(name: &str, target: &str, cedar: &str) -> Document {
    document("Policy", name, json!({"target": target, "cedar": cedar}))
}

pub fn elevation(cedar: &str) -> Document {
    policy("p", "elevation", cedar)
}

pub fn shadow(name: &str, target: &str, cedar: &str) -> Document {
    document("Policy", name, json!({"target": target, "mode": "shadow", "cedar": cedar}))
}

/// Two backends, two entitlements, two machines and two people.
pub fn base() -> Vec<Document> {
    let actions = json!([
        {"name": "pg.read", "class": "read"}, {"name": "pg.vacuum", "class": "admin"}, {"name": "pg.drop", "class": "admin"}
    ]);
    let entitlement = |backend: &str, action: &str, steps: Value| {
        json!({
            "backend": backend, "actions": [action], "resources": ["**"], "eligible": ["dba", "agents"],
            "duration_max": "30m", "approval": {"steps": steps}, "concurrent_max": 1000,
        })
    };
    let human = |name: &str| json!({"principal": name, "type": "user", "groups": ["oncall"]});
    vec![
        document("Backend", "db", json!({"actions": actions})),
        document("Backend", "mq", json!({"actions": [{"name": "queue.purge", "class": "write"}]})),
        document(
            "Entitlement",
            "maint",
            entitlement("db", "pg.vacuum", json!([{"approvers": ["oncall"], "quorum": 1}])),
        ),
        document("Entitlement", "purge", entitlement("mq", "queue.purge", json!([]))),
        document("Principal", "bot", json!({"principal": BOT, "type": "workload", "groups": ["dba"]})),
        document(
            "Principal",
            "agent",
            json!({"principal": AGENT, "type": "agent", "groups": ["agents"], "owner": ALICE}),
        ),
        document("Principal", "alice", human(ALICE)),
        document("Principal", "bob", human(BOB)),
    ]
}

pub fn read(more: impl IntoIterator<Item = Document>) -> Result<Catalogue, Vec<String>> {
    let documents: Vec<Document> = base().into_iter().chain(more).collect();
    Catalogue::read(&documents, 1)
}

#[track_caller]
pub fn world(more: impl IntoIterator<Item = Document>) -> Catalogue {
    read(more).unwrap_or_else(|errors| panic!("{}", errors.join("\n")))
}

/// The base with more documents is refused, and the errors say so in these words.
#[track_caller]
pub fn refused(more: impl IntoIterator<Item = Document>, words: &[&str]) {
    let errors = match read(more) {
        Ok(_) => panic!("it was taken; it should say {words:?}"),
        Err(errors) => errors.join("\n"),
    };
    for word in words {
        assert!(errors.contains(word), "`{word}` is not in: {errors}");
    }
}

pub fn noon() -> Timestamp {
    Timestamp::parse("2026-11-23T12:00:00Z").unwrap()
}

pub fn who(text: &str) -> Principal {
    Principal::parse(text).unwrap()
}

/// A question about `maint`; each case changes what it is about.
#[derive(Debug, Clone)]
pub struct Question {
    pub principal: &'static str,
    pub entitlement: &'static str,
    pub seconds: u64,
    pub uses: Option<u32>,
    pub arguments: Option<ArgumentDigest>,
    pub emergency: bool,
    pub task: Option<Task>,
    pub now: Timestamp,
}

impl Default for Question {
    fn default() -> Self {
        Self {
            principal: BOT,
            entitlement: "maint",
            seconds: 1_800,
            uses: None,
            arguments: None,
            emergency: false,
            task: None,
            now: noon(),
        }
    }
}

pub fn incident() -> Option<Task> {
    let reference = TaskRef::new("pagerduty:P1").unwrap();
    Some(Task { verified: true, kind: "incident".to_owned(), ..Task::mentioned(reference, noon()) })
}

pub fn rule(catalogue: &Catalogue, question: &Question) -> Ruling {
    let known = catalogue.know(&who(question.principal)).expect("somebody known");
    let name = EntitlementName::new(question.entitlement).unwrap();
    let entitlement = &catalogue.entitlements[&name];
    let actions: Vec<String> = entitlement.scope.actions().iter().map(ToString::to_string).collect();
    let resources: Vec<String> = entitlement.scope.resources().iter().map(ToString::to_string).collect();
    let asked = Asked {
        entitlement: &name,
        actions: &actions,
        resources: &resources,
        arguments: question.arguments.as_ref(),
        duration: Duration::from_secs(question.seconds),
        uses: question.uses,
        emergency: question.emergency,
        task: question.task.as_ref(),
    };
    catalogue.policies.rule(known.actor(), asked, &entitlement.steps, question.now)
}
