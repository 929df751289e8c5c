//! What we tell Cedar is what the schema says, since it is not validated each time; the rest is tested in `tests/policy`.

use std::time::Duration;

use cedar_policy::{Entities, Entity, EntityUid, Schema};

use proptest::prelude::*;

use super::question::{ACTIONS, Context, Word, uid};
use super::*;
use crate::control::document::{Class, PolicySpec};
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::entitlement::{ArgumentRule, Entitlement, TaskRule};
use crate::domain::id::{RequestId, TaskRef};
use crate::domain::principal::{Principal, PrincipalKind};
use crate::domain::resource::ResourcePattern;
use crate::guardrail::Backends;

fn backends() -> Backends {
    let action = |name, class| (ActionName::new(name).unwrap(), class);
    let actions = vec![action("a.read", Class::Read), action("a.drop", Class::Admin)];
    [(BackendName::new("b").unwrap(), actions)].into()
}

#[track_caller]
fn conforms(target: Target, asked: (&EntityUid, &EntityUid, &EntityUid), context: Context, entities: Vec<Entity>) {
    let (schema, _) = Schema::from_cedarschema_str(&schema::text(target, &backends())).unwrap();
    let (principal, action, resource) = asked;
    let request =
        cedar_policy::Request::new(principal.clone(), action.clone(), resource.clone(), context, Some(&schema));
    assert!(request.is_ok(), "{:?}", request.err().map(|error| error.to_string()));
    let entities = Entities::from_entities(entities, Some(&schema));
    assert!(entities.is_ok(), "{:?}", entities.err().map(|error| error.to_string()));
}

fn request(entitlement: &str, backend: &str) -> Request {
    let person = Principal::parse("https://idp.test#y").unwrap();
    Request {
        id: RequestId::new("req_1").unwrap(),
        requester: person.clone(),
        subject: person,
        on_behalf_of: Vec::new(),
        owner: None,
        entitlement: EntitlementName::new(entitlement).unwrap(),
        backend: BackendName::new(backend).unwrap(),
        scope: Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]),
        duration: Duration::from_secs(1),
        uses_max: None,
        renews: None,
        task: None,
        justification: String::new(),
        emergency: false,
        steps: Vec::new(),
        created_at: Timestamp::from_seconds(0),
        window_until: Timestamp::from_seconds(1),
    }
}

#[test]
fn what_is_asked_fits_the_schema() {
    let now = Timestamp::from_micros(1_767_614_400_123_456);
    let person = Principal::parse("https://idp.test#x").unwrap();
    let groups = ["g".to_owned()];
    let principal = uid(Word::Principal, person.as_str());
    let entitlement = uid(Word::Entitlement, "e");
    let backend = uid(Word::Backend, "b");
    let name = EntitlementName::new("e").unwrap();
    let task = Task::mentioned(TaskRef::new("jira:A-1").unwrap(), now);
    let texts = ["x".to_owned(), "y".to_owned()];
    for (owner, uses, task, texts) in
        [(None, None, None, &texts[..0]), (Some("https://idp.test#o"), Some(3), Some(&task), &texts[..])]
    {
        let actor = Actor { principal: &person, kind: PrincipalKind::Agent, groups: &groups, owner };
        let arguments = uses.map(|_| ArgumentDigest::from_bytes([7; 32]));
        let asked = Asked {
            entitlement: &name,
            actions: texts,
            resources: texts,
            arguments: arguments.as_ref(),
            duration: Duration::from_secs(u64::MAX),
            uses,
            emergency: true,
            task,
        };
        let own = question::actor(&principal, actor).unwrap();
        for action in [&ACTIONS.request, &ACTIONS.auto_approve] {
            let entities = vec![own.clone(), question::entitlement(&entitlement, &backend, &groups).unwrap()];
            let context = question::elevation(asked, now).unwrap();
            conforms(Target::Elevation, (&principal, action, &entitlement), context, entities);
        }
        let (asked, entity) = question::request(&request("e", "b")).unwrap();
        let moment = || question::moment(now).unwrap();
        conforms(Target::Elevation, (&principal, &ACTIONS.approve, &asked), moment(), vec![own.clone(), entity]);
        let system = uid(Word::System, "leasehold");
        for action in schema::ADMIN_ACTIONS {
            let action = uid(Word::Action, action);
            conforms(Target::Admin, (&principal, &action, &system), moment(), vec![own.clone()]);
        }
        let resource = uid(Word::Resource, "r/1");
        let entity = Entity::new_no_attrs(resource.clone(), [backend.clone()].into());
        let action = uid(Word::Action, "a.drop");
        conforms(Target::Guardrail, (&principal, &action, &resource), moment(), vec![own, entity]);
    }
}

const POOL: [&str; 19] = [
    r#"forbid(principal == Leasehold::Principal::"https://idp.test#x", action, resource) when { principal.kind == "agent" };"#,
    r#"forbid(principal == Leasehold::Principal::"https://idp.test#y", action, resource);"#,
    r#"forbid(principal in Leasehold::Group::"g", action == Leasehold::Action::"elevation:auto_approve", resource);"#,
    r#"forbid(principal in Leasehold::Group::"h", action, resource);"#,
    r#"permit(principal is Leasehold::Principal in Leasehold::Group::"g", action == Leasehold::Action::"elevation:auto_approve", resource in Leasehold::Backend::"c");"#,
    r#"forbid(principal, action, resource) when { context has ttl_s && context.ttl_s > 600 };"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:request", resource) when { context.ttl_s > 600 };"#,
    r#"forbid(principal, action, resource in Leasehold::Backend::"b");"#,
    r#"forbid(principal, action, resource in Leasehold::Backend::"c");"#,
    r#"forbid(principal, action, resource is Leasehold::Entitlement in Leasehold::Backend::"b") when { principal.kind == "ci" };"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:request", resource == Leasehold::Entitlement::"e");"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:request", resource == Leasehold::Entitlement::"f");"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:request", resource) when { context.ttl_s * 9223372036854775807 > 0 };"#,
    r#"permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource in Leasehold::Backend::"b");"#,
    r#"permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource in Leasehold::Entitlement::"e");"#,
    r#"permit(principal, action in [Leasehold::Action::"elevation:request", Leasehold::Action::"elevation:auto_approve"], resource is Leasehold::Entitlement) when { context.emergency };"#,
    r#"permit(principal in Leasehold::Group::"g", action, resource) when { principal.kind == "agent" };"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:approve", resource == Leasehold::Request::"req_1");"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:approve", resource in Leasehold::Backend::"b") when { principal.kind == "ci" };"#,
];

