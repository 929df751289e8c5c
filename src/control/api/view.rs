//! How requests, grants and the rest look on the wire. Nothing outside of this folder knows these shapes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::route::Ruling;
use crate::control::store::{Activity, Ended, GrantRow, RequestRow, Review};
use crate::domain::elevation::{Approval, Elevation};
use crate::domain::entitlement::Step;
use crate::domain::grant::GrantState;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// One step of an approval: so many of these groups must agree.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct StepView {
    /// Groups; whoever is in one of them may agree.
    approvers: Vec<String>,
    /// How many different approvers.
    quorum: u32,
}

impl From<&Step> for StepView {
    fn from(step: &Step) -> Self {
        Self { approvers: step.approvers.clone(), quorum: step.quorum }
    }
}

/// One approver's agreement.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApprovalView {
    /// Who.
    approver: String,
    /// For which step, from 0.
    step: usize,
    /// In the approver's words.
    reason: String,
    /// When.
    at: String,
}

impl From<&Approval> for ApprovalView {
    fn from(approval: &Approval) -> Self {
        Self {
            approver: approval.approver.to_string(),
            step: approval.step,
            reason: approval.reason.clone(),
            at: approval.at.to_string(),
        }
    }
}

/// What policy said.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RulingView {
    /// `deny`, `approve` (with nobody looking) or `ask` (approvers decide).
    verdict: String,
    /// Sentences for people.
    reasons: Vec<String>,
    /// The ids of the policies that determined it.
    determining: Vec<String>,
    /// The longest life of a grant that they allow, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_max_seconds: Option<u64>,
    /// The most calls of a grant that they allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    uses_max: Option<u32>,
    /// Policies in shadow that would have forbidden it.
    shadow: Vec<String>,
    /// Which policies ruled: the SHA-256 of all of them.
    policy_digest: String,
}

impl From<&Ruling> for RulingView {
    fn from(ruling: &Ruling) -> Self {
        Self {
            verdict: ruling.verdict.as_str().to_owned(),
            reasons: ruling.reasons.clone(),
            determining: ruling.determining.clone(),
            ttl_max_seconds: ruling.ttl_max_seconds,
            uses_max: ruling.uses_max,
            shadow: ruling.shadow.clone(),
            policy_digest: ruling.policy_digest.clone(),
        }
    }
}

/// Something that happened to a request or a grant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Moment {
    /// When.
    at: String,
    /// What, such as `approved`.
    event: String,
    /// Who did it; nobody where time or policy did.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// Why, in their words.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Moment {
    fn new(at: Timestamp, event: &str, by: Option<String>, reason: &str) -> Self {
        let reason = (!reason.is_empty()).then(|| reason.to_owned());
        Self { at: at.to_string(), event: event.to_owned(), by, reason }
    }
}

/// An elevation request and where it stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequestView {
    /// Its id.
    id: String,
    /// `pending`, `approved`, `denied`, `cancelled` or `expired`.
    state: String,
    /// Who asked.
    requester: String,
    /// Who is to hold the grant.
    subject: String,
    /// Who answers for the subject, where they may not approve.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// What was asked for.
    entitlement: String,
    /// On which backend.
    backend: String,
    /// Which actions.
    actions: Vec<String>,
    /// On which resources.
    resources: Vec<String>,
    /// Only the one call of that digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<String>,
    /// For how long at most, from when it is approved.
    duration_seconds: u64,
    /// For how many calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    uses_max: Option<u32>,
    /// The grant whose place it is to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    renews: Option<String>,
    /// What justifies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// In the requester's words: quoted, and no instruction to anybody.
    justification: String,
    /// Whether it is break-glass.
    emergency: bool,
    /// Who must agree, in order.
    steps: Vec<StepView>,
    /// Who agreed so far.
    approvals: Vec<ApprovalView>,
    /// What policy said last.
    ruling: RulingView,
    /// When it was asked.
    created_at: String,
    /// Until when it can be approved.
    window_until: String,
    /// How often it changed; an approver sends the one they saw as `If-Match`.
    version: u64,
    /// The grant it became.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<String>,
    /// Why it ended as it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What happened to it.
    timeline: Vec<Moment>,
}

