//! Everything that can be done, each as one step from rows to writes.
//!
//! A command reads what it needs, refuses or plans; nothing is written by one that refuses. It runs inside the one
//! transaction that runs anywhere, so nothing changes between its look and its writes, and policy is asked in between.

mod ask;
mod decide;
mod declare;
mod end;
mod renew;
mod wanted;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use ask::{Ask, Idempotency};
pub use declare::Applied;

use super::catalogue::{Catalogue, Known, LOCAL_ADMIN};
use super::document::{Document, Kind};
use super::refusal::Refusal;
use super::store::{Change, GrantRow, Plan, RequestRow, Rows, Selector, StoreError, Write};
use crate::domain::entitlement::Narrower;
use crate::domain::id::{GrantId, LockId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::{Task, TaskEvent};
use crate::domain::time::Timestamp;
use crate::sync::server::Use;

/// What somebody wants done.
#[derive(Debug, Clone)]
pub enum Command {
    /// Declare documents: all of them or none.
    Apply(Vec<Document>),
    /// Declare a document no more.
    Delete(Kind, String),
    /// Ask for an elevation.
    Ask(Box<Ask>),
    /// Agree to a request that was seen in this version.
    Approve {
        /// Which.
        request: RequestId,
        /// The version that the approver saw.
        seen: u64,
        /// In the approver's words.
        reason: String,
    },
    /// Say no to a request.
    Deny {
        /// Which.
        request: RequestId,
        /// Why.
        reason: String,
    },
    /// Take a request back.
    Cancel {
        /// Which.
        request: RequestId,
        /// Why.
        reason: String,
    },
    /// Give one's grant back.
    Release(GrantId),
    /// Take grants away.
    Revoke {
        /// Which.
        selector: Selector,
        /// Why, in the actor's words.
        reason: String,
    },
    /// Narrow a grant.
    Reduce(GrantId, Narrower),
    /// Take a use of a counted grant, for a sidecar.
    Consume {
        /// Which grant.
        grant: GrantId,
        /// The use: said again, it is the same one.
        use_id: String,
    },
    /// Take a use of a counted grant, as a sidecar of its backend.
    Use {
        /// Which grant.
        grant: GrantId,
        /// The use: said again, it is the same one.
        use_id: String,
    },
    /// Say what one found about a break-glass grant.
    Review {
        /// Which grant.
        grant: GrantId,
        /// What was found.
        note: String,
    },
    /// Put a lock in force.
    Lock(Box<Lock>),
    /// Lift a lock.
    Unlock(LockId),
    /// What a source says of a task.
    Task(TaskSaid),
    /// Record that a person logged in.
    LogIn {
        /// By what proof.
        by: &'static str,
    },
    /// Record that a sidecar is let in, or is to be.
    Enrol {
        /// Which.
        sidecar: Principal,
        /// What happened: `sidecar.token_made` is for admins; of what follows on it, the token was the proof.
        event: &'static str,
        /// The rest of it.
        detail: Value,
    },
    /// Record what time has ended; and end what went unused, where whoever used it had the time to say so.
    Sweep {
        /// Whether they had.
        idle: bool,
    },
}

/// What a source says of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSaid {
    /// Which task.
    pub task: TaskRef,
    /// What happened to it.
    pub event: TaskEvent,
    /// When, by its source.
    pub at: Timestamp,
    /// What kind it is.
    #[serde(default)]
    pub kind: String,
    /// When it ends by itself.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// What came of a command.
#[derive(Debug, Clone)]
pub enum Reply {
    /// What each document was.
    Applied(Vec<Applied>),
    /// Where a request stands, and the grant it became.
    Request(Box<RequestRow>, Option<Box<GrantRow>>),
    /// How a grant is now.
    Grant(Box<GrantRow>),
    /// What came of asking for a use.
    Used(Use),
    /// Which grants were ended.
    Ended(Vec<GrantId>),
    /// A lock as it is in force, and since which revision.
    Lock(Box<Lock>, Revision),
    /// Nothing more to say.
    Done,
    /// How a task is now, and what its end ended.
    Task(Task, Vec<GrantId>),
    /// How many grants and requests time had ended.
    Swept(usize),
}

/// Why a command did nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// It was refused.
    Refused(Refusal),
    /// The store cannot answer.
    Store(StoreError),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What one command works with.
pub(super) struct Work<'w, R> {
    rows: &'w mut R,
    catalogue: &'w Catalogue,
    actor: &'w Principal,
    now: Timestamp,
    plan: Plan,
}

