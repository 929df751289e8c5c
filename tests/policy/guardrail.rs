//! What a sidecar makes of the guardrails: the same as the control plane foretells.

use std::sync::Arc;

use leasehold::control::catalogue::Catalogue;
use leasehold::control::document::Document;
use leasehold::control::route;
use leasehold::domain::id::{ActionName, BackendName};
use leasehold::domain::resource::Resource;
use leasehold::domain::time::Timestamp;
use leasehold::guardrail::{Call, GuardrailBundle, Guardrails, Rule};
use proptest::prelude::*;
use serde_json::json;

use crate::{AGENT, ALICE, BOB, BOT, base, document, noon, policy, shadow, who, world};

/// Guardrails of all shapes; each is a document of its own.
const POOL: [&str; 16] = [
    r#"forbid(principal, action == Leasehold::Action::"pg.drop", resource);"#,
    r#"forbid(principal, action in Leasehold::Action::"call:admin", resource) when { principal.kind == "agent" };"#,
    r#"forbid(principal, action in [Leasehold::Action::"call:write", Leasehold::Action::"pg.read"], resource is Leasehold::Resource in Leasehold::Backend::"mq");"#,
    r#"forbid(principal in Leasehold::Group::"dba", action, resource in Leasehold::Backend::"db") unless { principal has owner };"#,
    r#"forbid(principal == Leasehold::Principal::"spiffe://prod.example/agent", action, resource);"#,
    r#"forbid(principal, action, resource == Leasehold::Resource::"vault");"#,
    r#"forbid(principal, action, resource) when { [Leasehold::Resource::"vault", Leasehold::Resource::"safe"].contains(resource) && principal.kind == "user" };"#,
    r#"forbid(principal, action, resource) when { principal has owner && principal.owner == "https://idp.example#alice" };"#,
    r#"forbid(principal, action, resource) when { context.now < datetime("2026-11-23T12:00:00Z") };"#,
    r#"forbid(principal, action == Leasehold::Action::"pg.vacuum", resource) when { context.now.toTime() >= duration("12h1s") };"#,
    r#"forbid(principal, action, resource) when { 9223372036854775807 + (if principal.kind == "workload" then 1 else 0) < 0 };"#,
    r#"forbid(principal, action, resource) when { principal in [Leasehold::Group::"agents", Leasehold::Group::"oncall"] || principal == Leasehold::Principal::"https://idp.example#bob" };"#,
    r#"forbid(principal, action, resource) when { action == Leasehold::Action::"pg.read" && principal in Leasehold::Group::"wide" };"#,
    r#"forbid(principal == Leasehold::Principal::"https://ci.example#job:1", action, resource) when { principal.kind == "ci" };"#,
    r#"forbid(principal, action, resource) when { principal in Leasehold::Entitlement::"maint".eligible };"#,
    r#"forbid(principal is Leasehold::Principal in Leasehold::Group::"oncall", action, resource) unless { resource == Leasehold::Resource::"x" };"#,
];

const PEOPLE: [&str; 6] = [BOT, AGENT, ALICE, BOB, "https://ci.example#job:1", "https://ci.example#job:2"];

fn documents(chosen: &[usize], in_shadow: &[bool]) -> Vec<Document> {
    let own = chosen.iter().zip(in_shadow.iter().cycle()).map(|(n, in_shadow)| {
        let (name, cedar) = (format!("p{n}"), format!("@id(\"g{n}\") @reason(\"because of {n}\") {}", POOL[*n]));
        if *in_shadow { shadow(&name, "guardrail", &cedar) } else { policy(&name, "guardrail", &cedar) }
    });
    let wide = json!({"principal": "https://ci.example#*", "type": "ci", "groups": ["wide", "dba"]});
    base().into_iter().chain([document("Principal", "wide", wide)]).chain(own).collect()
}

fn ids(rules: &[Arc<Rule>]) -> Vec<String> {
    rules.iter().map(|rule| rule.id.clone()).collect()
}

