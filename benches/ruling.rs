//! What a ruling costs: may this be asked, and may it pass with nobody looking, with the obligations of both.
//!
//! `cargo bench --bench ruling` prints p50 and p99 of a whole ruling with so many policies in force. One policy in five is
//! about the backend that is asked for; the rest is about other backends, groups, kinds and times, as policies are.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::fmt::Write;
use std::time::{Duration, Instant};

use leasehold::control::catalogue::Catalogue;
use leasehold::control::document::Document;
use leasehold::control::route::{Asked, Verdict};
use leasehold::domain::entitlement::Step;
use leasehold::domain::id::{EntitlementName, TaskRef};
use leasehold::domain::principal::Principal;
use leasehold::domain::task::Task;
use leasehold::domain::time::Timestamp;
use serde_json::{Value, json};

const ROUNDS: usize = 5_000;

fn document(kind: &str, name: &str, spec: Value) -> Document {
    let document = json!({"apiVersion": "leasehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(document).unwrap()
}

/// The policies of a small installation; the first ruling of each run is checked against what they say.
const SEVEN: &str = r#"
@id("agents-are-short") @max_ttl("10m") @max_uses("20")
permit(principal, action == Leasehold::Action::"elevation:request", resource)
when { principal in resource.eligible && principal.kind == "agent" };
@id("no-night-work")
forbid(principal, action == Leasehold::Action::"elevation:request", resource in Leasehold::Backend::"b1")
when { context.ttl_s > 86000 };
@id("no-unverified-tasks")
forbid(principal, action == Leasehold::Action::"elevation:request", resource in Leasehold::Backend::"b0")
unless { context has task && context.task.open && context.task.verified };
@id("auto-on-incident") @max_ttl("15m")
permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource)
when { context has task && context.task.kind == "incident" && context.task.verified };
@id("no-auto-emergency")
forbid(principal, action == Leasehold::Action::"elevation:auto_approve", resource)
when { context.emergency };
"#;

/// So many policies in all, the five above and the built-in ones included.
fn policies(count: usize) -> String {
    let mut text = SEVEN.to_owned();
    for n in 7..count {
        let action = if n % 2 == 0 { "elevation:request" } else { "elevation:auto_approve" };
        let backend = format!("b{}", n / 5 % 10);
        let (scope, condition) = match n % 5 {
            0 => (format!("principal, ACTION, resource in Leasehold::Backend::\"{backend}\""), "context.ttl_s > 90000"),
            1 => ("principal in Leasehold::Group::\"contractors\", ACTION, resource".into(), "context.ttl_s > 600"),
            2 => (
                format!("principal, ACTION, resource in Leasehold::Backend::\"{backend}\""),
                "principal.kind == \"user\" && context.emergency",
            ),
            3 => (
                "principal, ACTION, resource".into(),
                "context has task && context.task.kind == \"drill\" && !context.task.verified",
            ),
            _ => (
                format!("principal, ACTION, resource in Leasehold::Backend::\"{backend}\""),
                "context.actions.contains(\"pg.drop\")",
            ),
        };
        let scope = scope.replace("ACTION", &format!("action == Leasehold::Action::\"{action}\""));
        writeln!(text, "@id(\"p{n}\") forbid({scope}) when {{ {condition} }};").unwrap();
    }
    text
}

fn catalogue(count: usize) -> Catalogue {
    let mut documents = Vec::new();
    for n in 0..10 {
        let actions = json!([{"name": "pg.vacuum", "class": "admin"}, {"name": "pg.drop", "class": "admin"}]);
        documents.push(document("Backend", &format!("b{n}"), json!({"actions": actions})));
    }
    documents.push(document(
        "Entitlement",
        "pg-maint",
        json!({
            "backend": "b0", "actions": ["pg.vacuum"], "resources": ["databases/*"], "eligible": ["dba", "sre"],
            "duration_max": "30m", "approval": {"steps": [{"approvers": ["dba-oncall"], "quorum": 1}]},
        }),
    ));
    documents.push(document("Policy", "all", json!({"target": "elevation", "cedar": policies(count)})));
    Catalogue::read(&documents, 1).map_err(|errors| errors.join("\n")).unwrap()
}

fn main() {
    println!("{:>8}  {:>10}  {:>10}  {:>10}", "policies", "p50", "p99", "load");
    for count in [7, 10, 100, 1_000] {
        let begun = Instant::now();
        let catalogue = catalogue(count);
        let load = begun.elapsed();
        let mut took = measure(&catalogue);
        took.sort_unstable();
        let micros = |at: usize| format!("{:.1} µs", took[at].as_secs_f64() * 1e6);
        let (p50, p99) = (micros(took.len() / 2), micros(took.len() * 99 / 100));
        println!("{count:>8}  {p50:>10}  {p99:>10}  {:>7.1} ms", load.as_secs_f64() * 1e3);
    }
}

fn measure(catalogue: &Catalogue) -> Vec<Duration> {
    let principal = Principal::parse("spiffe://prod.example/ns/pay/sa/db-maint").unwrap();
    let (groups, actions) = (["dba".to_owned(), "pay".to_owned()], ["pg.vacuum".to_owned()]);
    let actor = leasehold::control::route::Actor {
        principal: &principal,
        kind: leasehold::control::document::PrincipalKind::Agent,
        groups: &groups,
        owner: None,
    };
    let resources = ["databases/*".to_owned()];
    let now = Timestamp::parse("2026-11-23T15:13:00Z").unwrap();
    let mut task = Task::mentioned(TaskRef::new("pagerduty:PGR0VU2").unwrap(), now);
    (task.verified, task.kind) = (true, "incident".to_owned());
    let entitlement = EntitlementName::new("pg-maint").unwrap();
    let asked = Asked {
        entitlement: &entitlement,
        actions: &actions,
        resources: &resources,
        arguments: None,
        duration: Duration::from_secs(1_800),
        uses: None,
        emergency: false,
        task: Some(&task),
    };
    let steps = [Step { approvers: vec!["dba-oncall".to_owned()], quorum: 1 }];
    let first = catalogue.policies.rule(actor, asked, &steps, now);
    assert_eq!(first.verdict, Verdict::Approve, "{first:?}");
    assert_eq!((first.ttl_max_seconds, first.uses_max), (Some(600), Some(20)));
    (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(catalogue.policies.rule(actor, asked, &steps, now));
            begun.elapsed()
        })
        .collect()
}
