//! What may be asked for, and how far what is asked for can reach.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::Scope;
use super::grant::Grant;
use super::id::{BackendName, EntitlementName};
use super::time::{Timestamp, Window};

/// Longest life of any grant.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);

/// One step of an approval: somebody of these groups must agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Groups; whoever is in one of them may agree.
    pub approvers: Vec<String>,
    /// How many different approvers.
    pub quorum: u32,
}

impl Step {
    /// Whether somebody in these groups may agree.
    pub fn wants(&self, groups: &[String]) -> bool {
        self.approvers.iter().any(|wanted| groups.contains(wanted))
    }
}

/// What a request must say of its task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskRule {
    /// It may name one.
    #[default]
    Optional,
    /// It must name one that is open.
    Required,
    /// It must name one that is open, and the task's source must have said so.
    Verified,
}

/// What a request must say of the arguments of its call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArgumentRule {
    /// It may be bound to the digest of one call.
    #[default]
    Optional,
    /// It must be.
    Required,
}

/// What may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlement {
    /// Its name.
    pub name: EntitlementName,
    /// On which backend.
    pub backend: BackendName,
    /// Which actions on which resources.
    pub scope: Scope,
    /// Groups whose members may ask.
    pub eligible: Vec<String>,
    /// Longest life of a grant.
    pub duration_max: Duration,
    /// Most calls of a grant.
    pub uses_max: Option<u32>,
    /// How long a grant may go unused.
    pub idle_timeout: Option<Duration>,
    /// Who must agree, in order; without a step policy decides alone.
    pub steps: Vec<Step>,
    /// For how long it waits for approvers.
    pub window: Duration,
    /// Whether the request must say why.
    pub justification_required: bool,
    /// What it must say of its task.
    pub task: TaskRule,
    /// Whether it must be for one exact call.
    pub arguments: ArgumentRule,
    /// How many active grants and pending requests a principal can have of it.
    pub concurrent_max: u32,
    /// Whether it is for emergencies: what it grants is recorded as such and reviewed afterwards.
    pub emergency: bool,
}

/// Everything that limits how long a grant lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// What was asked.
    pub requested: Duration,
    /// What the entitlement allows.
    pub entitlement: Duration,
    /// What the policies that determined the ruling allow.
    pub policy: Option<Duration>,
    /// When the task is known to end.
    pub task_until: Option<Timestamp>,
    /// Until when a grant can last that renews another.
    pub chain_until: Option<Timestamp>,
}

impl Bounds {
    /// When a grant that begins at `now` ends: the earliest of all bounds. The only place where that is computed.
    pub fn expires_at(self, now: Timestamp) -> Timestamp {
        let longest = self.requested.min(self.entitlement).min(self.policy.unwrap_or(DURATION_MAX)).min(DURATION_MAX);
        let by_duration = now.plus(longest);
        self.task_until.into_iter().chain(self.chain_until).fold(by_duration, Timestamp::min)
    }
}

/// What a grant is narrowed to; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrower {
    /// An earlier end.
    pub expires_at: Option<Timestamp>,
    /// Fewer calls.
    pub uses_max: Option<u32>,
    /// A smaller scope, with all that stays of it; it may be bound to arguments that the grant was not bound to.
    pub scope: Option<Scope>,
}

/// Why a grant is not narrowed; it is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WouldWiden {
    /// The end would be later, or not after the beginning.
    #[error("`expires_at` can only become earlier, and stays after `not_before`")]
    End,
    /// There would be more uses, or none.
    #[error("`uses_max` can only become less, and not zero; release the grant instead")]
    Uses,
    /// The scope would reach further.
    #[error("the scope can only become smaller: it reaches something that the grant does not")]
    Scope,
    /// It would be bound to other arguments, or to none.
    #[error("a grant that is bound to the arguments of a call stays bound to them")]
    Arguments,
    /// Nothing was asked.
    #[error("nothing to narrow: give an earlier end, fewer uses or a smaller scope")]
    Nothing,
}