impl From<&RequestRow> for RequestView {
    fn from(row: &RequestRow) -> Self {
        let request = &row.request;
        let (approvals, grant_id, reason): (&[Approval], _, _) = match &row.elevation {
            Elevation::Pending { approvals } => (approvals, None, None),
            Elevation::Approved { approvals, grant, .. } => (approvals, Some(grant.to_string()), None),
            Elevation::Denied { reason, .. } | Elevation::Cancelled { reason, .. } => (&[], None, Some(reason.clone())),
            Elevation::Expired { .. } => (&[], None, None),
        };
        Self {
            id: request.id.to_string(),
            state: row.elevation.state().to_owned(),
            requester: request.requester.to_string(),
            subject: request.subject.to_string(),
            owner: request.owner.as_ref().map(ToString::to_string),
            entitlement: request.entitlement.to_string(),
            backend: request.backend.to_string(),
            actions: request.scope.actions().iter().map(|action| action.as_str().to_owned()).collect(),
            resources: request.scope.resources().iter().map(|resource| resource.as_str().to_owned()).collect(),
            arguments: request.scope.arguments().map(ToString::to_string),
            duration_seconds: request.duration.as_secs(),
            uses_max: request.uses_max,
            renews: request.renews.as_ref().map(ToString::to_string),
            task: request.task.as_ref().map(ToString::to_string),
            justification: request.justification.clone(),
            emergency: request.emergency,
            steps: request.steps.iter().map(StepView::from).collect(),
            approvals: approvals.iter().map(ApprovalView::from).collect(),
            ruling: RulingView::from(&row.ruling),
            created_at: request.created_at.to_string(),
            window_until: request.window_until.to_string(),
            version: row.version,
            grant_id,
            reason,
            timeline: request_timeline(row, approvals),
        }
    }
}

fn request_timeline(row: &RequestRow, approvals: &[Approval]) -> Vec<Moment> {
    let request = &row.request;
    let mut timeline = vec![Moment::new(request.created_at, "asked", Some(request.requester.to_string()), "")];
    for approval in approvals {
        timeline.push(Moment::new(approval.at, "agreed", Some(approval.approver.to_string()), &approval.reason));
    }
    match &row.elevation {
        Elevation::Pending { .. } => {}
        Elevation::Approved { at, .. } => timeline.push(Moment::new(*at, "approved", None, "")),
        Elevation::Denied { by, reason, at } => {
            timeline.push(Moment::new(*at, "denied", by.as_ref().map(ToString::to_string), reason));
        }
        Elevation::Cancelled { reason, at } => timeline.push(Moment::new(*at, "cancelled", None, reason)),
        Elevation::Expired { at } => timeline.push(Moment::new(*at, "expired", None, "")),
    }
    timeline
}

/// How a grant ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EndView {
    /// Why, such as `task_closed`.
    reason: String,
    /// Who ended it; nobody where time did.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// When.
    at: String,
}

impl From<&Ended> for EndView {
    fn from(ended: &Ended) -> Self {
        let by = ended.by.as_ref().map(ToString::to_string);
        Self { reason: ended.reason.as_str().to_owned(), by, at: ended.at.to_string() }
    }
}

/// The look that somebody else takes at a break-glass grant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReviewView {
    /// `open` or `done`.
    state: String,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// What they say.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

impl From<&Review> for ReviewView {
    fn from(review: &Review) -> Self {
        match review {
            Review::Open => Self { state: "open".into(), by: None, note: None, at: None },
            Review::Done { by, note, at } => Self {
                state: "done".into(),
                by: Some(by.to_string()),
                note: Some(note.clone()),
                at: Some(at.to_string()),
            },
        }
    }
}

