//! What Cedar is told of a request: who asks, for what, in which circumstances.

use std::collections::HashMap;
use std::sync::LazyLock;

use cedar_policy::{Entity, EntityUid, RestrictedExpression as Expression};

use super::{Actor, Asked};
use crate::domain::elevation::Request;
use crate::domain::time::Timestamp;
use crate::guardrail::words::{datetime, text, wrong};

pub(super) use crate::guardrail::words::{Word, actor, moment, uid, with};
pub(super) use cedar_policy::Context;

/// The actions that are asked about for every request, made once.
pub(super) struct Actions {
    pub(super) request: EntityUid,
    pub(super) auto_approve: EntityUid,
    pub(super) approve: EntityUid,
}

pub(super) static ACTIONS: LazyLock<Actions> = LazyLock::new(|| Actions {
    request: uid(Word::Action, "elevation:request"),
    auto_approve: uid(Word::Action, "elevation:auto_approve"),
    approve: uid(Word::Action, "elevation:approve"),
});

fn long(number: impl TryInto<i64>) -> Expression {
    Expression::new_long(number.try_into().unwrap_or(i64::MAX))
}

/// All that the principal and the resource of a question are or are in; groups are in no group.
pub(super) fn within(actor: Actor<'_>, principal: &EntityUid, resource: &[&EntityUid]) -> Vec<EntityUid> {
    let groups = actor.groups.iter().map(|group| uid(Word::Group, group));
    groups.chain([principal.clone()]).chain(resource.iter().map(|uid| (*uid).clone())).collect()
}

/// An entitlement: its backend is above it.
pub(super) fn entitlement(name: &EntityUid, backend: &EntityUid, eligible: &[String]) -> Result<Entity, String> {
    let groups = eligible.iter().map(|group| Expression::new_entity_uid(uid(Word::Group, group)));
    let attributes = HashMap::from([("eligible".to_owned(), Expression::new_set(groups))]);
    Entity::new(name.clone(), attributes, [backend.clone()].into()).map_err(wrong)
}

/// A request that approvers look at.
pub(super) fn request(request: &Request) -> Result<(EntityUid, Entity), String> {
    let name = uid(Word::Request, request.id.as_str());
    let named = |word, id: &str| Expression::new_entity_uid(uid(word, id));
    let attributes = HashMap::from([
        ("entitlement".to_owned(), named(Word::Entitlement, request.entitlement.as_str())),
        ("requester".to_owned(), named(Word::Principal, request.requester.as_str())),
        ("subject".to_owned(), named(Word::Principal, request.subject.as_str())),
        ("ttl_s".to_owned(), long(request.duration.as_secs())),
        ("emergency".to_owned(), Expression::new_bool(request.emergency)),
    ]);
    let backend = uid(Word::Backend, request.backend.as_str());
    let entity = Entity::new(name.clone(), attributes, [backend].into()).map_err(wrong)?;
    Ok((name, entity))
}

/// The circumstances of a request.
pub(super) fn elevation(asked: Asked<'_>, now: Timestamp) -> Result<Context, String> {
    let set = |texts: &[String]| Expression::new_set(texts.iter().map(|one| text(one)));
    let mut pairs = vec![
        datetime(now),
        ("ttl_s".to_owned(), long(asked.duration.as_secs())),
        ("actions".to_owned(), set(asked.actions)),
        ("resources".to_owned(), set(asked.resources)),
        ("emergency".to_owned(), Expression::new_bool(asked.emergency)),
    ];
    if let Some(uses) = asked.uses {
        pairs.push(("uses".to_owned(), long(uses)));
    }
    if let Some(arguments) = asked.arguments {
        pairs.push(("arguments".to_owned(), text(&arguments.to_string())));
    }
    if let Some(task) = asked.task {
        let (source, reference) = task.reference.as_str().split_once(':').unwrap_or_default();
        let record = Expression::new_record([
            ("source".to_owned(), text(source)),
            ("ref".to_owned(), text(reference)),
            ("kind".to_owned(), text(&task.kind)),
            ("open".to_owned(), Expression::new_bool(task.is_open(now))),
            ("verified".to_owned(), Expression::new_bool(task.verified)),
        ]);
        pairs.push(("task".to_owned(), record.map_err(wrong)?));
    }
    Context::from_pairs(pairs).map_err(wrong)
}
