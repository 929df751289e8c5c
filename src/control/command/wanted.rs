//! What a command is going to read, as far as it says so itself.

use super::Command;
use crate::control::store::Wanted;
use crate::domain::principal::Principal;

impl Command {
    /// Adds the keys of the rows that this command reads. What is forgotten here is read all the same, only later.
    pub fn want(&self, actor: &Principal, wanted: &mut Wanted) {
        match self {
            Self::Ask(ask) => {
                let subject = ask.subject.as_ref().unwrap_or(actor);
                wanted.held.insert((subject.clone(), ask.entitlement.clone()));
                wanted.holders.insert(subject.clone());
                wanted.grants.extend(ask.renews.clone());
                wanted.tasks.extend(ask.task.clone());
                wanted.keys.extend(ask.idempotency.as_ref().map(|key| (actor.clone(), key.key.clone())));
            }
            Self::Approve { request, .. } | Self::Deny { request, .. } | Self::Cancel { request, .. } => {
                wanted.requests.insert(request.clone());
            }
            Self::Release(grant) | Self::Reduce(grant, _) | Self::Review { grant, .. } => {
                wanted.grants.insert(grant.clone());
            }
            Self::Consume { grant, use_id } | Self::Use { grant, use_id } => {
                wanted.grants.insert(grant.clone());
                wanted.uses.insert((grant.clone(), use_id.clone()));
            }
            Self::Revoke { selector, .. } => wanted.grants.extend(selector.grant.clone()),
            Self::Task(said) => {
                wanted.tasks.insert(said.task.clone());
            }
            Self::Apply(_)
            | Self::Delete(..)
            | Self::Lock(_)
            | Self::Unlock(_)
            | Self::LogIn { .. }
            | Self::Enrol { .. }
            | Self::Sweep { .. } => {}
        }
    }
}