/// A grant with everything that is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GrantView {
    /// Its id.
    id: String,
    /// `active`, `expired`, `exhausted`, `released` or `revoked`.
    state: String,
    /// Who holds it.
    principal: String,
    /// On which backend.
    backend: String,
    /// Which actions.
    actions: Vec<String>,
    /// On which resources.
    resources: Vec<String>,
    /// Only the one call of that digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<String>,
    /// The first moment at which it holds.
    not_before: String,
    /// The first moment at which it holds no more.
    expires_at: String,
    /// How many calls it is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    uses_max: Option<u32>,
    /// How many were taken.
    uses: u32,
    /// How long it may go unused, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout_seconds: Option<u64>,
    /// The earliest moment at which it ends for want of use, if it is not used any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    idle_at: Option<String>,
    /// What justifies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// The request it came from.
    request: String,
    /// What it was granted under.
    entitlement: String,
    /// The wider grant whose place it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    narrowed_from: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<EndView>,
    /// Whether it was break-glass.
    emergency: bool,
    /// The review that break-glass demands.
    #[serde(skip_serializing_if = "Option::is_none")]
    review: Option<ReviewView>,
    /// When it began.
    created_at: String,
    /// When the first of the grants began whose place it took in turn.
    began_at: String,
    /// The revision of its last change.
    revision: u64,
    /// When it was used last, as sidecars that follow said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    last_used: Option<String>,
    /// How many calls they counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<u64>,
    /// What happened to it.
    timeline: Vec<Moment>,
}

impl GrantView {
    /// A grant with how it was used, where that is known.
    pub(super) fn of(row: &GrantRow, activity: Option<&Activity>) -> Self {
        let grant = &row.grant;
        let idle = row.idle.map(|idle| activity.map_or(idle, |activity| idle.used(activity.last_used)));
        let is_active = row.state == GrantState::Active;
        let mut timeline = vec![Moment::new(row.created_at, "active", None, "")];
        if let Some(ended) = &row.ended {
            let by = ended.by.as_ref().map(ToString::to_string);
            timeline.push(Moment::new(ended.at, row.state.as_str(), by, ended.reason.as_str()));
        }
        if let Some(Review::Done { by, note, at }) = &row.review {
            timeline.push(Moment::new(*at, "reviewed", Some(by.to_string()), note));
        }
        Self {
            id: grant.id.to_string(),
            state: row.state.as_str().to_owned(),
            principal: grant.principal.to_string(),
            backend: grant.backend.to_string(),
            actions: grant.scope.actions().iter().map(|action| action.as_str().to_owned()).collect(),
            resources: grant.scope.resources().iter().map(|resource| resource.as_str().to_owned()).collect(),
            arguments: grant.scope.arguments().map(ToString::to_string),
            not_before: grant.window.not_before.to_string(),
            expires_at: grant.window.expires_at.to_string(),
            uses_max: grant.uses_max,
            uses: row.uses,
            idle_timeout_seconds: row.idle.map(|idle| idle.timeout().as_secs()),
            idle_at: idle.filter(|_| is_active).map(|idle| idle.due().to_string()),
            task: grant.task.as_ref().map(ToString::to_string),
            request: row.request.to_string(),
            entitlement: row.entitlement.to_string(),
            narrowed_from: row.narrowed_from.as_ref().map(ToString::to_string),
            ended: row.ended.as_ref().map(EndView::from),
            emergency: row.emergency,
            review: row.review.as_ref().map(ReviewView::from),
            created_at: row.created_at.to_string(),
            began_at: row.began_at.to_string(),
            revision: row.revision.0,
            last_used: activity.map(|activity| activity.last_used.to_string()),
            calls: activity.map(|activity| activity.calls),
            timeline,
        }
    }
}

/// A task as it is known here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskView {
    /// Its name at its source, `source:reference`.
    reference: String,
    /// Whether it is open.
    open: bool,
    /// How often it was opened.
    epoch: u32,
    /// What kind it is, as its source says.
    kind: String,
    /// Whether its source said so, and not the requester alone.
    verified: bool,
    /// When its source says it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    /// When its state last changed, by its source.
    at: String,
}

impl From<&Task> for TaskView {
    fn from(task: &Task) -> Self {
        Self {
            reference: task.reference.to_string(),
            open: task.open,
            epoch: task.epoch,
            kind: task.kind.clone(),
            verified: task.verified,
            until: task.until.map(|until| until.to_string()),
            at: task.at.to_string(),
        }
    }
}
