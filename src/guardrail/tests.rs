//! What guardrails say, and that what is remembered is what would be said anew; more of them is in `tests/policy`.

use super::bundle::BundledPrincipal;
use super::*;
use crate::domain::action::ActionClass;
use crate::domain::id::{ActionName, BackendName};
use crate::domain::principal::{Principal, PrincipalKind};
use crate::domain::resource::Resource;
use crate::domain::time::Timestamp;

fn backends() -> Backends {
    let action = |name, class| (ActionName::new(name).unwrap(), class);
    let actions = vec![action("a.read", ActionClass::Read), action("a.drop", ActionClass::Admin)];
    let other = vec![action("b.put", ActionClass::Write)];
    [(BackendName::new("a").unwrap(), actions), (BackendName::new("b").unwrap(), other)].into()
}

const BOT: &str = "https://idp.test#bot";
const AGENT: &str = "https://idp.test#agent-1";
const NOBODY: &str = "https://idp.test#nobody";

type Person = (&'static str, PrincipalKind, &'static [&'static str], Option<&'static str>);

const PEOPLE: [Person; 3] = [
    (BOT, PrincipalKind::Ci, &["bots", "night"], None),
    ("https://idp.test#agent-*", PrincipalKind::Agent, &["bots"], Some("https://idp.test#alice")),
    ("https://idp.test#*", PrincipalKind::Workload, &[], None),
];

fn document(name: &str, mode: Mode, cedar: &str) -> GuardrailDocument {
    GuardrailDocument { name: name.to_owned(), mode, cedar: cedar.to_owned() }
}

fn bundle_of(documents: &[GuardrailDocument], people: &[Person]) -> GuardrailBundle {
    let backends = backends();
    let guardrails = Guardrails::compile(documents, &backends).unwrap();
    let owned: Vec<(&str, PrincipalKind, Vec<String>, Option<&str>)> = people
        .iter()
        .map(|(name, kind, groups, owner)| (*name, *kind, groups.iter().map(|g| (*g).to_owned()).collect(), *owner))
        .collect();
    let people = owned.iter().map(|(name, kind, groups, owner)| (*name, *kind, groups.as_slice(), *owner));
    GuardrailBundle::new(documents, &backends, guardrails.needs(), people)
}

fn enforced(cedar: &str) -> Guardrails {
    Guardrails::load(&bundle_of(&[document("d", Mode::Enforce, cedar)], &PEOPLE)).unwrap()
}

fn noon() -> Timestamp {
    Timestamp::parse("2026-11-23T12:00:00.5Z").unwrap()
}

fn said_at(
    guardrails: &Guardrails,
    (who, backend, action): (&str, &str, &str),
    resource: &Resource,
    now: Timestamp,
) -> Judgement {
    let principal = Principal::parse(who).unwrap();
    let (backend, action) = (BackendName::new(backend).unwrap(), ActionName::new(action).unwrap());
    let call = Call { principal: &principal, backend: &backend, action: &action, resource };
    let first = guardrails.judge(call, |g| g.seat(&principal), now);
    // What is remembered is what was found.
    assert_eq!(guardrails.judge(call, |g| g.seat(&principal), now).said, first.said);
    first
}

/// The ids of the policies that stop a call.
fn stopping(guardrails: &Guardrails, who: &str, backend: &str, action: &str, resource: &str) -> Vec<String> {
    let found = said_at(guardrails, (who, backend, action), &Resource::exact(resource), noon());
    found.stop().map(|said| said.stopping().map(|rule| rule.id.clone()).collect()).unwrap_or_default()
}

#[test]
fn a_guardrail_stops_what_it_is_about_and_nothing_else() {
    let guardrails = enforced(
        r#"@id("no-drop") @reason("nobody drops") forbid(principal, action == Leasehold::Action::"a.drop", resource);
           @id("agents") forbid(principal, action in Leasehold::Action::"call:read", resource) when { principal.kind == "agent" };
           @id("night") forbid(principal in Leasehold::Group::"night", action, resource in Leasehold::Backend::"b");
           @id("bot") forbid(principal == Leasehold::Principal::"https://idp.test#bot", action, resource == Leasehold::Resource::"vault");"#,
    );
    let none: [&str; 0] = [];
    assert_eq!(stopping(&guardrails, BOT, "a", "a.drop", "x"), ["no-drop"]);
    assert_eq!(stopping(&guardrails, BOT, "a", "a.read", "x"), none);
    assert_eq!(stopping(&guardrails, AGENT, "a", "a.read", "x"), ["agents"]);
    assert_eq!(stopping(&guardrails, BOT, "b", "b.put", "x"), ["night"]);
    assert_eq!(stopping(&guardrails, AGENT, "b", "b.put", "x"), none);
    assert_eq!(stopping(&guardrails, BOT, "a", "a.read", "vault"), ["bot"]);
    assert_eq!(stopping(&guardrails, BOT, "b", "b.put", "vault"), ["bot", "night"]);
    assert_eq!(stopping(&guardrails, NOBODY, "a", "a.read", "vault"), none);
    let told = said_at(&guardrails, (BOT, "a", "a.drop"), &Resource::exact("x"), noon());
    let said = told.stop().unwrap();
    assert_eq!((said.reason(), said.forbids[0].to_string().as_str()), (Some("nobody drops"), "d/no-drop"));
}

#[test]
fn a_call_that_reaches_more_is_stopped_by_what_is_inside() {
    let guardrails = enforced(
        r#"@id("a") forbid(principal, action, resource == Leasehold::Resource::"keys/secret");
           @id("b") forbid(principal, action, resource) when { resource == Leasehold::Resource::"other" };"#,
    );
    let ids = |resource: &Resource| {
        let found = said_at(&guardrails, (BOT, "a", "a.read"), resource, noon());
        found.said.map(|said| said.stopping().map(|rule| rule.id.clone()).collect::<Vec<_>>()).unwrap_or_default()
    };
    let none: [&str; 0] = [];
    assert_eq!(ids(&Resource::under("keys/")), ["a"]);
    assert_eq!(ids(&Resource::under("keys/secret")), ["a"]);
    assert_eq!(ids(&Resource::under("")), ["a", "b"]);
    assert_eq!(ids(&Resource::under("keys/secret/")), none);
    assert_eq!(ids(&Resource::exact("keys/")), none);
    assert_eq!(ids(&Resource::exact("keys/secret")), ["a"]);
}

#[test]
fn what_cannot_be_evaluated_denies_and_says_which_policy() {
    let overflow = r#"@id("o") forbid(principal, action, resource) when { principal.kind == "ci" && 9223372036854775807 + (if principal has owner then 0 else 1) > 0 };"#;
    let guardrails = enforced(overflow);
    assert_eq!(stopping(&guardrails, BOT, "a", "a.read", "x"), ["o"]);
    assert!(stopping(&guardrails, AGENT, "a", "a.read", "x").is_empty());
    // Somebody who is not known has no attributes to look at.
    assert_eq!(stopping(&guardrails, "https://elsewhere.test#x", "a", "a.read", "x"), ["o"]);
    let shadow = Guardrails::load(&bundle_of(&[document("d", Mode::Shadow, overflow)], &PEOPLE)).unwrap();
    let found = said_at(&shadow, (BOT, "a", "a.read"), &Resource::exact("x"), noon());
    assert!(found.stop().is_none());
    assert_eq!(found.said.unwrap().shadow[0].id, "o");
}

#[test]
fn an_answer_that_reads_the_time_is_one_for_its_second() {
    let guardrails = enforced(
        r#"@id("after") forbid(principal, action == Leasehold::Action::"a.read", resource)
           when { context.now >= datetime("2026-11-23T12:00:01Z") };
           @id("never") forbid(principal in Leasehold::Group::"none", action == Leasehold::Action::"a.drop", resource);"#,
    );
    let at = |text: &str| {
        let now = Timestamp::parse(text).unwrap();
        said_at(&guardrails, (BOT, "a", "a.read"), &Resource::exact("x"), now).stop().is_some()
    };
    // In whatever order: a clock can step.
    for (text, stopped) in [
        ("2026-11-23T12:00:00.999999Z", false),
        ("2026-11-23T12:00:01Z", true),
        ("2026-11-23T12:00:00.1Z", false),
        ("2026-11-24T00:00:00Z", true),
    ] {
        assert_eq!(at(text), stopped, "{text}");
    }
    assert!(said_at(&guardrails, (BOT, "a", "a.read"), &Resource::exact("x"), noon()).timed);
    assert!(!said_at(&guardrails, (BOT, "a", "a.drop"), &Resource::exact("x"), noon()).timed);
    // A moment that is none cannot be asked about.
    assert!(said_at(&guardrails, (BOT, "a", "a.read"), &Resource::exact("x"), Timestamp::MAX).stop().is_some());
}

#[test]
fn an_action_that_is_not_known_is_stopped_by_what_could_be_about_it() {
    let wide = enforced(r#"@id("w") forbid(principal in Leasehold::Group::"night", action, resource);"#);
    let narrow = enforced(
        r#"@id("n") forbid(principal, action == Leasehold::Action::"a.drop", resource in Leasehold::Backend::"a");"#,
    );
    for (guardrails, backend, action, stopped) in [
        (&wide, "a", "a.new", true),
        (&wide, "c", "c.x", true),
        (&narrow, "a", "a.new", false),
        (&narrow, "b", "a.drop", false),
    ] {
        let found = said_at(guardrails, (AGENT, backend, action), &Resource::exact("x"), noon());
        assert_eq!(found.stop().is_some(), stopped, "{backend} {action}");
    }
    let refusing = Guardrails::unreadable();
    assert!(said_at(&refusing, (AGENT, "a", "a.read"), &Resource::exact("x"), noon()).stop().is_some());
    assert!(said_at(&Guardrails::none(), (AGENT, "a", "a.read"), &Resource::exact("x"), noon()).said.is_none());
}

#[test]
fn a_bundle_holds_what_policies_look_at_and_nothing_more() {
    let of = |cedar: &str| bundle_of(&[document("d", Mode::Enforce, cedar)], &PEOPLE);
    let names = |bundle: &GuardrailBundle| -> Vec<String> {
        bundle.principals.iter().map(|one| one.principal.clone()).collect()
    };
    assert_eq!(bundle_of(&[], &PEOPLE), GuardrailBundle::default());
    let blind = of(r#"@id("a") forbid(principal, action == Leasehold::Action::"a.drop", resource);"#);
    assert!(blind.principals.is_empty());
    let night = of(r#"@id("a") forbid(principal in Leasehold::Group::"night", action, resource);"#);
    assert_eq!(names(&night), [BOT]);
    assert_eq!(night.principals[0].groups, ["night"]);
    let owned = of(r#"@id("a") forbid(principal, action, resource) when { principal has owner };"#);
    assert_eq!(names(&owned), ["https://idp.test#agent-*"]);
    let kinds = of(r#"@id("a") forbid(principal, action, resource) when { principal.kind == "ci" };"#);
    assert_eq!(kinds.principals.len(), 3);
    // Whoever a wider name would be taken for keeps their own.
    let wide: [Person; 2] =
        [(BOT, PrincipalKind::Ci, &[], None), ("https://idp.test#*", PrincipalKind::Ci, &["night"], None)];
    let cedar = r#"@id("a") forbid(principal in Leasehold::Group::"night", action, resource);"#;
    let bundle = bundle_of(&[document("d", Mode::Enforce, cedar)], &wide);
    assert_eq!(bundle.principals.len(), 2);
    assert!(stopping(&Guardrails::load(&bundle).unwrap(), BOT, "a", "a.read", "x").is_empty());
}

#[test]
fn a_bundle_travels_as_it_is_and_its_digest_says_when_it_changed() {
    let cedar =
        r#"@id("a") forbid(principal in Leasehold::Group::"night", action, resource) when { principal has owner };"#;
    let bundle = bundle_of(&[document("d", Mode::Enforce, cedar)], &PEOPLE);
    let text = serde_json::to_string(&bundle).unwrap();
    let read: GuardrailBundle = serde_json::from_str(&text).unwrap();
    assert_eq!((&read, read.digest()), (&bundle, bundle.digest()));
    assert_eq!(Guardrails::load(&read).unwrap().digest(), bundle.digest());
    let mut people = PEOPLE;
    people[2].1 = PrincipalKind::User;
    assert_eq!(bundle_of(&[document("d", Mode::Enforce, cedar)], &people).digest(), bundle.digest());
    people[0].2 = &["bots"];
    assert_ne!(bundle_of(&[document("d", Mode::Enforce, cedar)], &people).digest(), bundle.digest());
    assert_ne!(bundle_of(&[document("d", Mode::Shadow, cedar)], &PEOPLE).digest(), bundle.digest());
    assert_eq!(Guardrails::none().digest(), GuardrailBundle::default().digest());
    assert!(serde_json::from_str::<GuardrailBundle>(&text.replacen('{', "{\"more\":1,", 1)).is_err());
}

#[test]
fn a_bundle_that_is_wrong_is_refused_as_a_whole() {
    let good = r#"@id("a") forbid(principal in Leasehold::Group::"night", action, resource);"#;
    let bundle = bundle_of(&[document("d", Mode::Enforce, good)], &PEOPLE);
    assert!(Guardrails::load(&bundle).is_ok());
    let with = |change: &dyn Fn(&mut GuardrailBundle)| {
        let mut other = bundle.clone();
        change(&mut other);
        Guardrails::load(&other).unwrap_err().to_string()
    };
    let added = |cedar: &str| with(&|bundle| bundle.policies.push(document("e", Mode::Enforce, cedar)));
    for (error, word) in [
        (added("forbid("), "Policy `e`: spec.cedar, line 1"),
        (added("permit(principal, action, resource);"), "each policy has an `@id"),
        (added("@id(\"b\") permit(principal, action, resource);"), "only forbids"),
        (added(good), "two policies have the id `a`"),
        (added("@id(\"b\") @max_uses(\"1\") forbid(principal, action, resource);"), "nobody would heed"),
        (added("@id(\"b\") forbid(principal, action == Leasehold::Action::\"x.y\", resource);"), "x.y"),
        (added("@id(\"b\") forbid(principal, action, resource) when { context.source == \"x\" };"), "source"),
        (with(&|bundle| bundle.backends.clear()), "applicable action"),
        (with(&|bundle| bundle.backends.push(bundle.backends[0].clone())), "the backend `a` is there twice"),
        (with(&|bundle| bundle.principals.push(bundle.principals[0].clone())), "is there twice"),
    ] {
        assert!(error.contains(word), "`{word}` is not in {error}");
    }
}

#[test]
fn what_is_asked_fits_the_schema() {
    let (schema, _) = cedar_policy::Schema::from_cedarschema_str(&schema::text(&schema::calls(&backends()))).unwrap();
    let principal = Principal::parse(AGENT).unwrap();
    let role = BundledPrincipal {
        principal: AGENT.to_owned(),
        kind: PrincipalKind::Agent,
        groups: vec!["bots".to_owned()],
        owner: Some("https://idp.test#alice".to_owned()),
    };
    let uid = words::uid(words::Word::Principal, AGENT);
    let entity = words::actor(&uid, role.actor(&principal)).unwrap();
    let resource = words::uid(words::Word::Resource, "r/1");
    let backend = words::uid(words::Word::Backend, "a");
    let resource_entity = cedar_policy::Entity::new_no_attrs(resource.clone(), [backend].into());
    assert!(cedar_policy::Entities::from_entities([entity, resource_entity], Some(&schema)).is_ok());
    let action = words::uid(words::Word::Action, "a.drop");
    let moment = words::moment(noon()).unwrap();
    assert!(cedar_policy::Request::new(uid, action, resource, moment, Some(&schema)).is_ok());
}
