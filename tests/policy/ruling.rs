//! What policies say when they are asked.

use leasehold::control::route::{Call, Ruling, Verdict};
use leasehold::domain::action::{ActionPattern, Scope};
use leasehold::domain::arguments::ArgumentDigest;
use leasehold::domain::elevation::Request;
use leasehold::domain::entitlement::Step;
use leasehold::domain::id::{ActionName, BackendName, EntitlementName, RequestId};
use leasehold::domain::resource::ResourcePattern;

use crate::{AGENT, ALICE, BOB, BOT, Question, elevation, incident, noon, policy, refused, rule, shadow, who, world};

const REQUEST: &str = r#"principal, action == Leasehold::Action::"elevation:request", resource"#;
const AUTO: &str = r#"principal, action == Leasehold::Action::"elevation:auto_approve", resource"#;
const APPROVE: &str = r#"principal, action == Leasehold::Action::"elevation:approve", resource"#;

fn ruled(cedar: &str, question: &Question) -> Ruling {
    rule(&world([elevation(cedar)]), question)
}

fn step(groups: &[&str], quorum: u32) -> Step {
    Step { approvers: groups.iter().map(|group| (*group).to_owned()).collect(), quorum }
}

#[test]
fn with_no_policy_approvers_decide_and_without_them_nobody_does() {
    let catalogue = world([]);
    let ruling = rule(&catalogue, &Question::default());
    assert_eq!((ruling.verdict, ruling.steps.len()), (Verdict::Ask, 1));
    assert_eq!(ruling.determining, ["leasehold.eligible"]);
    assert_eq!(ruling.policy_digest, catalogue.policies.digest());
    let ruling = rule(&catalogue, &Question { entitlement: "purge", ..Question::default() });
    assert_eq!(ruling.verdict, Verdict::Deny);
    assert!(ruling.reasons[0].contains("names no approvers"), "{ruling:?}");
}

