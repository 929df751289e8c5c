//! What is kept, and how it changes: rows to read, writes to apply, one at a time over all replicas.
//!
//! A command reads rows and plans writes ([`Plan`]); only when it refuses nothing are they applied, with the audit entry
//! of each in the same transaction. Transactions of one replica are grouped; between replicas the counter row is locked
//! first, so commands run one after another everywhere and revisions are dense and in the order of commits. (Locking it
//! last would let commands overlap, and each would have to be written so that overlapping is safe; grouping wins back
//! what that costs.)
//!
//! Deliberately absent: a write of a state without its audit entry, a row that is updated without having been read, and
//! anything that only a sweeper enforces.

mod keep;
pub mod memory;
mod plan;
pub mod sql;
mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use keep::REPEATS_AFTER_END;
pub use keep::{Changes, Keep};
pub use plan::{Plan, Write, chain};
pub use wanted::Wanted;

use super::document::{Document, Kind};
use super::route::Ruling;
use crate::domain::elevation::{Elevation, Request};
use crate::domain::grant::{Grant, GrantState, Idle};
use crate::domain::id::{BackendName, EntitlementName, GrantId, LockId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer in time. Nothing was changed.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// It did not confirm a commit: the writes may be there, all of them, or none.
    #[error("the store did not confirm a commit: {0}")]
    Unconfirmed(String),
    /// It takes or gives no such row. Nothing was changed.
    #[error("the store refused: {0}")]
    Refused(String),
    /// A newer program made its tables.
    #[error(
        "the tables of the store are of version {found} and this program knows versions up to {known}: run the newer \
         leasehold, or restore the backup from before the upgrade"
    )]
    Newer {
        /// The version that was found.
        found: u64,
        /// The last version known here.
        known: u64,
    },
}

/// A request with where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// What was asked.
    #[serde(flatten)]
    pub request: Request,
    /// Where it stands.
    #[serde(flatten)]
    pub elevation: Elevation,
    /// What policy said last.
    pub ruling: Ruling,
    /// How often it changed; an approver says which one they saw.
    pub version: u64,
    /// The epoch of its task when it was asked.
    pub task_epoch: u32,
}

/// Why a grant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its time was over.
    Expired,
    /// Its last use was taken.
    Exhausted,
    /// Its holder gave it back.
    Released,
    /// A narrower or newer one took its place.
    Superseded,
    /// Somebody took it away.
    Revoked,
    /// Its task was closed.
    TaskClosed,
    /// Its holder was disabled.
    PrincipalDisabled,
    /// What it was granted under is declared no more.
    EntitlementDeleted,
    /// It went unused for too long.
    Idle,
}

impl EndReason {
    /// The reason as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Exhausted => "exhausted",
            Self::Released => "released",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
            Self::TaskClosed => "task_closed",
            Self::PrincipalDisabled => "principal_disabled",
            Self::EntitlementDeleted => "entitlement_deleted",
            Self::Idle => "idle",
        }
    }

    /// The state that a grant ended for this reason is in.
    pub fn state(self) -> GrantState {
        match self {
            Self::Expired => GrantState::Expired,
            Self::Exhausted => GrantState::Exhausted,
            Self::Released | Self::Superseded => GrantState::Released,
            Self::Revoked | Self::TaskClosed | Self::PrincipalDisabled | Self::EntitlementDeleted | Self::Idle => {
                GrantState::Revoked
            }
        }
    }
}

/// How a grant ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// Who ended it; nobody where time did.
    pub by: Option<Principal>,
    /// When.
    pub at: Timestamp,
}

/// A grant with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRow {
    /// The grant.
    #[serde(flatten)]
    pub grant: Grant,
    /// The request it came from.
    pub request: RequestId,
    /// The wider grant whose place it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub narrowed_from: Option<GrantId>,
    /// What it was granted under.
    pub entitlement: EntitlementName,
    /// Its state.
    pub state: GrantState,
    /// How it ended.
    pub ended: Option<Ended>,
    /// How many uses were taken.
    pub uses: u32,
    /// How long it may go unused, where that is limited, and when that was looked at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// Whether it was break-glass.
    pub emergency: bool,
    /// The review that break-glass demands; none where there is nothing to review.
    pub review: Option<Review>,
    /// The epoch of its task.
    pub task_epoch: u32,
    /// When it began.
    pub created_at: Timestamp,
    /// When the first of the grants began whose place it took in turn.
    pub began_at: Timestamp,
    /// The revision of its last change.
    pub revision: Revision,
}