/// Sent to a sidecar, as it would come there.
fn sent(catalogue: &Catalogue) -> Guardrails {
    let text = serde_json::to_string(&catalogue.guardrail_bundle()).unwrap();
    let bundle: GuardrailBundle = serde_json::from_str(&text).unwrap();
    assert_eq!(bundle.digest(), catalogue.guardrail_bundle().digest());
    Guardrails::load(&bundle).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Loaded from a bundle, with principals by their seats and answers remembered, guardrails say what the control plane
    /// says of everybody at every call.
    #[test]
    fn a_sidecar_says_what_is_foretold(
        chosen in prop::sample::subsequence((0..POOL.len()).collect::<Vec<_>>(), 0..8),
        in_shadow in prop::collection::vec(any::<bool>(), 1..4),
        seconds in prop::collection::vec(-2i64..3, 1..4),
    ) {
        let catalogue = Catalogue::read(&documents(&chosen, &in_shadow), 0).unwrap();
        let guardrails = sent(&catalogue);
        for second in seconds {
            let now = Timestamp::from_micros(noon().as_micros() + second * 1_000_000 + 250_000);
            for name in PEOPLE {
                let principal = who(name);
                let known = catalogue.know(&principal).unwrap();
                for (backend, action) in [("db", "pg.read"), ("db", "pg.vacuum"), ("db", "pg.drop"), ("mq", "queue.purge")] {
                    let (backend, action) = (BackendName::new(backend).unwrap(), ActionName::new(action).unwrap());
                    for resource in ["x", "vault", "safe", "other"] {
                        let asked = route::Call { backend: &backend, action: &action, resource };
                        let foretold = catalogue.policies.guardrails(known.actor(), asked, now);
                        let resource = Resource::exact(resource);
                        let call = Call { principal: &principal, backend: &backend, action: &action, resource: &resource };
                        let judgement = guardrails.judge(call, |g| g.seat(&principal), now);
                        let said = judgement.said.as_deref().cloned().unwrap_or_default();
                        let what = format!("{chosen:?} {name} {backend} {action} {resource}");
                        prop_assert_eq!(!said.stops(), foretold.allowed, "{}", what);
                        prop_assert_eq!(ids(&said.forbids), foretold.determining, "{}", what);
                        prop_assert_eq!(ids(&said.shadow), foretold.shadow, "{}", what);
                        prop_assert_eq!(!said.faults.is_empty(), foretold.failed, "{}", what);
                    }
                }
            }
        }
    }
}

#[test]
fn the_bundle_changes_only_with_what_it_is_made_of() {
    let guardrail =
        || policy("g", "guardrail", r#"@id("g") forbid(principal in Leasehold::Group::"dba", action, resource);"#);
    let digest = |more: Vec<Document>| world([guardrail()].into_iter().chain(more)).guardrail_bundle().digest();
    let plain = digest(Vec::new());
    let principal = |groups: &[&str]| {
        document(
            "Principal",
            "more",
            json!({"principal": "https://idp.example#more", "type": "user", "groups": groups}),
        )
    };
    let elevation = r#"@id("e") forbid(principal, action == Leasehold::Action::"elevation:request", resource) when { context.emergency };"#;
    for (same, more) in [
        (true, policy("e", "elevation", elevation)),
        (true, principal(&["oncall"])),
        (false, principal(&["oncall", "dba"])),
        (false, document("Backend", "more", json!({"actions": [{"name": "x.y", "class": "read"}]}))),
        (
            false,
            policy(
                "h",
                "guardrail",
                r#"@id("h") forbid(principal, action == Leasehold::Action::"pg.drop", resource);"#,
            ),
        ),
    ] {
        let name = format!("{} {}", more.kind, more.metadata.name);
        assert_eq!(digest(vec![more]) == plain, same, "{name}");
    }
    assert_eq!(world([]).guardrail_bundle(), GuardrailBundle::default());
}

#[test]
fn an_id_is_unique_over_guardrails_and_all_others() {
    let one =
        policy("a", "guardrail", r#"@id("same") forbid(principal, action == Leasehold::Action::"pg.drop", resource);"#);
    let other = policy(
        "b",
        "elevation",
        r#"@id("Same") forbid(principal, action == Leasehold::Action::"elevation:request", resource) when { context.emergency };"#,
    );
    crate::refused([one, other], &["Policy `b`", "in case"]);
}
