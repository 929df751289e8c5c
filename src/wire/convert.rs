//! Between the messages and the domain.

use std::collections::HashMap;
use std::sync::Arc;

use super::v1;
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::grant::{Grant, GrantState};
use crate::domain::id::{BackendName, GrantId, LockId, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::domain::time::{Timestamp, Window};

/// A message that says nothing the domain knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Unreadable {
    field: &'static str,
    reason: String,
}

impl Unreadable {
    /// Says what is wrong with a field.
    pub fn new(field: &'static str, reason: impl ToString) -> Self {
        Self { field, reason: reason.to_string() }
    }
}

/// Reads a field, and names it where that fails.
fn field<T, E: ToString>(name: &'static str, read: Result<T, E>) -> Result<T, Unreadable> {
    read.map_err(|error| Unreadable::new(name, error))
}

impl From<&Grant> for v1::Grant {
    fn from(grant: &Grant) -> Self {
        let actions = grant.scope.actions().iter().map(|action| action.as_str().to_owned()).collect();
        // INVARIANT: a peer that does not know of arguments never holds a grant that covers more than the one call.
        let (actions, bound) = match grant.scope.arguments() {
            None => (actions, None),
            Some(digest) => (Vec::new(), Some(v1::Bound { actions, arguments: digest.as_bytes().to_vec().into() })),
        };
        Self {
            id: grant.id.to_string(),
            principal: grant.principal.to_string(),
            backend: grant.backend.to_string(),
            actions,
            resources: grant.scope.resources().iter().map(|resource| resource.as_str().to_owned()).collect(),
            not_before: grant.window.not_before.as_micros(),
            expires_at: grant.window.expires_at.as_micros(),
            uses_max: grant.uses_max,
            task: grant.task.as_ref().map(ToString::to_string),
            bound,
        }
    }
}

impl v1::Grant {
    /// Whether somebody between did not know what it is bound to, and passed it on as a grant that covers nothing.
    pub fn is_hollow(&self) -> bool {
        self.actions.is_empty() && self.bound.is_none()
    }
}

/// What many grants have in common, read once: all grants of one entitlement have the same scope on the same backend.
#[derive(Debug, Default)]
pub struct Shared {
    scopes: HashMap<(Vec<String>, Vec<String>), Arc<Scope>, ahash::RandomState>,
    backends: HashMap<String, BackendName, ahash::RandomState>,
}

/// Scopes and backends that are remembered; past it all are forgotten.
const SHARED_MAX: usize = 4_096;

impl Shared {
    /// Reads a grant.
    ///
    /// # Errors
    /// [`Unreadable`]; nothing of it is remembered.
    pub fn grant(&mut self, message: v1::Grant) -> Result<Grant, Unreadable> {
        Ok(Grant {
            id: field("grant.id", GrantId::new(&message.id))?,
            principal: field("grant.principal", Principal::parse(&message.principal))?,
            backend: self.backend(message.backend)?,
            scope: self.bound_scope(message.actions, message.resources, message.bound)?,
            window: Window {
                not_before: Timestamp::from_micros(message.not_before),
                expires_at: Timestamp::from_micros(message.expires_at),
            },
            uses_max: message.uses_max,
            task: message.task.map(|task| field("grant.task", TaskRef::new(&task))).transpose()?,
        })
    }

    fn backend(&mut self, name: String) -> Result<BackendName, Unreadable> {
        if let Some(known) = self.backends.get(&name) {
            return Ok(known.clone());
        }
        let backend = field("grant.backend", BackendName::new(&name))?;
        if self.backends.len() >= SHARED_MAX {
            self.backends.clear();
        }
        self.backends.insert(name, backend.clone());
        Ok(backend)
    }

    fn bound_scope(
        &mut self,
        actions: Vec<String>,
        resources: Vec<String>,
        bound: Option<v1::Bound>,
    ) -> Result<Arc<Scope>, Unreadable> {
        let Some(bound) = bound else { return self.scope(actions, resources) };
        if !actions.is_empty() {
            return Err(Unreadable::new("grant.bound", "its actions are there twice"));
        }
        let bytes = <[u8; 32]>::try_from(&bound.arguments[..]);
        let bytes = bytes.map_err(|_| Unreadable::new("grant.bound.arguments", "it has not 32 bytes"))?;
        // Two grants for one exact call are rare: what they have in common is not remembered.
        let scope = self.scope(bound.actions, resources)?;
        Ok(Arc::new(Scope::clone(&scope).bound_to(Some(ArgumentDigest::from_bytes(bytes)))))
    }