/// Runs a command and returns what came of it, with what it writes.
///
/// # Errors
/// [`Failed`]; there is nothing to write then.
pub async fn execute<R: Rows>(
    rows: &mut R,
    catalogue: &Catalogue,
    actor: &Principal,
    command: &Command,
    now: Timestamp,
) -> Result<(Reply, Vec<Write>), Failed> {
    let plan = Plan::new(rows.head().await?, actor.as_str(), now);
    let mut work = Work { rows, catalogue, actor, now, plan };
    let reply = match command {
        Command::Apply(documents) => work.declare(documents).await?,
        Command::Delete(kind, name) => work.declare_no_more(*kind, name).await?,
        Command::Ask(ask) => work.ask(ask).await?,
        Command::Approve { request, seen, reason } => work.approve(request, *seen, reason).await?,
        Command::Deny { request, reason } => work.deny(request, reason).await?,
        Command::Cancel { request, reason } => work.cancel(request, reason).await?,
        Command::Release(grant) => work.release(grant).await?,
        Command::Revoke { selector, reason } => work.revoke(selector, reason).await?,
        Command::Reduce(grant, to) => work.reduce(grant, to.clone()).await?,
        Command::Consume { grant, use_id } => work.consume(grant, use_id).await?,
        Command::Use { grant, use_id } => work.take_use(grant, use_id).await?,
        Command::Review { grant, note } => work.review(grant, note).await?,
        Command::Lock(lock) => work.lock(lock)?,
        Command::Unlock(id) => work.unlock(id).await?,
        Command::Task(said) => work.task(said).await?,
        Command::LogIn { by } => work.log_in(by),
        Command::Enrol { sidecar, event, detail } => work.enrol(sidecar, event, detail)?,
        Command::Sweep { idle } => work.sweep(*idle).await?,
    };
    Ok((reply, work.plan.finish()))
}

impl<R: Rows> Work<'_, R> {
    /// Who acts; a stranger or somebody disabled gets nothing.
    fn known(&self) -> Result<Known, Refusal> {
        let known = self.catalogue.know(self.actor).filter(|known| !known.disabled);
        known.ok_or_else(|| {
            Refusal::forbidden(
                "unknown_principal",
                format_args!("`{}` is no Principal here, or a disabled one: ask an admin to declare it", self.actor),
            )
        })
    }

    /// Whether the actor may administer.
    fn administers(&self, action: &str) -> bool {
        *self.actor.as_str() == *LOCAL_ADMIN
            || self
                .known()
                .is_ok_and(|known| self.catalogue.policies.may_administer(known.actor(), action, self.now).allowed)
    }

    fn must_administer(&self, action: &str) -> Result<(), Refusal> {
        if self.administers(action) {
            return Ok(());
        }
        Err(Refusal::forbidden(
            "not_an_admin",
            format_args!("`{}` may not `{action}`: no admin policy permits it", self.actor),
        ))
    }

    async fn request_row(&mut self, id: &RequestId) -> Result<RequestRow, Failed> {
        let row = self.rows.request(id).await?;
        Ok(row.ok_or_else(|| Refusal::not_found("request", id))?)
    }

    async fn grant_row(&mut self, id: &GrantId) -> Result<GrantRow, Failed> {
        let row = self.rows.grant(id).await?;
        Ok(row.ok_or_else(|| Refusal::not_found("grant", id))?)
    }

    fn put_request(&mut self, mut row: RequestRow, event: &str, detail: Value) -> RequestRow {
        row.version += 1;
        let subject = row.request.id.as_str().to_owned();
        self.plan.transition(Write::Request(Box::new(row.clone())), None, event, &subject, detail);
        row
    }

    fn put_grant(&mut self, row: GrantRow, change: Change, event: &str, detail: Value) -> GrantRow {
        let subject = row.grant.id.as_str().to_owned();
        let revision = self.plan.transition(Write::Grant(Box::new(row.clone())), Some(change), event, &subject, detail);
        GrantRow { revision, ..row }
    }

    fn lock(&mut self, lock: &Lock) -> Result<Reply, Failed> {
        self.must_administer("admin:lock")?;
        if lock.expires_at.is_some_and(|end| end <= self.now) {
            return Err(Refusal::invalid("lock_is_over", "`expires_at` of a lock is in the future").into());
        }
        let detail = serde_json::to_value(lock).unwrap_or_default();
        let change = Change::Lock(Box::new(lock.clone()));
        let write = Write::Lock(Box::new(lock.clone()));
        let revision = self.plan.transition(write, Some(change), "lock.begun", lock.id.as_str(), detail);
        Ok(Reply::Lock(Box::new(lock.clone()), revision))
    }

    fn log_in(&mut self, by: &str) -> Reply {
        let subject = self.actor.as_str().to_owned();
        self.plan.entry("login", &subject, json!({"by": by}));
        Reply::Done
    }

    fn enrol(&mut self, sidecar: &Principal, event: &str, detail: &Value) -> Result<Reply, Failed> {
        // A sidecar itself acts only where it was let in already.
        if self.actor != sidecar || event == "sidecar.token_made" {
            self.must_administer("admin:enroll")?;
        }
        self.plan.entry(event, sidecar.as_str(), detail.clone());
        Ok(Reply::Done)
    }

    async fn unlock(&mut self, id: &LockId) -> Result<Reply, Failed> {
        self.must_administer("admin:lock")?;
        if !self.rows.locks().await?.iter().any(|lock| lock.id == *id) {
            return Err(Refusal::not_found("lock", id).into());
        }
        let change = Change::Unlock { id: id.clone() };
        self.plan.transition(Write::NoLock(id.clone()), Some(change), "lock.lifted", id.as_str(), json!({}));
        Ok(Reply::Done)
    }
}