/// The grant, narrowed. It only ever shrinks.
///
/// # Errors
/// [`WouldWiden`] naming what would not shrink.
pub fn reduce(grant: &Grant, to: Narrower) -> Result<Grant, WouldWiden> {
    if to == Narrower::default() {
        return Err(WouldWiden::Nothing);
    }
    let mut narrowed = grant.clone();
    if let Some(expires_at) = to.expires_at {
        if expires_at > grant.window.expires_at || expires_at <= grant.window.not_before {
            return Err(WouldWiden::End);
        }
        narrowed.window = Window { expires_at, ..grant.window };
    }
    if let Some(uses) = to.uses_max {
        if uses == 0 || grant.uses_max.is_some_and(|held| uses > held) {
            return Err(WouldWiden::Uses);
        }
        narrowed.uses_max = Some(uses);
    }
    if let Some(scope) = to.scope {
        if grant.scope.arguments().is_some() && scope.arguments() != grant.scope.arguments() {
            return Err(WouldWiden::Arguments);
        }
        if scope.actions().is_empty() || scope.resources().is_empty() || !scope.is_within(&grant.scope) {
            return Err(WouldWiden::Scope);
        }
        narrowed.scope = scope.into();
    }
    Ok(narrowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::ActionPattern;
    use crate::domain::arguments::ArgumentDigest;
    use crate::domain::id::{ActionName, GrantId};
    use crate::domain::principal::Principal;
    use crate::domain::resource::{Resource, ResourcePattern};
    use proptest::prelude::*;

    fn scope(action: &str, resource: &str) -> Scope {
        Scope::new(vec![ActionPattern::new(action).unwrap()], vec![ResourcePattern::new(resource).unwrap()])
    }

    fn grant() -> Grant {
        Grant {
            id: GrantId::new("grt_1").unwrap(),
            principal: Principal::token("https://idp.test", "bot").unwrap(),
            backend: BackendName::new("b").unwrap(),
            scope: scope("q.*", "a/**").into(),
            window: Window { not_before: Timestamp::from_seconds(10), expires_at: Timestamp::from_seconds(100) },
            uses_max: Some(5),
            task: None,
        }
    }

    proptest! {
        /// I3: no bound is ever passed, whatever the others are.
        #[test]
        fn a_grant_ends_at_the_earliest_bound(
            requested in 1u64..200_000, entitlement in 1u64..200_000, policy in prop::option::of(1u64..200_000),
            task in prop::option::of(0i64..200_000), chain in prop::option::of(0i64..200_000), now in 0i64..100_000,
        ) {
            let seconds = Duration::from_secs;
            let now = Timestamp::from_seconds(now);
            let task_until = task.map(Timestamp::from_seconds);
            let bounds = Bounds {
                requested: seconds(requested),
                entitlement: seconds(entitlement),
                policy: policy.map(seconds),
                task_until,
                chain_until: chain.map(Timestamp::from_seconds),
            };
            let end = bounds.expires_at(now);
            prop_assert!(end <= now.plus(seconds(requested)) && end <= now.plus(seconds(entitlement)));
            prop_assert!(end <= now.plus(DURATION_MAX));
            prop_assert!(policy.is_none_or(|p| end <= now.plus(seconds(p))));
            prop_assert!(task_until.is_none_or(|until| end <= until));
            prop_assert!(bounds.chain_until.is_none_or(|until| end <= until));
        }

        /// Narrowing never lets a call through that was not let through before.
        #[test]
        fn what_is_narrowed_covers_no_more(
            end in prop::option::of(0i64..200), uses in prop::option::of(0u32..9), action in prop::option::of("[q*.]{1,4}"),
            resource in "[a*]{1,2}(/[b*]{1,2})?(/\\*\\*)?", asked in "a(/[ab]{1,2}){0,2}",
            held in prop::option::of(0u8..2), arguments in prop::option::of(0u8..2),
        ) {
            let digest = |byte: Option<u8>| byte.map(|byte| ArgumentDigest::from_bytes([byte; 32]));
            let grant = Grant { scope: Scope::clone(&grant().scope).bound_to(digest(held)).into(), ..grant() };
            let smaller = action.and_then(|a| {
                let scope = Scope::new(vec![ActionPattern::new(&a).ok()?], vec![ResourcePattern::new(&resource).ok()?]);
                Some(scope.bound_to(digest(arguments)))
            });
            let to = Narrower { expires_at: end.map(Timestamp::from_seconds), uses_max: uses, scope: smaller };
            if let Ok(narrowed) = reduce(&grant, to) {
                prop_assert!(held.is_none() || narrowed.scope.arguments() == grant.scope.arguments());
                prop_assert!(narrowed.window.expires_at <= grant.window.expires_at);
                prop_assert_eq!(narrowed.window.not_before, grant.window.not_before);
                prop_assert!(narrowed.uses_max <= grant.uses_max && narrowed.uses_max != Some(0));
                let action = ActionName::new("q.delete").unwrap();
                let resource = Resource::exact(asked.as_str());
                prop_assert!(!narrowed.scope.covers(&action, &resource) || grant.scope.covers(&action, &resource));
            }
        }
    }

    #[test]
    fn nothing_that_widens_is_taken() {
        let cases = [
            (Narrower::default(), WouldWiden::Nothing),
            (Narrower { expires_at: Some(Timestamp::from_seconds(101)), ..Narrower::default() }, WouldWiden::End),
            (Narrower { expires_at: Some(Timestamp::from_seconds(10)), ..Narrower::default() }, WouldWiden::End),
            (Narrower { uses_max: Some(6), ..Narrower::default() }, WouldWiden::Uses),
            (Narrower { uses_max: Some(0), ..Narrower::default() }, WouldWiden::Uses),
            (Narrower { scope: Some(scope("*", "a/b")), ..Narrower::default() }, WouldWiden::Scope),
            (Narrower { scope: Some(scope("q.x", "**")), ..Narrower::default() }, WouldWiden::Scope),
        ];
        for (to, expected) in cases {
            assert_eq!(reduce(&grant(), to.clone()), Err(expected), "{to:?}");
        }
    }

    #[test]
    fn arguments_can_be_added_and_then_stay() {
        let bound = |byte: u8| Some(scope("q.x", "a/b").bound_to(Some(ArgumentDigest::from_bytes([byte; 32]))));
        let narrower = |scope| Narrower { scope, ..Narrower::default() };
        let once = reduce(&grant(), narrower(bound(1))).unwrap();
        assert_eq!(once.scope.arguments(), Some(&ArgumentDigest::from_bytes([1; 32])));
        assert_eq!(reduce(&once, narrower(bound(2))), Err(WouldWiden::Arguments));
        assert_eq!(reduce(&once, narrower(Some(scope("q.x", "a/b")))), Err(WouldWiden::Arguments));
        let again = reduce(&once, Narrower { uses_max: Some(1), scope: bound(1), ..Narrower::default() }).unwrap();
        assert_eq!(again.scope, once.scope);
    }
}
