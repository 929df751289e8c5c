//! What we tell Cedar is what the schema says, since it is not validated each time; the rest is tested in `tests/policy`.

use std::time::Duration;

use cedar_policy::{Entities, Entity, EntityUid, Schema};

use super::question::{ACTIONS, Context, Word, uid, word};
use super::*;
use crate::control::document::Class;
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::id::{RequestId, TaskRef};
use crate::domain::resource::ResourcePattern;

fn backends() -> schema::Backends {
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
        let asked = Asked {
            entitlement: &name,
            actions: texts,
            resources: texts,
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
        let request = Request {
            id: RequestId::new("req_1").unwrap(),
            requester: person.clone(),
            subject: person.clone(),
            on_behalf_of: Vec::new(),
            owner: None,
            entitlement: name.clone(),
            backend: BackendName::new("b").unwrap(),
            scope: Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]),
            duration: Duration::from_secs(1),
            uses_max: None,
            renews: None,
            task: None,
            justification: String::new(),
            emergency: false,
            steps: Vec::new(),
            created_at: now,
            window_until: now,
        };
        let (asked, entity) = question::request(&request).unwrap();
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

#[test]
fn each_word_is_read_as_it_is_written() {
    let words = [
        Word::Action,
        Word::Backend,
        Word::Entitlement,
        Word::Group,
        Word::Principal,
        Word::Request,
        Word::Resource,
        Word::System,
    ];
    for one in words {
        let made = uid(one, "x \"y\"");
        assert_eq!(word(&made), Some(one));
        assert_eq!(made.type_name().to_string(), format!("Leasehold::{one:?}"));
        assert_eq!(made.id().unescaped(), "x \"y\"");
    }
    assert_eq!(word(&"Other::\"x\"".parse().unwrap()), None);
}
