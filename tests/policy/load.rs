//! What is wrong with a policy refuses the load, and says what is wrong.

use leasehold::control::document::Document;
use serde_json::json;

use crate::{document, elevation, policy, read, refused, shadow, world};

/// A head about requests for anything.
const REQUEST: &str = r#"principal, action == Leasehold::Action::"elevation:request", resource"#;
const AUTO: &str = r#"principal, action == Leasehold::Action::"elevation:auto_approve", resource"#;
const APPROVE: &str = r#"principal, action == Leasehold::Action::"elevation:approve", resource"#;

fn guardrail(name: &str, cedar: &str) -> Document {
    policy(name, "guardrail", cedar)
}

#[test]
fn a_mistake_in_the_text_has_its_line() {
    refused(
        [elevation("@id(\"a\")\nforbid(principal, action, resource)\nwhen { };")],
        &["Policy `p`", "spec.cedar, line 3"],
    );
    refused([elevation("")], &["Policy `p`", "has no policy"]);
    refused([elevation("// nothing")], &["has no policy"]);
    refused([elevation(&format!("@id(\"a\") @id(\"b\") forbid({REQUEST});"))], &["Policy `p`"]);
}

#[test]
fn what_does_not_fit_the_schema_is_refused() {
    for (condition, word) in [
        ("context.colour == \"red\"", "colour"),
        ("context.ttl_s == \"long\"", "`a`"),
        // Optional, so it must be asked for first.
        ("context.task.open", "task"),
        ("principal.owner == \"x\"", "owner"),
        ("resource.nothing", "nothing"),
        ("principal in Leasehold::Team::\"x\"", "Team"),
        // It can never hold.
        ("false", "`a`"),
        ("context.ttl_s == 1 && false", "`a`"),
    ] {
        refused([elevation(&format!("@id(\"a\") forbid({REQUEST}) when {{ {condition} }};"))], &[word]);
    }
}

#[test]
fn annotations_are_ours() {
    let permit = |annotations: &str| {
        elevation(&format!("@id(\"a\") {annotations} permit({REQUEST}) when {{ principal.kind == \"agent\" }};"))
    };
    for good in [
        "@reason(\"because\")",
        "@max_ttl(\"15m\")",
        "@max_uses(\"1\")",
        "@quorum(\"2\") @require_approvers(\"dba-oncall, sre\")",
    ] {
        world([permit(good)]);
    }
    for (bad, word) in [
        ("@maxttl(\"15m\")", "`@maxttl` is not known"),
        ("@advice(\"x\")", "`@advice` is not known"),
        ("@max_ttl(\"15\")", "not a duration"),
        ("@max_ttl(\"\")", "not a duration"),
        ("@max_ttl(\"15 m\")", "not a duration"),
        ("@max_ttl(\"-1m\")", "not a duration"),
        ("@max_ttl(\"99999999999999999999h\")", "not a duration"),
        ("@max_ttl(\"0s\")", "from `1s` to `24h`"),
        ("@max_ttl(\"25h\")", "from `1s` to `24h`"),
        ("@max_ttl", "not a duration"),
        ("@max_uses(\"0\")", "number from 1"),
        ("@max_uses(\"many\")", "number from 1"),
        ("@quorum(\"17\")", "number from 1 to 16"),
        ("@require_approvers(\"\")", "group ``"),
        ("@require_approvers(\"DBA\")", "group `DBA`"),
        ("@require_approvers(\"dba,\")", "group ``"),
        ("@require_approvers(\"dbа\")", "group"),
        ("@reason(\"\")", "one line"),
        ("@reason(\"a\\nb\")", "one line"),
    ] {
        refused([permit(bad)], &["Policy `p`: `a`:", word]);
    }
}

#[test]
fn an_obligation_that_nobody_would_heed_is_refused() {
    for (cedar, word) in [
        (format!("@id(\"a\") @max_ttl(\"1m\") forbid({REQUEST}) when {{ context.emergency }};"), "nobody would heed"),
        (
            format!("@id(\"a\") @quorum(\"2\") permit({APPROVE}) when {{ principal.kind == \"user\" }};"),
            "nobody would heed",
        ),
        (format!("@id(\"a\") @quorum(\"2\") permit({AUTO}) when {{ context.emergency }};"), "with nobody looking"),
        (
            format!("@id(\"a\") @require_approvers(\"x\") permit({AUTO}) when {{ context.emergency }};"),
            "nobody looking",
        ),
    ] {
        refused([elevation(&cedar)], &["Policy `p`: `a`:", word]);
    }
    let cedar = "@id(\"a\") @max_ttl(\"1m\") forbid(principal, action, resource) when { principal.kind == \"ci\" };";
    refused([guardrail("g", cedar)], &["nobody would heed"]);
}

