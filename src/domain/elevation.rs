//! The life of an elevation: someone asks for an entitlement, for a task, for a time, and it ends one way.
//!
//! What was asked never changes ([`Request`]); where it stands is one value ([`Elevation`]) that only
//! [`Elevation::apply`] moves. Every state but `Pending` is final.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::Scope;
use super::entitlement::Step;
use super::id::{BackendName, EntitlementName, GrantId, RequestId, TaskRef};
use super::principal::Principal;
use super::time::Timestamp;

/// What was asked, as it stood when it was asked. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// Who asked.
    pub requester: Principal,
    /// Who is to hold the grant.
    pub subject: Principal,
    /// On whose behalf, nearest first.
    pub on_behalf_of: Vec<Principal>,
    /// Who answers for the subject; where `owner_may_approve` is not set they do not approve either.
    pub owner: Option<Principal>,
    /// What was asked for.
    pub entitlement: EntitlementName,
    /// On which backend.
    pub backend: BackendName,
    /// Which actions on which resources: all of the entitlement's or less.
    pub scope: Scope,
    /// For how long at most, from when it is approved.
    #[serde(with = "seconds")]
    pub duration: Duration,
    /// For how many calls.
    pub uses_max: Option<u32>,
    /// The grant whose place it is to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<GrantId>,
    /// What justifies it.
    pub task: Option<TaskRef>,
    /// In the requester's words.
    pub justification: String,
    /// Whether it is break-glass: recorded as such and reviewed afterwards.
    pub emergency: bool,
    /// Who must agree, in order; frozen from the entitlement and tightened by policy.
    pub steps: Vec<Step>,
    /// When it was asked.
    pub created_at: Timestamp,
    /// Until when it can be approved.
    pub window_until: Timestamp,
}

/// Durations are whole seconds in documents and answers.
pub mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes whole seconds.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(duration.as_secs())
    }

    /// Reads whole seconds.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// One approver's agreement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Who.
    pub approver: Principal,
    /// For which step, from 0.
    pub step: usize,
    /// In the approver's words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Elevation {
    /// Somebody must agree yet.
    Pending {
        /// Who did so far.
        approvals: Vec<Approval>,
    },
    /// It became a grant.
    Approved {
        /// Who agreed; nobody where policy did.
        approvals: Vec<Approval>,
        /// The grant.
        grant: GrantId,
        /// When.
        at: Timestamp,
    },
    /// Policy or an approver said no.
    Denied {
        /// Who; nobody where it was policy.
        by: Option<Principal>,
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
    },
    /// It was taken back, or its task was closed.
    Cancelled {
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
    },
    /// Nobody decided in time.
    Expired {
        /// When that was noticed.
        at: Timestamp,
    },
}

/// What can happen to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Policy approves with nobody looking.
    AutoApprove {
        /// The grant it becomes.
        grant: GrantId,
    },
    /// An approver agrees.
    Approve {
        /// Who.
        approver: Principal,
        /// The groups the approver is in, now.
        groups: Vec<String>,
        /// In the approver's words.
        reason: String,
        /// The grant it becomes if this was the last agreement needed.
        grant: GrantId,
    },
    /// An approver says no.
    Deny {
        /// Who.
        approver: Principal,
        /// The groups the approver is in, now.
        groups: Vec<String>,
        /// Why.
        reason: String,
    },
    /// Policy says no.
    Forbid {
        /// Why.
        reason: String,
    },
    /// The requester, an admin or the end of its task takes it back.
    Cancel {
        /// Why.
        reason: String,
    },
    /// The approval window is over.
    Lapse,
}

/// Why an event does not apply; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It ended before.
    #[error("the request has ended: it is {0}")]
    Ended(&'static str),
    /// The approval window is over.
    #[error("the approval window is over; ask again")]
    TooLate,
    /// It is not over yet.
    #[error("the approval window is still open")]
    TooEarly,
    /// Nobody approves their own.
    #[error("nobody approves their own request, nor that of somebody who acts for them")]
    SelfApproval,
    /// The owner of the subject is not another person.
    #[error("the owner of the principal that is to hold the grant cannot approve it")]
    OwnerApproval,
    /// Not in a group that this step wants.
    #[error("you are in none of the groups that this step wants")]
    NotAnApprover,
}