    fn scope(&mut self, actions: Vec<String>, resources: Vec<String>) -> Result<Arc<Scope>, Unreadable> {
        let written = (actions, resources);
        if let Some(known) = self.scopes.get(&written) {
            return Ok(Arc::clone(known));
        }
        let actions = written.0.iter().map(|action| ActionPattern::new(action)).collect();
        let resources = written.1.iter().map(|resource| ResourcePattern::new(resource)).collect();
        let scope = Scope::new(field("grant.actions", actions)?, field("grant.resources", resources)?);
        if self.scopes.len() >= SHARED_MAX {
            self.scopes.clear();
        }
        let scope = Arc::new(scope);
        self.scopes.insert(written, Arc::clone(&scope));
        Ok(scope)
    }
}

impl TryFrom<v1::Grant> for Grant {
    type Error = Unreadable;

    fn try_from(message: v1::Grant) -> Result<Self, Unreadable> {
        Shared::default().grant(message)
    }
}

impl From<&Lock> for v1::Lock {
    fn from(lock: &Lock) -> Self {
        let text = |text: &dyn ToString| text.to_string();
        Self {
            id: lock.id.to_string(),
            principal: lock.principal.as_ref().map(|p| text(p)),
            backend: lock.backend.as_ref().map(|b| text(b)),
            action: lock.action.as_ref().map(|a| a.as_str().to_owned()),
            resource: lock.resource.as_ref().map(|r| r.as_str().to_owned()),
            grant: lock.grant.as_ref().map(|g| text(g)),
            task: lock.task.as_ref().map(|t| text(t)),
            message: lock.message.clone(),
            expires_at: lock.expires_at.map(Timestamp::as_micros),
        }
    }
}

impl TryFrom<v1::Lock> for Lock {
    type Error = Unreadable;

    fn try_from(message: v1::Lock) -> Result<Self, Unreadable> {
        Ok(Self {
            id: field("lock.id", LockId::new(&message.id))?,
            principal: message.principal.map(|p| field("lock.principal", Principal::parse(&p))).transpose()?,
            backend: message.backend.map(|b| field("lock.backend", BackendName::new(&b))).transpose()?,
            action: message.action.map(|a| field("lock.action", ActionPattern::new(&a))).transpose()?,
            resource: message.resource.map(|r| field("lock.resource", ResourcePattern::new(&r))).transpose()?,
            grant: message.grant.map(|g| field("lock.grant", GrantId::new(&g))).transpose()?,
            task: message.task.map(|t| field("lock.task", TaskRef::new(&t))).transpose()?,
            message: message.message,
            expires_at: message.expires_at.map(Timestamp::from_micros),
        })
    }
}

impl v1::Ended {
    /// Says that a grant ended.
    pub fn of(id: &GrantId, backend: &BackendName, state: GrantState) -> Self {
        Self { grant: id.to_string(), backend: backend.to_string(), state: state.as_str().to_owned() }
    }

