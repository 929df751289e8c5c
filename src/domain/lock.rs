//! The kill switch: an overlay that refuses whatever a grant or a baseline would permit.

use super::action::ActionPattern;
use super::id::{ActionName, BackendName, Borrowed, GrantId, LockId, TaskRef};
use super::principal::Principal;
use super::resource::{Extent, Resource, ResourcePattern};
use super::time::Timestamp;

/// Refuses every call that it selects, from when it is known until it ends or is lifted.
///
/// A criterion that is absent selects all; the criteria given must all hold. A lock without any criterion stops
/// everything, which is what the big red button is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Its id.
    pub id: LockId,
    /// Only calls of this principal.
    pub principal: Option<Principal>,
    /// Only calls to this backend.
    pub backend: Option<BackendName>,
    /// Only these actions.
    pub action: Option<ActionPattern>,
    /// Only calls that reach these resources.
    pub resource: Option<ResourcePattern>,
    /// Only calls under this grant.
    pub grant: Option<GrantId>,
    /// Only calls under a grant, or by a caller, of this task.
    pub task: Option<TaskRef>,
    /// What the refused caller is told.
    pub message: String,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// What a lock looks at.
#[derive(Debug, Clone, Copy)]
pub struct LockSubject<'a> {
    /// Who calls.
    pub principal: &'a Principal,
    /// Which backend.
    pub backend: &'a BackendName,
    /// Which action; none where no rule names it.
    pub action: Option<&'a ActionName>,
    /// What it reaches.
    pub resource: &'a Resource,
    /// The grant that would permit it, where that is known already.
    pub grant: Option<Borrowed<'a, GrantId>>,
    /// The task of the grant or of the caller.
    pub task: Option<Borrowed<'a, TaskRef>>,
}

impl Lock {
    /// Whether the call is one of those that are stopped. `wall` past the lock's end stops nothing.
    ///
    /// A call that no rule names could be any action on any resource, so a lock on some stops it too.
    pub fn stops(&self, subject: LockSubject<'_>, wall: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| wall < end)
            && self.principal.as_ref().is_none_or(|p| p == subject.principal)
            && self.backend.as_ref().is_none_or(|b| b == subject.backend)
            && self.action.as_ref().is_none_or(|a| subject.action.is_none_or(|given| a.covers(given)))
            && self.resource.as_ref().is_none_or(|r| subject.action.is_none() || touches(r, subject.resource))
            && self.grant.as_ref().is_none_or(|g| subject.grant.is_some_and(|given| given == *g))
            && self.task.as_ref().is_none_or(|t| subject.task.is_some_and(|given| given == *t))
    }
}

/// Whether a call could reach something inside the pattern. A call on a whole range is stopped by any lock that might lie
/// inside the range: refusing too much is the safe side.
fn touches(pattern: &ResourcePattern, resource: &Resource) -> bool {
    match resource.extent() {
        Extent::Exact => pattern.covers(resource),
        Extent::Under => {
            let fixed = pattern.as_str().split('*').next().unwrap_or_default();
            fixed.starts_with(resource.text()) || resource.text().starts_with(fixed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        Lock {
            id: LockId::new("l1").expect("id"),
            principal: None,
            backend: None,
            action: None,
            resource: None,
            grant: None,
            task: None,
            message: String::new(),
            expires_at: None,
        }
    }

    fn stops(lock: &Lock, resource: &Resource) -> bool {
        let subject = LockSubject {
            principal: &Principal::parse("https://idp.test#bot").expect("principal"),
            backend: &BackendName::new("rabbitmq").expect("backend"),
            action: Some(&ActionName::new("queue.delete").expect("action")),
            resource,
            grant: None,
            task: None,
        };
        lock.stops(subject, Timestamp::from_seconds(100))
    }

    #[test]
    fn criteria_are_joined_by_and() {
        let resource = Resource::exact("vhosts/prod/queues/orders");
        assert!(stops(&lock(), &resource), "a lock without criteria stops everything");
        let backend = Some(BackendName::new("rabbitmq").expect("backend"));
        let other = Some(ActionPattern::new("queue.read").expect("action"));
        assert!(stops(&Lock { backend: backend.clone(), ..lock() }, &resource));
        assert!(!stops(&Lock { backend, action: other, ..lock() }, &resource));
        assert!(!stops(&Lock { task: Some(TaskRef::new("jira:A-1").expect("task")), ..lock() }, &resource));
    }

    #[test]
    fn a_lock_that_is_over_stops_nothing() {
        let over = Lock { expires_at: Some(Timestamp::from_seconds(100)), ..lock() };
        assert!(!stops(&over, &Resource::exact("x")));
        let on = Lock { expires_at: Some(Timestamp::from_seconds(101)), ..lock() };
        assert!(stops(&on, &Resource::exact("x")));
    }

    #[test]
    fn a_range_that_may_reach_into_the_lock_is_stopped() {
        let pattern = ResourcePattern::new("keys/app/secret/**").expect("pattern");
        let locked = Lock { resource: Some(pattern), ..lock() };
        assert!(stops(&locked, &Resource::under("keys/")));
        assert!(stops(&locked, &Resource::under("keys/app/secret/x")));
        assert!(!stops(&locked, &Resource::under("keys/other/")));
        assert!(!stops(&locked, &Resource::exact("keys/app/public")));
    }
}