impl Elevation {
    /// A request that nobody decided yet.
    pub fn new() -> Self {
        Self::Pending { approvals: Vec::new() }
    }

    /// The state as it is written.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Approved { .. } => "approved",
            Self::Denied { .. } => "denied",
            Self::Cancelled { .. } => "cancelled",
            Self::Expired { .. } => "expired",
        }
    }

    /// Whether somebody must decide yet.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Pending { .. })
    }

    /// Where the request stands after `event`, as of `now`. The only way from one state to another.
    ///
    /// # Errors
    /// [`Refused`]; it stands where it stood.
    pub fn apply(&self, request: &Request, event: Event, now: Timestamp) -> Result<Self, Refused> {
        let Self::Pending { approvals } = self else { return Err(Refused::Ended(self.state())) };
        if now >= request.window_until && !matches!(event, Event::Lapse | Event::Cancel { .. } | Event::Forbid { .. }) {
            return Err(Refused::TooLate);
        }
        match event {
            Event::AutoApprove { grant } => Ok(Self::Approved { approvals: Vec::new(), grant, at: now }),
            Event::Forbid { reason } => Ok(Self::Denied { by: None, reason, at: now }),
            Event::Cancel { reason } => Ok(Self::Cancelled { reason, at: now }),
            Event::Lapse if now < request.window_until => Err(Refused::TooEarly),
            Event::Lapse => Ok(Self::Expired { at: now }),
            Event::Deny { approver, groups, reason } => {
                request.separate(&approver)?;
                if !request.steps.iter().any(|step| step.wants(&groups)) {
                    return Err(Refused::NotAnApprover);
                }
                Ok(Self::Denied { by: Some(approver), reason, at: now })
            }
            Event::Approve { approver, groups, reason, grant } => {
                agree(request, approvals, Agreement { approver, groups, reason, grant }, now)
            }
        }
    }
}

impl Default for Elevation {
    fn default() -> Self {
        Self::new()
    }
}

struct Agreement {
    approver: Principal,
    groups: Vec<String>,
    reason: String,
    grant: GrantId,
}

fn agree(request: &Request, approvals: &[Approval], given: Agreement, now: Timestamp) -> Result<Elevation, Refused> {
    request.separate(&given.approver)?;
    let mut approvals = approvals.to_vec();
    // One approver counts once over all steps; saying it again changes nothing.
    if !approvals.iter().any(|approval| approval.approver == given.approver) {
        let Some(step) = request.open_step(&approvals) else { return Err(Refused::NotAnApprover) };
        if !request.steps[step].wants(&given.groups) {
            return Err(Refused::NotAnApprover);
        }
        approvals.push(Approval { approver: given.approver, step, reason: given.reason, at: now });
    }
    Ok(match request.open_step(&approvals) {
        Some(_) => Elevation::Pending { approvals },
        None => Elevation::Approved { approvals, grant: given.grant, at: now },
    })
}

impl Request {
    /// The first step that wants another agreement; none when all are complete.
    pub fn open_step(&self, approvals: &[Approval]) -> Option<usize> {
        (0..self.steps.len()).find(|step| {
            let given = approvals.iter().filter(|approval| approval.step == *step).count();
            given < usize::try_from(self.steps[*step].quorum).unwrap_or(usize::MAX)
        })
    }

    /// Whether `approver` is somebody else than those who want it (NIST SP 800-53 AC-5).
    fn separate(&self, approver: &Principal) -> Result<(), Refused> {
        if *approver == self.requester || *approver == self.subject || self.on_behalf_of.contains(approver) {
            return Err(Refused::SelfApproval);
        }
        if self.owner.as_ref() == Some(approver) {
            return Err(Refused::OwnerApproval);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::ActionPattern;
    use crate::domain::resource::ResourcePattern;
    use proptest::prelude::*;

    fn who(name: &str) -> Principal {
        Principal::token("https://idp.test", name).unwrap()
    }

    fn request(steps: &[(&[&str], u32)]) -> Request {
        Request {
            id: RequestId::new("req_1").unwrap(),
            requester: who("asker"),
            subject: who("bot"),
            on_behalf_of: vec![who("chief")],
            owner: Some(who("owner")),
            entitlement: EntitlementName::new("e").unwrap(),
            backend: BackendName::new("b").unwrap(),
            scope: Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]),
            duration: Duration::from_secs(60),
            uses_max: None,
            renews: None,
            task: None,
            justification: String::new(),
            emergency: false,
            steps: steps
                .iter()
                .map(|(groups, quorum)| Step {
                    approvers: groups.iter().map(|g| (*g).to_owned()).collect(),
                    quorum: *quorum,
                })
                .collect(),
            created_at: Timestamp::from_seconds(0),
            window_until: Timestamp::from_seconds(100),
        }
    }