    /// Which grant ended, where, and how. A way to end that is not known here is an end all the same.
    ///
    /// # Errors
    /// [`Unreadable`] when a name is none.
    pub fn read(&self) -> Result<(GrantId, BackendName, GrantState), Unreadable> {
        let state = GrantState::ALL.into_iter().find(|state| state.as_str() == self.state);
        let state = state.filter(|state| *state != GrantState::Active).unwrap_or(GrantState::Revoked);
        let id = field("ended.grant", GrantId::new(&self.grant))?;
        Ok((id, field("ended.backend", BackendName::new(&self.backend))?, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::ActionName;
    use crate::domain::resource::Resource;

    fn grant() -> Grant {
        let scope = Scope::new(
            vec![ActionPattern::new("queue.*").expect("action")],
            vec![ResourcePattern::new("vhosts/*/queues/**").expect("resource")],
        );
        Grant {
            id: GrantId::new("grt_1").expect("id"),
            principal: Principal::parse("spiffe://prod.example/ns/pay/sa/db").expect("principal"),
            backend: BackendName::new("rabbit").expect("backend"),
            scope: Arc::new(scope),
            window: Window { not_before: Timestamp::from_seconds(5), expires_at: Timestamp::MAX },
            uses_max: Some(3),
            task: Some(TaskRef::new("jira:OPS-1").expect("task")),
        }
    }

    fn bound() -> Grant {
        let scope = Scope::clone(&grant().scope).bound_to(Some(ArgumentDigest::from_bytes([7; 32])));
        Grant { scope: scope.into(), ..grant() }
    }

    #[test]
    fn whoever_does_not_know_what_a_grant_is_bound_to_has_one_that_covers_nothing() {
        let told = v1::Grant::from(&bound());
        assert!(told.actions.is_empty() && !told.is_hollow());
        let passed_on = v1::Grant { bound: None, ..told };
        assert!(passed_on.is_hollow() && !v1::Grant::from(&grant()).is_hollow());
        let (action, resource) =
            (ActionName::new("queue.delete").expect("action"), Resource::exact("vhosts/a/queues/b"));
        assert!(grant().scope.covers(&action, &resource));
        assert!(!Grant::try_from(passed_on).expect("a grant").scope.covers(&action, &resource));
    }

    #[test]
    fn a_grant_and_a_lock_come_back_as_they_went() {
        assert_eq!(Grant::try_from(v1::Grant::from(&grant())), Ok(grant()));
        assert_eq!(Grant::try_from(v1::Grant::from(&bound())), Ok(bound()));
        let lock = Lock {
            id: LockId::new("l1").expect("id"),
            principal: Some(grant().principal),
            backend: Some(grant().backend),
            action: Some(ActionPattern::new("queue.read").expect("action")),
            resource: None,
            grant: Some(grant().id),
            task: grant().task,
            message: "see OPS-1".to_owned(),
            expires_at: Some(Timestamp::from_seconds(9)),
        };
        assert_eq!(Lock::try_from(v1::Lock::from(&lock)), Ok(lock));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_never_guessed() {
        type Spoil = fn(&mut v1::Grant);
        let cases: [(&str, Spoil); 8] = [
            ("grant.id", |g| g.id = "a b".to_owned()),
            ("grant.principal", |g| g.principal = "nobody".to_owned()),
            ("grant.backend", |g| g.backend.clear()),
            ("grant.actions", |g| g.actions.push("a b".to_owned())),
            ("grant.task", |g| g.task = Some("none".to_owned())),
            ("grant.bound", |g| g.bound = v1::Grant::from(&bound()).bound),
            ("grant.bound.arguments", |g| {
                (g.actions, g.bound) =
                    (Vec::new(), Some(v1::Bound { arguments: vec![7; 31].into(), ..v1::Bound::default() }));
            }),
            ("grant.actions", |g| {
                let actions = vec!["a b".to_owned()];
                (g.actions, g.bound) = (Vec::new(), Some(v1::Bound { actions, arguments: vec![7; 32].into() }));
            }),
        ];
        for (named, spoil) in cases {
            let mut message = v1::Grant::from(&grant());
            spoil(&mut message);
            let error = Grant::try_from(message).expect_err(named).to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }

    #[test]
    fn grants_that_say_the_same_share_it() {
        let mut shared = Shared::default();
        let one = shared.grant(v1::Grant::from(&grant())).expect("a grant");
        let two = shared.grant(v1::Grant::from(&grant())).expect("a grant");
        assert!(Arc::ptr_eq(&one.scope, &two.scope) && one == grant() && two == grant());
        for n in 0..=SHARED_MAX {
            let other = v1::Grant { backend: format!("b{n}"), actions: vec![format!("a{n}")], ..(&grant()).into() };
            assert!(shared.grant(other).is_ok());
        }
        assert!(shared.scopes.len() <= SHARED_MAX && shared.backends.len() <= SHARED_MAX);
    }

    #[test]
    fn an_end_of_an_unknown_kind_is_an_end() {
        let mut ended = v1::Ended::of(&grant().id, &grant().backend, GrantState::Released);
        assert_eq!(ended.read().map(|(_, _, state)| state), Ok(GrantState::Released));
        for unknown in ["active", "vanished", ""] {
            ended.state = unknown.to_owned();
            assert_eq!(ended.read().map(|(_, _, state)| state), Ok(GrantState::Revoked));
        }
    }
}