#[test]
fn a_policy_has_an_id_of_its_own() {
    let forbid = |id: &str| format!("@id(\"{id}\") forbid({REQUEST}) when {{ context.emergency }};");
    refused([elevation(&format!("forbid({REQUEST}) when {{ context.emergency }};"))], &["each policy has an `@id"]);
    refused([elevation(&format!("{} {}", forbid("a"), forbid("a")))], &["two policies have the id `a`"]);
    refused([elevation(&forbid("a")), policy("q", "elevation", &forbid("a"))], &["two policies have the id `a`"]);
    refused([elevation(&forbid("a")), shadow("q", "elevation", &forbid("a"))], &["two policies have the id `a`"]);
    refused([elevation(&forbid("no-night")), policy("q", "elevation", &forbid("No-Night"))], &["in case"]);
    for bad in ["", "a b", "а", "a/b", "a\\nb", &"x".repeat(129)] {
        refused([elevation(&forbid(bad))], &["ASCII letters"]);
    }
}

#[test]
fn what_is_built_in_is_not_replaced() {
    let permit = |id: &str| format!("@id(\"{id}\") permit({REQUEST}) when {{ context.emergency }};");
    for id in ["leasehold.eligible", "leasehold.mine", "Leasehold.Eligible"] {
        refused([elevation(&permit(id))], &["ids that begin with `leasehold.` are ours"]);
        // Nor by a document that is called as the built-in ones are told.
        refused([policy("leasehold", "elevation", &permit(id))], &["are ours"]);
    }
    refused([policy("leasehold", "elevation", &format!("@id(\"a\") permit({AUTO});"))], &["permits everything"]);
}

#[test]
fn what_permits_everything_is_refused_however_it_is_written() {
    for cedar in [
        format!("@id(\"a\") permit({AUTO});"),
        "@id(\"a\") permit(principal, action, resource);".to_owned(),
        format!("@id(\"a\") permit({AUTO}) when {{ true }};"),
        format!("@id(\"a\") permit({AUTO}) unless {{ false }};"),
        "@id(\"a\") permit(principal is Leasehold::Principal, action, resource);".to_owned(),
        "@id(\"a\") permit(principal, action == Leasehold::Action::\"elevation:auto_approve\", \
         resource is Leasehold::Entitlement);"
            .to_owned(),
    ] {
        refused([elevation(&cedar)], &["permits everything to everybody"]);
    }
    let admin = "@id(\"a\") permit(principal, action in Leasehold::Action::\"admin:any\", resource);";
    refused([policy("p", "admin", admin)], &["permits everything to everybody"]);
}

#[test]
fn templates_are_refused() {
    let cedar = "@id(\"a\") forbid(principal == ?principal, action, resource);";
    refused([elevation(cedar)], &["templates are not used here"]);
}

#[test]
fn a_guardrail_only_forbids() {
    let cedar = "@id(\"a\") permit(principal, action, resource) when { principal.kind == \"user\" };";
    refused([guardrail("g", cedar)], &["a guardrail only forbids"]);
}

#[test]
fn a_policy_that_is_never_asked_is_refused() {
    let about = |action: &str| {
        format!(
            "@id(\"a\") forbid(principal, action == Leasehold::Action::\"{action}\", resource) when {{ principal.kind == \"ci\" }};"
        )
    };
    for (target, action, word) in [
        // An action that no backend has.
        ("guardrail", "pg.truncate", "pg.truncate"),
        ("elevation", "elevation:requests", "elevation:requests"),
        ("admin", "admin:everything", "admin:everything"),
        // One that is another target's.
        ("elevation", "pg.drop", "never asked about `pg.drop`"),
        ("elevation", "admin:lock", "never asked about `admin:lock`"),
        ("guardrail", "elevation:request", "never asked about `elevation:request`"),
        ("admin", "pg.drop", "never asked about `pg.drop`"),
    ] {
        refused([policy("p", target, &about(action))], &["Policy `p`: `a`:", word]);
    }
    // An action of one backend, on another.
    let cedar = "@id(\"a\") forbid(principal, action == Leasehold::Action::\"pg.drop\", resource in Leasehold::Backend::\"mq\");";
    refused([guardrail("g", cedar)], &["applies to no action of any backend"]);
    let cedar = "@id(\"a\") forbid(principal, action in Leasehold::Action::\"call:admin\", resource in Leasehold::Backend::\"mq\");";
    refused([guardrail("g", cedar)], &["applies to no action of any backend"]);
}