#[test]
fn who_is_not_eligible_cannot_be_made_so_by_a_policy() {
    let all = format!(
        "@id(\"a\") permit({REQUEST}) when {{ principal.kind == \"user\" }};
         @id(\"b\") permit({AUTO}) when {{ principal.kind == \"user\" }};"
    );
    let ruling = ruled(&all, &Question { principal: BOB, ..Question::default() });
    assert_eq!((ruling.verdict, ruling.determining), (Verdict::Deny, vec!["leasehold.not_eligible".to_owned()]));
    assert!(ruling.reasons[0].contains("names no group"), "{:?}", ruling.reasons);
}

#[test]
fn what_is_built_in_can_be_forbidden() {
    let forbid = format!(
        "@id(\"frozen\") @reason(\"the database is frozen\") \
         forbid({REQUEST} in Leasehold::Backend::\"db\") when {{ !context.emergency }};"
    );
    let ruling = ruled(&forbid, &Question::default());
    assert_eq!((ruling.verdict, ruling.determining), (Verdict::Deny, vec!["frozen".to_owned()]));
    assert_eq!(ruling.reasons, ["the database is frozen"]);
    // On that backend only, and only in that case.
    assert_eq!(ruled(&forbid, &Question { emergency: true, ..Question::default() }).verdict, Verdict::Ask);
    let other = Question { entitlement: "purge", ..Question::default() };
    assert_eq!(ruled(&forbid, &other).determining, ["leasehold.eligible"]);
}

#[test]
fn a_forbid_on_approval_at_once_leaves_it_to_approvers() {
    let cedar = format!(
        "@id(\"auto\") permit({AUTO}) when {{ context has task && context.task.verified }};
         @id(\"looked-at\") @reason(\"long ones are looked at\") forbid({AUTO}) when {{ context.ttl_s > 600 }};"
    );
    let short = Question { seconds: 600, task: incident(), ..Question::default() };
    assert_eq!(ruled(&cedar, &short).verdict, Verdict::Approve);
    assert_eq!(ruled(&cedar, &short).determining, ["leasehold.eligible", "auto"]);
    let long = ruled(&cedar, &Question { seconds: 601, ..short.clone() });
    assert_eq!((long.verdict, long.reasons), (Verdict::Ask, vec!["long ones are looked at".to_owned()]));
    assert_eq!(ruled(&cedar, &Question { task: None, ..short }).verdict, Verdict::Ask);
}

#[test]
fn what_cannot_be_evaluated_denies() {
    // Cedar passes over a policy that fails; a forbid that is passed over lets through.
    let overflow = "context.ttl_s * 9223372036854775807 > 0";
    for (what, cedar) in [
        ("a forbid", format!("@id(\"f\") forbid({REQUEST}) when {{ {overflow} }};")),
        ("a permit", format!("@id(\"f\") permit({REQUEST}) when {{ {overflow} && principal.kind == \"ci\" }};")),
        ("a sum", format!("@id(\"f\") forbid({REQUEST}) when {{ context.ttl_s + 9223372036854775807 > 0 }};")),
        ("a forbid on one backend", {
            format!("@id(\"f\") forbid({REQUEST} in Leasehold::Backend::\"db\") when {{ {overflow} }};")
        }),
    ] {
        let ruling = ruled(&cedar, &Question::default());
        assert_eq!(ruling.verdict, Verdict::Deny, "{what}: {ruling:?}");
        assert!(ruling.reasons.iter().any(|reason| reason.contains("a policy failed")), "{what}: {ruling:?}");
        assert!(ruling.reasons.iter().any(|reason| reason.contains("`f`")), "{what}: {ruling:?}");
    }
    // In the second question it is not approved, and approvers see it.
    let cedar = format!(
        "@id(\"auto\") permit({AUTO}) when {{ principal.kind == \"workload\" }};
         @id(\"f\") forbid({AUTO}) when {{ {overflow} }};"
    );
    assert_eq!(ruled(&cedar, &Question::default()).verdict, Verdict::Ask);
    // In shadow it does not count.
    let shadowed = shadow("p", "elevation", &format!("@id(\"f\") forbid({REQUEST}) when {{ {overflow} }};"));
    assert_eq!(rule(&world([shadowed]), &Question::default()).verdict, Verdict::Ask);
}

#[test]
fn shadow_counts_nothing_and_is_told() {
    let forbid = format!("@id(\"strict\") forbid({REQUEST}) when {{ context.ttl_s > 60 }};");
    let permit = format!("@id(\"lax\") @max_ttl(\"1m\") permit({AUTO}) when {{ context.ttl_s > 60 }};");
    let guardrail = "@id(\"g\") forbid(principal, action, resource) when { principal.kind == \"workload\" };";
    let plain = rule(&world([]), &Question::default());
    let catalogue =
        world([shadow("p", "elevation", &format!("{forbid}{permit}")), shadow("q", "guardrail", guardrail)]);
    let ruling = rule(&catalogue, &Question::default());
    assert_eq!(ruling.shadow, ["strict"]);
    let without = Ruling { shadow: Vec::new(), policy_digest: plain.policy_digest.clone(), ..ruling };
    assert_eq!(without, plain);
    // Enforced, each has its say.
    assert_eq!(ruled(&forbid, &Question::default()).verdict, Verdict::Deny);
    assert_eq!(ruled(&permit, &Question::default()).verdict, Verdict::Approve);
}

#[test]
fn the_tightest_of_several_wins() {
    let cedar = format!(
        "@id(\"a\") @max_ttl(\"20m\") @max_uses(\"5\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};
         @id(\"b\") @max_ttl(\"10m\") @max_uses(\"9\") @quorum(\"2\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};
         @id(\"c\") @require_approvers(\"owners,board\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};
         @id(\"d\") @require_approvers(\"privacy\") @quorum(\"3\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};
         @id(\"e\") @require_approvers(\"board, owners\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};
         @id(\"x\") @max_ttl(\"1s\") permit({REQUEST}) when {{ principal.kind == \"ci\" }};
         @id(\"auto\") @max_ttl(\"15m\") permit({AUTO}) when {{ context has task && context.task.verified }};"
    );
    let agent = Question { principal: AGENT, ..Question::default() };
    let ruling = ruled(&cedar, &agent);
    assert_eq!((ruling.verdict, ruling.ttl_max_seconds, ruling.uses_max), (Verdict::Ask, Some(600), Some(5)));
    // Every demand is met: a step each, those that are the same once, and the largest quorum for all.
    assert_eq!(ruling.steps, [step(&["oncall"], 3), step(&["owners", "board"], 3), step(&["privacy"], 3)]);
    assert_eq!(ruling.determining, ["a", "b", "c", "d", "e", "leasehold.eligible"]);
    // A policy that says nothing to this principal tightens nothing.
    let bot = ruled(&cedar, &Question::default());
    assert_eq!((bot.ttl_max_seconds, bot.uses_max, &bot.steps[..]), (None, None, &[step(&["oncall"], 1)][..]));
    // Those of the second question count too, when it was yes.
    let bot = ruled(&cedar, &Question { task: incident(), ..Question::default() });
    assert_eq!((bot.verdict, bot.ttl_max_seconds), (Verdict::Approve, Some(900)));
}

#[test]
fn demanded_approvers_are_asked_although_a_policy_would_approve() {
    let cedar = format!(
        "@id(\"auto\") permit({AUTO}) when {{ context has task && context.task.verified }};
         @id(\"privacy-first\") @require_approvers(\"privacy\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};"
    );
    let agent = Question { principal: AGENT, task: incident(), ..Question::default() };
    let ruling = ruled(&cedar, &agent);
    assert_eq!(ruling.verdict, Verdict::Ask);
    assert_eq!(ruling.steps, [step(&["oncall"], 1), step(&["privacy"], 1)]);
    assert!(ruling.reasons[0].contains("demands approvers"), "{:?}", ruling.reasons);
    // An entitlement without steps gets the one that is demanded.
    let purge = ruled(&cedar, &Question { entitlement: "purge", ..agent.clone() });
    assert_eq!((purge.verdict, &purge.steps[..]), (Verdict::Ask, &[step(&["privacy"], 1)][..]));
    // A quorum alone asks nobody: it is for the approvers there are.
    let quorum = format!(
        "@id(\"auto\") permit({AUTO}) when {{ context has task && context.task.verified }};
         @id(\"two\") @quorum(\"2\") permit({REQUEST}) when {{ principal.kind == \"agent\" }};"
    );
    assert_eq!(ruled(&quorum, &agent).verdict, Verdict::Approve);
    let asked = ruled(&quorum, &Question { task: None, ..agent });
    assert_eq!((asked.verdict, &asked.steps[..]), (Verdict::Ask, &[step(&["oncall"], 2)][..]));
    // Ruled again on its own steps, as at approval, it is the same.
    assert_eq!(ruled(&cedar, &Question { principal: AGENT, ..Question::default() }).steps.len(), 2);
}

#[test]
fn policies_see_what_is_asked() {
    for (condition, question, holds) in [
        ("context.now >= datetime(\"2026-11-23T12:00:00Z\")", Question::default(), true),
        ("context.now > datetime(\"2026-11-23T12:00:00Z\")", Question::default(), false),
        ("context.now.toTime() == duration(\"12h\")", Question::default(), true),
        ("context.ttl_s == 1800", Question::default(), true),
        ("context has uses && context.uses == 3", Question { uses: Some(3), ..Question::default() }, true),
        ("context has uses", Question::default(), false),
        ("context.actions.contains(\"pg.vacuum\")", Question::default(), true),
        ("context.resources.contains(\"**\")", Question::default(), true),
        ("context has arguments", Question::default(), false),
        (
            "context has arguments && context.arguments == \"sha256:0707070707070707070707070707070707070707070707070707070707070707\"",
            Question { arguments: Some(ArgumentDigest::from_bytes([7; 32])), ..Question::default() },
            true,
        ),
        ("context has task", Question::default(), false),
        (
            "context has task && context.task.source == \"pagerduty\" && context.task.ref == \"P1\"",
            Question { task: incident(), ..Question::default() },
            true,
        ),
        ("principal == Leasehold::Principal::\"spiffe://prod.example/bot\"", Question::default(), true),
        ("principal in Leasehold::Group::\"dba\"", Question::default(), true),
        ("principal in Leasehold::Group::\"oncall\"", Question::default(), false),
        ("principal has owner", Question::default(), false),
        (
            "principal has owner && principal.owner == \"https://idp.example#alice\"",
            Question { principal: AGENT, ..Question::default() },
            true,
        ),
        ("resource == Leasehold::Entitlement::\"maint\"", Question::default(), true),
        ("resource in Leasehold::Backend::\"mq\"", Question::default(), false),
    ] {
        let ruling = ruled(&format!("@id(\"f\") forbid({REQUEST}) when {{ {condition} }};"), &question);
        assert_eq!(ruling.verdict == Verdict::Deny, holds, "{condition}: {ruling:?}");
    }
    let mut closed = incident();
    closed.as_mut().unwrap().open = false;
    let cedar = format!("@id(\"f\") forbid({REQUEST}) unless {{ context has task && context.task.open }};");
    assert_eq!(ruled(&cedar, &Question { task: closed, ..Question::default() }).verdict, Verdict::Deny);
    assert_eq!(ruled(&cedar, &Question { task: incident(), ..Question::default() }).verdict, Verdict::Ask);
}

fn request(of: &str, by: &str) -> Request {
    Request {
        id: RequestId::new("req_1").unwrap(),
        requester: who(by),
        subject: who(by),
        on_behalf_of: Vec::new(),
        owner: None,
        entitlement: EntitlementName::new(of).unwrap(),
        backend: BackendName::new("db").unwrap(),
        scope: Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]),
        duration: std::time::Duration::from_secs(600),
        uses_max: None,
        renews: None,
        task: None,
        justification: String::new(),
        emergency: false,
        steps: Vec::new(),
        created_at: noon(),
        window_until: noon(),
    }
}

#[test]
fn policy_may_keep_an_approver_out() {
    let ask = |cedar: &str, approver: &str, by: &str, known: bool| {
        let catalogue = world([elevation(cedar)]);
        let (approver, requester) = (catalogue.know(&who(approver)).unwrap(), catalogue.know(&who(by)).unwrap());
        let people = if known { vec![requester.actor()] } else { Vec::new() };
        catalogue.policies.may_approve(approver.actor(), &request("maint", by), &people, noon())
    };
    let people = format!(
        "@id(\"people\") @reason(\"people approve\") forbid({APPROVE}) unless {{ principal.kind == \"user\" }};"
    );
    assert!(ask(&people, ALICE, BOT, true).allowed);
    let bot = ask(&people, AGENT, BOT, true);
    assert!(!bot.allowed);
    assert_eq!((bot.determining, bot.reasons), (vec!["people".to_owned()], vec!["people approve".to_owned()]));
    // What is known of the requester, the subject and the entitlement can be asked.
    for (condition, denied) in [
        ("resource.requester.kind == \"agent\"", true),
        ("resource.subject in Leasehold::Group::\"agents\"", true),
        ("resource.requester has owner && resource.requester.owner == \"https://idp.example#alice\"", true),
        ("principal in resource.entitlement.eligible", false),
        ("resource.ttl_s > 600", false),
        ("resource in Leasehold::Backend::\"db\"", true),
        ("resource.entitlement == Leasehold::Entitlement::\"maint\"", true),
    ] {
        let cedar = format!("@id(\"f\") forbid({APPROVE}) when {{ {condition} }};");
        assert_eq!(ask(&cedar, ALICE, AGENT, true).allowed, !denied, "{condition}");
    }
    // Of somebody who is known no more nothing can be said: it is a no.
    let cedar = format!("@id(\"f\") forbid({APPROVE}) when {{ resource.requester.kind == \"agent\" }};");
    let unknown = ask(&cedar, ALICE, AGENT, false);
    assert!(!unknown.allowed && unknown.failed, "{unknown:?}");
}

#[test]
fn admins_administer_and_others_what_they_are_permitted() {
    let cedar = "@id(\"lockers\") permit(principal in Leasehold::Group::\"oncall\", \
                 action == Leasehold::Action::\"admin:lock\", resource);
                 @id(\"frozen\") forbid(principal, action in Leasehold::Action::\"admin:any\", resource) \
                 when { context.now > datetime(\"2030-01-01\") };";
    let catalogue = world([policy("p", "admin", cedar)]);
    let may = |name: &str, action: &str, now| {
        let known = catalogue.know(&who(name)).unwrap();
        catalogue.policies.may_administer(known.actor(), action, now).allowed
    };
    let admin = "urn:leasehold:local#admin";
    for (name, action, expected) in [
        (admin, "admin:apply", true),
        (admin, "admin:audit", true),
        (admin, "admin:nothing", false),
        (admin, "admin:any", false),
        (ALICE, "admin:lock", true),
        (ALICE, "admin:apply", false),
        (BOT, "admin:lock", false),
    ] {
        assert_eq!(may(name, action, noon()), expected, "{name} {action}");
    }
    let late = leasehold::domain::time::Timestamp::parse("2030-06-01T00:00:00Z").unwrap();
    assert!(!may(admin, "admin:apply", late) && !may(ALICE, "admin:lock", late));
}

#[test]
fn guardrails_stop_calls_of_their_action_backend_and_class() {
    let cedar = "@id(\"no-drop\") @reason(\"nobody drops\") forbid(principal, action == Leasehold::Action::\"pg.drop\", resource);
         @id(\"agents-look\") forbid(principal, action in [Leasehold::Action::\"call:write\", Leasehold::Action::\"call:admin\"], resource)
           when { principal.kind == \"agent\" };
         @id(\"not-here\") forbid(principal, action, resource in Leasehold::Backend::\"mq\") when { principal.kind == \"workload\" };
         @id(\"one-thing\") forbid(principal, action, resource == Leasehold::Resource::\"vault\");";
    let catalogue = world([policy("p", "guardrail", cedar)]);
    let ask = |name: &str, backend: &str, action: &str, resource: &str| {
        let known = catalogue.know(&who(name)).unwrap();
        let (backend, action) = (BackendName::new(backend).unwrap(), ActionName::new(action).unwrap());
        let call = Call { backend: &backend, action: &action, resource };
        let answer = catalogue.policies.guardrails(known.actor(), call, noon());
        assert_eq!(answer.allowed, answer.determining.is_empty() && !answer.failed, "{answer:?}");
        answer.determining
    };
    let none: [&str; 0] = [];
    assert_eq!(ask(BOT, "db", "pg.vacuum", "x"), none);
    assert_eq!(ask(BOT, "db", "pg.drop", "x"), ["no-drop"]);
    assert_eq!(ask(AGENT, "db", "pg.drop", "x"), ["agents-look", "no-drop"]);
    assert_eq!(ask(AGENT, "db", "pg.read", "x"), none);
    assert_eq!(ask(AGENT, "db", "pg.read", "vault"), ["one-thing"]);
    assert_eq!(ask(BOT, "mq", "queue.purge", "x"), ["not-here"]);
    assert_eq!(ask(AGENT, "mq", "queue.purge", "x"), ["agents-look"]);
    // An action that the backend does not have is denied and no slice's.
    let known = catalogue.know(&who(BOT)).unwrap();
    let (backend, action) = (BackendName::new("mq").unwrap(), ActionName::new("pg.drop").unwrap());
    let call = Call { backend: &backend, action: &action, resource: "x" };
    assert!(!catalogue.policies.guardrails(known.actor(), call, noon()).allowed);
}

#[test]
fn an_action_of_two_classes_is_of_both() {
    let backend = |name: &str, class: &str| {
        crate::document("Backend", name, serde_json::json!({"actions": [{"name": "thing.do", "class": class}]}))
    };
    for class in ["read", "admin"] {
        let cedar = format!(
            "@id(\"f\") forbid(principal, action in Leasehold::Action::\"call:{class}\", resource) when {{ principal.kind == \"workload\" }};"
        );
        let catalogue = world([backend("one", "read"), backend("two", "admin"), policy("p", "guardrail", &cedar)]);
        let known = catalogue.know(&who(BOT)).unwrap();
        let (backend, action) = (BackendName::new("one").unwrap(), ActionName::new("thing.do").unwrap());
        let call = Call { backend: &backend, action: &action, resource: "x" };
        assert_eq!(catalogue.policies.guardrails(known.actor(), call, noon()).determining, ["f"], "{class}");
    }
}

#[test]
fn a_group_that_is_named_twice_counts_once() {
    let twin = serde_json::json!({"principal": "https://idp.example#twin", "type": "ci", "groups": ["dba", "dba"]});
    let cedar = format!(
        "@id(\"a\") permit(principal in Leasehold::Group::\"dba\", {}) when {{ context.ttl_s > 1 }};",
        &AUTO["principal, ".len()..]
    );
    let catalogue = world([crate::document("Principal", "twin", twin), elevation(&cedar)]);
    let ruling = rule(&catalogue, &Question { principal: "https://idp.example#twin", ..Question::default() });
    assert_eq!(
        (ruling.verdict, ruling.determining),
        (Verdict::Approve, vec!["leasehold.eligible".to_owned(), "a".to_owned()])
    );
}

#[test]
fn a_ruling_about_what_is_not_declared_denies() {
    let catalogue = world([]);
    let known = catalogue.know(&who(BOT)).unwrap();
    let name = EntitlementName::new("gone").unwrap();
    let asked = leasehold::control::route::Asked {
        entitlement: &name,
        actions: &[],
        resources: &[],
        arguments: None,
        duration: std::time::Duration::from_secs(1),
        uses: None,
        emergency: false,
        task: None,
    };
    assert_eq!(catalogue.policies.rule(known.actor(), asked, &[], noon()).verdict, Verdict::Deny);
    assert!(catalogue.policies.told("leasehold.eligible").unwrap().text.contains("resource.eligible"));
    assert!(catalogue.policies.told("nobody").is_none());
    refused([elevation("@id(\"x\")")], &["Policy `p`"]);
}