/// The look that somebody else must take at a break-glass grant afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "review", rename_all = "snake_case")]
pub enum Review {
    /// Nobody looked yet.
    Open,
    /// Somebody did.
    Done {
        /// Who.
        by: Principal,
        /// What they say.
        note: String,
        /// When.
        at: Timestamp,
    },
}

impl Review {
    /// The state as it is written.
    pub const fn state(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Done { .. } => "done",
        }
    }
}

/// A change that sidecars must hear of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// A grant began, or became narrower.
    Grant(Box<Grant>),
    /// A grant ended.
    End {
        /// Which.
        id: GrantId,
        /// On which backend.
        backend: BackendName,
        /// In which state it is.
        state: GrantState,
    },
    /// A lock is in force.
    Lock(Box<Lock>),
    /// A lock was lifted.
    Unlock {
        /// Which.
        id: LockId,
    },
    /// Documents changed.
    Declared,
}

/// An entry of the control plane's own record. Each carries the hash of the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Dense, from 1.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Who did it; `leasehold` where time or policy did.
    pub actor: String,
    /// What happened, such as `grant.revoked`.
    pub event: String,
    /// To what.
    pub subject: String,
    /// The rest of it.
    pub detail: Value,
    /// The hash of the entry before, in hex; zeros for the first.
    pub previous: String,
    /// The hash of this one, in hex.
    pub hash: String,
}

/// How a grant was used. No state: it has no revision and no audit entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// When for the last time.
    pub last_used: Timestamp,
    /// How often.
    pub calls: u64,
}

impl Activity {
    /// The same after more calls.
    pub fn add(&mut self, last: Timestamp, calls: u64) {
        self.last_used = self.last_used.max(last);
        self.calls = self.calls.saturating_add(calls);
    }
}

/// What an idempotency key was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotent {
    /// The hash of what was asked.
    pub digest: String,
    /// What came of it.
    pub request: RequestId,
}

/// Which grants are meant: all criteria that are given must hold. None given means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// This one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    /// Those of this principal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// Those on this backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendName>,
    /// Those under this entitlement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<EntitlementName>,
    /// Those of this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
}

impl Selector {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether that grant is meant.
    pub fn selects(&self, row: &GrantRow) -> bool {
        !self.is_empty()
            && self.grant.as_ref().is_none_or(|id| *id == row.grant.id)
            && self.principal.as_ref().is_none_or(|p| *p == row.grant.principal)
            && self.backend.as_ref().is_none_or(|b| *b == row.grant.backend)
            && self.entitlement.as_ref().is_none_or(|e| *e == row.entitlement)
            && self.task.as_ref().is_none_or(|t| Some(t) == row.grant.task.as_ref())
    }
}

/// Which rows of a list are wanted.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Only in this state.
    pub state: Option<String>,
    /// Only of this principal (requester, subject or holder).
    pub principal: Option<Principal>,
    /// Only after this id; ids grow with time.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// How far the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The last revision.
    pub revision: Revision,
    /// The last audit sequence.
    pub sequence: u64,
    /// The hash of the last audit entry.
    pub audit_hash: String,
    /// How often documents changed.
    pub generation: u64,
}

impl Default for Head {
    fn default() -> Self {
        Self { revision: Revision(0), sequence: 0, audit_hash: "0".repeat(64), generation: 0 }
    }
}

type Read<T> = Result<T, StoreError>;

