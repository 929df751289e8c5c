//! What Cedar is told, whoever asks it: the types of things, somebody, a moment. Built with its own constructors, since JSON
//! costs more than the evaluation.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression as Expression,
};

use crate::domain::principal::{Principal, PrincipalKind};
use crate::domain::time::Timestamp;

/// The types of what policies speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
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

/// The name of a thing.
pub(crate) fn uid(word: Word, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(TYPES[word as usize].clone(), EntityId::new(id))
}

/// The word for the type of a thing, where it is one of ours.
pub(crate) fn word(uid: &EntityUid) -> Option<Word> {
    let place = TYPES.iter().position(|name| name == uid.type_name())?;
    Some(WORDS[place].0)
}

/// Why a question could not be put.
pub(crate) fn wrong(error: impl Display) -> String {
    format!("policy could not be asked: {error}")
}

pub(crate) fn text(text: &str) -> Expression {
    Expression::new_string(text.to_owned())
}

/// These things and those that were made before.
pub(crate) fn with(known: &Entities, more: impl IntoIterator<Item = Entity>) -> Result<Entities, String> {
    known.clone().add_entities(more, None).map_err(wrong)
}

/// Somebody as policy sees them.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// What they are.
    pub kind: PrincipalKind,
    /// The groups they are in.
    pub groups: &'a [String],
    /// Who answers for them.
    pub owner: Option<&'a str>,
}

/// Somebody.
pub(crate) fn actor(principal: &EntityUid, actor: Actor<'_>) -> Result<Entity, String> {
    let mut attributes = HashMap::from([("kind".to_owned(), text(actor.kind.as_str()))]);
    if let Some(owner) = actor.owner {
        attributes.insert("owner".to_owned(), text(owner));
    }
    let groups = actor.groups.iter().map(|group| uid(Word::Group, group)).collect();
    Entity::new(principal.clone(), attributes, groups).map_err(wrong)
}

/// The moment as an attribute of a context. Whole seconds: what is asked twice within one is answered the same.
pub(crate) fn datetime(now: Timestamp) -> (String, Expression) {
    let text = now.to_string();
    let whole = text.split('.').next().unwrap_or_default().trim_end_matches('Z');
    ("now".to_owned(), Expression::new_datetime(format!("{whole}Z")))
}

/// The circumstances of a question that has none of its own.
pub(crate) fn moment(now: Timestamp) -> Result<Context, String> {
    Context::from_pairs([datetime(now)]).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_read_as_it_is_written() {
        for (one, _) in WORDS {
            let made = uid(one, "x \"y\"");
            assert_eq!(word(&made), Some(one));
            assert_eq!(made.type_name().to_string(), format!("Leasehold::{one:?}"));
            assert_eq!(made.id().unescaped(), "x \"y\"");
        }
        assert_eq!(word(&"Other::\"x\"".parse().unwrap()), None);
    }
}