fn loaded(chosen: &[usize]) -> (Policies, cedar_policy::PolicySet) {
    let actions = vec![(ActionName::new("a.read").unwrap(), Class::Read)];
    let backends = ["b", "c"].map(|name| (BackendName::new(name).unwrap(), actions.clone())).into();
    let entitlement = |name: &str, backend: &str| {
        let name = EntitlementName::new(name).unwrap();
        let own = Entitlement {
            name: name.clone(),
            backend: BackendName::new(backend).unwrap(),
            scope: Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]),
            eligible: vec!["g".to_owned()],
            duration_max: Duration::from_secs(3_600),
            idle_timeout: None,
            uses_max: None,
            steps: Vec::new(),
            window: Duration::from_secs(60),
            justification_required: false,
            task: TaskRule::Optional,
            arguments: ArgumentRule::Optional,
            concurrent_max: 1,
            emergency: false,
        };
        (name, own)
    };
    let texts: Vec<String> = chosen.iter().map(|n| format!("@id(\"p{n}\") {}", POOL[*n])).collect();
    let spec = |cedar| PolicySpec { target: Target::Elevation, mode: Mode::Enforce, cedar };
    let documents = texts.iter().enumerate().map(|(n, text)| (format!("d{n}"), spec(text.clone()))).collect();
    let policies = load(&documents, &backends, &[entitlement("e", "b"), entitlement("f", "c")].into()).unwrap();
    let mut whole = cedar_policy::PolicySet::new();
    for text in texts.iter().map(String::as_str).chain([load::BUILTIN]) {
        let set: cedar_policy::PolicySet = text.parse().unwrap();
        for policy in set.policies() {
            whole.add(policy.new_id(PolicyId::new(policy.annotation("id").unwrap()))).unwrap();
        }
    }
    (policies, whole)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Slicing changes what a question costs and never its answer: Cedar says the same of all policies in one set.
    #[test]
    fn slices_say_what_the_whole_says(
        chosen in prop::sample::subsequence((0..POOL.len()).collect::<Vec<_>>(), 0..POOL.len()),
        agent in any::<bool>(), member in any::<bool>(), emergency in any::<bool>(), seconds in 1u64..1_200,
    ) {
        let (policies, whole) = loaded(&chosen);
        let now = Timestamp::from_seconds(1_767_614_400);
        let person = Principal::parse("https://idp.test#x").unwrap();
        let groups = if member { vec!["g".to_owned()] } else { Vec::new() };
        let kind = if agent { PrincipalKind::Agent } else { PrincipalKind::Ci };
        let actor = Actor { principal: &person, kind, groups: &groups, owner: None };
        let principal = uid(Word::Principal, person.as_str());
        let own = question::actor(&principal, actor).unwrap();
        for (name, backend) in [("e", "b"), ("f", "c")] {
            let entitlement = EntitlementName::new(name).unwrap();
            let duration = Duration::from_secs(seconds);
            let asked = Asked {
                entitlement: &entitlement, actions: &[], resources: &[], arguments: None, duration, uses: None, emergency, task: None,
            };
            let prepared = &policies.entitlements[&entitlement];
            let entities = question::with(&prepared.entities, [own.clone()]).unwrap();
            let context = question::elevation(asked, now).unwrap();
            let moment = question::moment(now).unwrap();
            let mut request = request(name, backend);
            request.requester = person.clone();
            let (approved, entity) = question::request(&request).unwrap();
            let more = question::with(&entities, [entity]).unwrap();
            for (question, action, resource, context, entities) in [
                (&policies.request, &ACTIONS.request, &prepared.uid, &context, &entities),
                (&policies.auto_approve, &ACTIONS.auto_approve, &prepared.uid, &context, &entities),
                (&policies.approve, &ACTIONS.approve, &approved, &moment, &more),
            ] {
                let within = question::within(actor, &principal, &[resource, &prepared.backend]);
                let answer = policies.ask(question, (&principal, action, resource), context, entities, &within).unwrap();
                let question =
                    cedar_policy::Request::new(principal.clone(), action.clone(), resource.clone(), context.clone(), None);
                let said = Authorizer::new().is_authorized(&question.unwrap(), &whole, entities);
                let mut determining: Vec<String> = said.diagnostics().reason().map(ToString::to_string).collect();
                determining.sort();
                let failed = said.diagnostics().errors().count() > 0;
                prop_assert_eq!(&answer.determining, &determining, "{:?} {}", chosen, action);
                prop_assert_eq!(answer.failed, failed, "{:?} {}", chosen, action);
                let allowed = said.decision() == cedar_policy::Decision::Allow && !failed;
                prop_assert_eq!(answer.allowed, allowed, "{:?} {}", chosen, action);
            }
            let ruled = policies.may_approve(actor, &request, &[], now);
            prop_assert_eq!(ruled.determining.contains(&"p17".to_owned()), chosen.contains(&17));
        }
    }
}
