//! Named operations, and which of them a scope covers.

use std::fmt;
use std::sync::Arc;

use super::arguments::ArgumentDigest;
use super::id::{ActionName, NameError};
use super::resource::{Resource, ResourcePattern, segment_matches};

/// How much an action can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionClass {
    /// Looks.
    Read,
    /// Changes data.
    Write,
    /// Changes who may do what, or the service itself.
    Admin,
}

impl ActionClass {
    /// The class as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for ActionClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which actions a grant, a baseline or a lock is about: a name, or a name with `*` for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionPattern(Arc<str>);

impl ActionPattern {
    /// Reads a pattern such as `queue.delete`, `queue.*` or `*`.
    ///
    /// # Errors
    /// [`NameError`] when what remains without its `*` is not part of an action name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let bare = text.replace('*', "x");
        ActionName::new(&bare)
            .map_err(|_| NameError::new("action pattern", text, "use letters, digits, `.`, `_`, `-` and `*`"))?;
        Ok(Self(Arc::from(text)))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the named action is meant.
    pub fn covers(&self, action: &ActionName) -> bool {
        *self.0 == *action.as_str() || segment_matches(self.0.as_bytes(), action.as_str().as_bytes())
    }

    /// Whether every action this covers is covered by `other` too. Errs on the side of `false`.
    pub fn is_within(&self, other: &Self) -> bool {
        // Read as data, a `*` of ours can only be matched by a `*` of theirs.
        segment_matches(other.0.as_bytes(), self.0.as_bytes())
    }
}

super::as_text!(ActionPattern, ActionPattern::new);

impl fmt::Display for ActionPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which actions on which resources: any of the actions on any of the resources, and where it is bound to arguments, the
/// one call that has these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    actions: Box<[ActionPattern]>,
    resources: Box<[ResourcePattern]>,
    /// Few scopes have it, and what reads a scope without knowing of it must not read a wider one: an unknown field of a
    /// scope is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arguments: Option<Box<ArgumentDigest>>,
}

impl Scope {
    /// A scope of these actions on these resources; an empty list covers nothing.
    pub fn new(actions: Vec<ActionPattern>, resources: Vec<ResourcePattern>) -> Self {
        Self { actions: actions.into(), resources: resources.into(), arguments: None }
    }

    /// The same, bound to the one call of that digest; without one as it was.
    #[must_use]
    pub fn bound_to(self, arguments: Option<ArgumentDigest>) -> Self {
        Self { arguments: arguments.map(Box::new).or(self.arguments), ..self }
    }

    /// The actions.
    pub fn actions(&self) -> &[ActionPattern] {
        &self.actions
    }

    /// The resources.
    pub fn resources(&self) -> &[ResourcePattern] {
        &self.resources
    }

    /// The only call that it is about, where it is bound to one.
    pub fn arguments(&self) -> Option<&ArgumentDigest> {
        self.arguments.as_deref()
    }

    /// Whether this action on everything that `resource` reaches is inside this scope, for some arguments: whoever lets a
    /// call through asks [`Scope::arguments`] too.
    pub fn covers(&self, action: &ActionName, resource: &Resource) -> bool {
        self.actions.iter().any(|a| a.covers(action)) && self.resources.iter().any(|r| r.covers(resource))
    }

    /// Whether everything in this scope is in `other` too. Errs on the side of `false`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.actions.iter().all(|a| other.actions.iter().any(|o| a.is_within(o)))
            && self.resources.iter().all(|r| other.resources.iter().any(|o| r.is_within(o)))
            && (other.arguments.is_none() || self.arguments == other.arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn action(text: &str) -> ActionName {
        ActionName::new(text).expect("a valid name")
    }

    fn scope(actions: &[&str], resources: &[&str]) -> Scope {
        Scope::new(
            actions.iter().map(|a| ActionPattern::new(a).expect("an action")).collect(),
            resources.iter().map(|r| ResourcePattern::new(r).expect("a resource")).collect(),
        )
    }

    #[test]
    fn an_action_pattern_covers_names() {
        for (p, a, expected) in [
            ("queue.delete", "queue.delete", true),
            ("queue.delete", "queue.deleteall", false),
            ("queue.*", "queue.delete", true),
            ("queue.*", "queues.delete", false),
            ("*", "anything", true),
            ("*.read", "queue.read", true),
        ] {
            assert_eq!(ActionPattern::new(p).expect("pattern").covers(&action(a)), expected, "{p} covers {a}");
        }
        for bad in ["", "a b", "a/b", "{a}"] {
            assert!(ActionPattern::new(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn a_scope_needs_both_halves() {
        let s = scope(&["queue.delete"], &["vhosts/prod/queues/orders"]);
        assert!(s.covers(&action("queue.delete"), &Resource::exact("vhosts/prod/queues/orders")));
        assert!(!s.covers(&action("queue.delete"), &Resource::exact("vhosts/prod/queues/other")));
        assert!(!s.covers(&action("queue.purge"), &Resource::exact("vhosts/prod/queues/orders")));
        assert!(!scope(&[], &["**"]).covers(&action("x"), &Resource::exact("y")));
        assert!(!scope(&["*"], &[]).covers(&action("x"), &Resource::exact("y")));
    }

    #[test]
    fn narrowing_is_seen() {
        let wide = scope(&["queue.*"], &["vhosts/prod/**"]);
        assert!(scope(&["queue.delete"], &["vhosts/prod/queues/orders"]).is_within(&wide));
        assert!(!wide.is_within(&scope(&["queue.delete"], &["vhosts/prod/**"])));
        assert!(!scope(&["*"], &["vhosts/prod/x"]).is_within(&wide));
    }

    #[test]
    fn a_scope_bound_to_arguments_is_within_one_that_is_not_and_never_the_other_way() {
        let digest = |byte| Some(ArgumentDigest::from_bytes([byte; 32]));
        let free = scope(&["queue.*"], &["vhosts/prod/**"]);
        let (bound, other) = (free.clone().bound_to(digest(1)), free.clone().bound_to(digest(2)));
        assert!(bound.is_within(&free) && bound.is_within(&bound));
        assert!(!free.is_within(&bound) && !other.is_within(&bound));
        assert_eq!(bound.clone().bound_to(None), bound);
    }

    #[test]
    fn a_scope_reads_back_and_one_with_something_unknown_in_it_is_none() {
        let free = scope(&["queue.*"], &["vhosts/prod/**"]);
        let bound = free.clone().bound_to(Some(ArgumentDigest::from_bytes([7; 32])));
        for scope in [&free, &bound] {
            let text = serde_json::to_string(scope).expect("JSON");
            assert_eq!(text.contains("arguments"), scope.arguments().is_some());
            assert_eq!(serde_json::from_str::<Scope>(&text).as_ref().ok(), Some(scope));
            assert!(
                serde_json::from_str::<Scope>(&text.replace("\"resources\"", "\"unknown\":1,\"resources\"")).is_err()
            );
        }
    }

    proptest! {
        #[test]
        fn within_means_no_more(a in "[a.*]{1,4}", b in "[a.*]{1,4}", name in "[a.]{1,5}") {
            if let (Ok(a), Ok(b)) = (ActionPattern::new(&a), ActionPattern::new(&b))
                && a.is_within(&b) && a.covers(&action(&name)) {
                    prop_assert!(b.covers(&action(&name)), "{a} within {b} but not at {name}");
                }
        }
    }
}