    fn approve(name: &str, groups: &[&str]) -> Event {
        Event::Approve {
            approver: who(name),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            reason: String::new(),
            grant: GrantId::new("grt_1").unwrap(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn nobody_approves_their_own() {
        let request = request(&[(&["g"], 1)]);
        for (name, expected) in [
            ("asker", Refused::SelfApproval),
            ("bot", Refused::SelfApproval),
            ("chief", Refused::SelfApproval),
            ("owner", Refused::OwnerApproval),
        ] {
            assert_eq!(Elevation::new().apply(&request, approve(name, &["g"]), at(1)), Err(expected), "{name}");
        }
        assert_eq!(Elevation::new().apply(&request, approve("x", &["h"]), at(1)), Err(Refused::NotAnApprover));
        assert_eq!(Elevation::new().apply(&request, approve("x", &["g"]), at(100)), Err(Refused::TooLate));
        assert_eq!(Elevation::new().apply(&request, approve("x", &["g"]), at(99)).unwrap().state(), "approved");
    }

    #[test]
    fn steps_are_taken_in_order_and_an_approver_counts_once() {
        let request = request(&[(&["a"], 2), (&["b"], 1)]);
        let mut elevation = Elevation::new();
        for (name, groups, state) in [
            ("x", &["a", "b"][..], "pending"),
            ("x", &["a", "b"], "pending"),
            ("y", &["a"], "pending"),
            ("x", &["b"], "pending"),
            ("z", &["b"], "approved"),
        ] {
            elevation = elevation.apply(&request, approve(name, groups), at(1)).unwrap();
            assert_eq!(elevation.state(), state, "{name}");
        }
        assert_eq!(Elevation::new().apply(&request, approve("z", &["b"]), at(1)), Err(Refused::NotAnApprover));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let name = prop::sample::select(vec!["asker", "bot", "chief", "owner", "x", "y", "z"]);
        let groups = prop::sample::subsequence(vec!["a", "b", "c"], 0..=3);
        (0u8..6, name, groups).prop_map(|(kind, name, groups)| {
            let groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
            let (approver, reason, grant) = (who(name), String::new(), GrantId::new("grt_1").unwrap());
            match kind {
                0 => Event::AutoApprove { grant },
                1 => Event::Deny { approver, groups, reason },
                2 => Event::Forbid { reason },
                3 => Event::Cancel { reason },
                4 => Event::Lapse,
                _ => Event::Approve { approver, groups, reason, grant },
            }
        })
    }

    proptest! {
        /// Whatever happens in whatever order: final is final, an approval is by others, each once, and enough of them.
        #[test]
        fn any_history_keeps_the_rules(events in prop::collection::vec((any_event(), 0i64..120), 0..20)) {
            let request = request(&[(&["a", "c"], 2), (&["b"], 1)]);
            let mut elevation = Elevation::new();
            for (event, seconds) in events {
                let before = elevation.clone();
                let by_policy = matches!(event, Event::AutoApprove { .. });
                match elevation.apply(&request, event, at(seconds)) {
                    Ok(after) => {
                        prop_assert!(before.is_pending(), "{before:?} was final");
                        elevation = after;
                    }
                    Err(_) => prop_assert_eq!(&elevation, &before),
                }
                if let Elevation::Approved { approvals, at: when, .. } = &elevation {
                    prop_assert!(*when < request.window_until || !before.is_pending());
                    let mut names: Vec<_> = approvals.iter().map(|a| a.approver.clone()).collect();
                    names.sort();
                    names.dedup();
                    prop_assert_eq!(names.len(), approvals.len());
                    prop_assert!(names.iter().all(|name| ["x", "y", "z"].iter().any(|good| *name == who(good))));
                    if before.is_pending() {
                        prop_assert!(by_policy || request.open_step(approvals).is_none());
                    }
                }
            }
        }
    }
}
