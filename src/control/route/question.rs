//! What Cedar is told: who asks, for what, in which circumstances. Built with its own constructors, since JSON costs more
//! than the evaluation.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::LazyLock;

use cedar_policy::{Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression as Expression};

use super::{Actor, Asked};
use crate::domain::elevation::Request;
use crate::domain::time::Timestamp;

pub(super) use cedar_policy::Context;

/// The types of what policies speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Action,
    Backend,
    Entitlement,
    Group,
    Principal,
    Request,
    Resource,
    System,
}

const WORDS: [(Word, &str); 8] = [
    (Word::Action, "Leasehold::Action"),
    (Word::Backend, "Leasehold::Backend"),
    (Word::Entitlement, "Leasehold::Entitlement"),
    (Word::Group, "Leasehold::Group"),
    (Word::Principal, "Leasehold::Principal"),
    (Word::Request, "Leasehold::Request"),
    (Word::Resource, "Leasehold::Resource"),
    (Word::System, "Leasehold::System"),
];

static TYPES: LazyLock<[EntityTypeName; 8]> =
    LazyLock::new(|| WORDS.map(|(_, name)| name.parse().expect("each is a path of identifiers")));

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

/// The name of a thing.
pub(super) fn uid(word: Word, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(TYPES[word as usize].clone(), EntityId::new(id))
}

/// The word for the type of a thing, where it is one of ours.
pub(super) fn word(uid: &EntityUid) -> Option<Word> {
    let place = TYPES.iter().position(|name| name == uid.type_name())?;
    Some(WORDS[place].0)
}

fn wrong(error: impl Display) -> String {
    format!("policy could not be asked: {error}")
}

fn long(number: impl TryInto<i64>) -> Expression {
    Expression::new_long(number.try_into().unwrap_or(i64::MAX))
}

fn text(text: &str) -> Expression {
    Expression::new_string(text.to_owned())
}

/// These things and those that were made before.
pub(super) fn with(known: &Entities, more: impl IntoIterator<Item = Entity>) -> Result<Entities, String> {
    known.clone().add_entities(more, None).map_err(wrong)
}

/// Somebody.
pub(super) fn actor(principal: &EntityUid, actor: Actor<'_>) -> Result<Entity, String> {
    let mut attributes = HashMap::from([("kind".to_owned(), text(actor.kind.as_str()))]);
    if let Some(owner) = actor.owner {
        attributes.insert("owner".to_owned(), text(owner));
    }
    let groups = actor.groups.iter().map(|group| uid(Word::Group, group)).collect();
    Entity::new(principal.clone(), attributes, groups).map_err(wrong)
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

fn datetime(now: Timestamp) -> (String, Expression) {
    let text = now.to_string();
    // Cedar's datetime has milliseconds at most.
    let whole = text.split('.').next().unwrap_or_default().trim_end_matches('Z');
    ("now".to_owned(), Expression::new_datetime(format!("{whole}Z")))
}

/// The circumstances of a question that has none of its own.
pub(super) fn moment(now: Timestamp) -> Result<Context, String> {
    Context::from_pairs([datetime(now)]).map_err(wrong)
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
