//! What the commands of a batch are going to read.

use std::collections::BTreeSet;

use crate::domain::id::{EntitlementName, GrantId, RequestId, TaskRef};
use crate::domain::principal::Principal;

/// Keys of rows that are going to be read. Each is named once, whoever asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Requests, with their tasks, what they renew and what their subjects hold.
    pub requests: BTreeSet<RequestId>,
    /// Grants.
    pub grants: BTreeSet<GrantId>,
    /// Tasks.
    pub tasks: BTreeSet<TaskRef>,
    /// Idempotency keys of callers.
    pub keys: BTreeSet<(Principal, String)>,
    /// Uses of grants.
    pub uses: BTreeSet<(GrantId, String)>,
    /// How many active grants a principal holds.
    pub holders: BTreeSet<Principal>,
    /// How many of an entitlement a principal has.
    pub held: BTreeSet<(Principal, EntitlementName)>,
}