/// Rows as one transaction, or one moment, sees them.
pub trait Rows: Send {
    /// How far the store is.
    fn head(&mut self) -> impl Future<Output = Read<Head>> + Send;
    /// Every document.
    fn documents(&mut self) -> impl Future<Output = Read<Vec<Document>>> + Send;
    /// A request.
    fn request(&mut self, id: &RequestId) -> impl Future<Output = Read<Option<RequestRow>>> + Send;
    /// A grant.
    fn grant(&mut self, id: &GrantId) -> impl Future<Output = Read<Option<GrantRow>>> + Send;
    /// How many active grants and pending requests a principal has of an entitlement.
    fn held(&mut self, principal: &Principal, entitlement: &EntitlementName) -> impl Future<Output = Read<u32>> + Send;
    /// How many active grants a principal holds, of whatever entitlements; counted no further than `most`.
    fn holds(&mut self, principal: &Principal, most: u32) -> impl Future<Output = Read<u32>> + Send {
        let state = Some(GrantState::Active.as_str().to_owned());
        let page = Page { state, principal: Some(principal.clone()), after: None, limit: most };
        async move { Ok(u32::try_from(self.grants(&page).await?.len()).unwrap_or(u32::MAX)) }
    }
    /// What a caller's idempotency key was used for.
    fn idempotent(&mut self, caller: &Principal, key: &str) -> impl Future<Output = Read<Option<Idempotent>>> + Send;
    /// Whether a use of a grant was taken already.
    fn used(&mut self, grant: &GrantId, use_id: &str) -> impl Future<Output = Read<bool>> + Send;
    /// A task.
    fn task(&mut self, reference: &TaskRef) -> impl Future<Output = Read<Option<Task>>> + Send;
    /// Every lock.
    fn locks(&mut self) -> impl Future<Output = Read<Vec<Lock>>> + Send;
    /// Active grants that are meant.
    fn selected(&mut self, selector: &Selector) -> impl Future<Output = Read<Vec<GrantRow>>> + Send;
    /// Pending requests of a task.
    fn pending_of(&mut self, task: &TaskRef) -> impl Future<Output = Read<Vec<RequestRow>>> + Send;
    /// Active grants whose end has come.
    fn grants_due(&mut self, now: Timestamp, limit: u32) -> impl Future<Output = Read<Vec<GrantRow>>> + Send;
    /// Active grants that went unused for too long, as far as their rows know.
    fn grants_idle(&mut self, now: Timestamp, limit: u32) -> impl Future<Output = Read<Vec<GrantRow>>> + Send;
    /// How grants were used; those that were not are left out.
    fn activity(&mut self, ids: &[GrantId]) -> impl Future<Output = Read<HashMap<GrantId, Activity>>> + Send;
    /// Pending requests whose window is over.
    fn requests_due(&mut self, now: Timestamp, limit: u32) -> impl Future<Output = Read<Vec<RequestRow>>> + Send;
    /// A page of requests.
    fn requests(&mut self, page: &Page) -> impl Future<Output = Read<Vec<RequestRow>>> + Send;
    /// A page of grants.
    fn grants(&mut self, page: &Page) -> impl Future<Output = Read<Vec<GrantRow>>> + Send;
    /// Changes after a revision.
    fn changes(&mut self, after: Revision, limit: u32) -> impl Future<Output = Read<Changes>> + Send;
    /// Audit entries from a sequence on.
    fn audit(&mut self, from: u64, limit: u32) -> impl Future<Output = Read<Vec<AuditEntry>>> + Send;
    /// Every kind of document by its kind and name.
    fn document(&mut self, kind: Kind, name: &str) -> impl Future<Output = Read<Option<Document>>> + Send {
        let name = name.to_owned();
        async move {
            let all = self.documents().await?;
            Ok(all.into_iter().find(|document| document.kind == kind && document.metadata.name == name))
        }
    }
}

/// A transaction: rows, and writes that are seen by what follows in it.
pub trait Transaction: Rows {
    /// Reads at once what commands are going to read one by one. What they see is the same without it.
    fn prefetch(&mut self, wanted: Wanted) -> impl Future<Output = Read<()>> + Send {
        drop(wanted);
        async { Ok(()) }
    }
    /// Applies writes; what follows sees them.
    fn apply(&mut self, writes: Vec<Write>) -> impl Future<Output = Read<()>> + Send;
    /// Makes everything durable.
    fn commit(self) -> impl Future<Output = Read<()>> + Send;
}

/// Something that keeps rows.
pub trait Store: Send + Sync + 'static {
    /// Its transactions.
    type Transaction<'s>: Transaction
    where
        Self: 's;
    /// Its views.
    type View<'s>: Rows
    where
        Self: 's;
    /// The one transaction that runs, over all replicas; waits for the one before it. Dropping it undoes it.
    fn begin(&self) -> impl Future<Output = Read<Self::Transaction<'_>>> + Send;
    /// A look at what is committed: one moment, however much is read.
    fn view(&self) -> impl Future<Output = Read<Self::View<'_>>> + Send;
    /// Takes or keeps a lease: whether `holder` has it until `ttl` from `now`.
    fn lease(&self, name: &str, holder: &str, now: Timestamp, ttl: Duration)
    -> impl Future<Output = Read<bool>> + Send;
    /// Adds to how grants were used. After an error some of it may be written.
    fn used(&self, used: BTreeMap<GrantId, Activity>) -> impl Future<Output = Read<()>> + Send;
    /// Removes what nobody needs any more, a bounded piece of it: whether there is more.
    fn compact(&self, now: Timestamp, keep: Keep) -> impl Future<Output = Read<bool>> + Send;
    /// Whether other control planes write to it too.
    fn is_shared(&self) -> bool {
        false
    }
    /// Comes when another control plane may have written; never where there is none.
    fn stirred(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
    /// Tells other control planes that something was written. A hint: they look by themselves too.
    fn stir(&self) {}
}