#[test]
fn what_a_policy_names_is_there() {
    let forbid = |condition: &str| elevation(&format!("@id(\"a\") forbid({REQUEST}) when {{ {condition} }};"));
    for (condition, word) in [
        ("resource in Leasehold::Backend::\"bd\"", "there is no Backend `bd`"),
        ("principal in Leasehold::Group::\"DBA\"", "group `DBA`"),
        ("principal in Leasehold::Group::\"dba \"", "group `dba `"),
        // A Cyrillic letter in it.
        ("principal in Leasehold::Group::\"dbа\"", "a"),
        ("principal == Leasehold::Principal::\"bot\"", "issuer#subject"),
        ("principal == Leasehold::Principal::\"https://idp.example#аlice\"", "a"),
    ] {
        refused([forbid(condition)], &["Policy `p`: `a`:", word]);
    }
    // An entitlement may have been taken away since; whoever writes a policy is told.
    let catalogue = world([forbid("resource == Leasehold::Entitlement::\"Maint\"")]);
    let told = "Policy `p`: `a`: there is no Entitlement `Maint`";
    assert_eq!(catalogue.policies.dangling(), [("p".to_owned(), told.to_owned())]);
    assert!(catalogue.notices().contains(&told.to_owned()));
    // A text that only looks like another.
    refused([forbid("context has task && context.task.source == \"pаgerduty\"")], &["`a`"]);
}

#[test]
fn a_slice_has_at_most_thirty_two_guardrails_and_the_message_names_the_wide_ones() {
    let wide = |n: usize| {
        guardrail(
            &format!("wide-{n:02}"),
            &format!("@id(\"wide-{n:02}\") forbid(principal, action, resource) when {{ principal.kind == \"ci\" }};"),
        )
    };
    let narrow = |n: usize| {
        guardrail(
            &format!("narrow-{n:02}"),
            &format!(
                "@id(\"narrow-{n:02}\") forbid(principal, action == Leasehold::Action::\"pg.drop\", \
                 resource in Leasehold::Backend::\"db\") when {{ principal.kind == \"ci\" }};"
            ),
        )
    };
    let fits: Vec<_> = (0..2).map(wide).chain((0..30).map(narrow)).collect();
    let catalogue = world(fits.clone());
    let sizes: Vec<(String, usize)> =
        catalogue.policies.slices().map(|(_, action, number)| (action.to_string(), number)).collect();
    assert_eq!(
        sizes,
        [("pg.drop", 32), ("pg.read", 2), ("pg.vacuum", 2), ("queue.purge", 2)].map(|(a, n)| (a.to_owned(), n))
    );
    let errors = read(fits.into_iter().chain([narrow(30)])).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for word in ["33 guardrails apply to `pg.drop` on `db`", "at most 32", "`wide-00`, `wide-01`"] {
        assert!(errors[0].contains(word), "`{word}` is not in {}", errors[0]);
    }
    assert!(!errors[0].contains("narrow"), "{}", errors[0]);
    // Those in shadow cost as much.
    let shadows = (0..33).map(|n| {
        let cedar = format!("@id(\"s{n}\") forbid(principal, action, resource) when {{ principal.kind == \"ci\" }};");
        shadow(&format!("s{n}"), "guardrail", &cedar)
    });
    refused(shadows, &["33 guardrails apply"]);
}

#[test]
fn every_mistake_is_told_and_nothing_is_in_force() {
    let bad = |id: &str| format!("@id(\"{id}\") @wrong forbid({REQUEST}) when {{ context.emergency }};");
    refused(
        [elevation(&format!("{} {}", bad("a"), bad("b"))), policy("q", "elevation", &bad("c"))],
        &["`a`", "`b`", "`c`"],
    );
}

#[test]
fn a_deep_or_hostile_text_is_an_error_and_no_crash() {
    let nested = format!("@id(\"a\") forbid({REQUEST}) when {{ {}true{} }};", "(".repeat(20_000), ")".repeat(20_000));
    let not = format!("@id(\"a\") forbid({REQUEST}) when {{ {}context.emergency }};", "!".repeat(20_000));
    for hostile in [nested, not, "\u{0}".repeat(1_000), "@".repeat(10_000), "(".repeat(100_000)] {
        assert!(read([elevation(&hostile)]).is_err());
    }
    refused([elevation(&"/".repeat((256 << 10) + 1))], &["at most 256 KiB"]);
}

#[test]
fn the_digest_changes_exactly_when_a_policy_does() {
    let text = format!("@id(\"a\") forbid({REQUEST}) when {{ context.emergency }};");
    let digest = |more: Vec<Document>| world(more).policies.digest().to_owned();
    let one = digest(vec![elevation(&text)]);
    assert_eq!(one.len(), 64);
    assert_eq!(one, digest(vec![elevation(&text)]));
    // What is no policy does not change it.
    let other = document("Principal", "carl", json!({"principal": "https://idp.example#carl", "type": "user"}));
    assert_eq!(one, digest(vec![elevation(&text), other]));
    let second = format!("@id(\"b\") forbid({REQUEST}) when {{ context.emergency }};");
    let all = [
        one,
        digest(vec![]),
        digest(vec![elevation(&format!("{text} "))]),
        digest(vec![shadow("p", "elevation", &text)]),
        digest(vec![policy("q", "elevation", &text)]),
        digest(vec![elevation(&format!("{text}{second}"))]),
        digest(vec![elevation(&text), policy("q", "elevation", &second)]),
        digest(vec![elevation(&second), policy("q", "elevation", &text)]),
    ];
    let mut different = all.to_vec();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), all.len(), "{all:#?}");
}
