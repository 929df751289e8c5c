//! What a caller may see and run.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::Api;
use super::caller::Caller;
use super::problem::Problem;
use crate::control::catalogue::LOCAL_ADMIN;
use crate::control::command::{Command, Reply};
use crate::control::store::RequestRow;
use crate::domain::elevation::{Elevation, Event};
use crate::domain::grant::Grant;
use crate::domain::id::GrantId;
use crate::domain::principal::Principal;
use crate::domain::time::Timestamp;

impl Caller {
    /// Whether an admin policy lets the caller do that.
    pub(super) fn administers(&self, action: &str, now: Timestamp) -> bool {
        self.principal.as_str() == LOCAL_ADMIN
            || self
                .known()
                .is_ok_and(|known| self.catalogue.policies.may_administer(known.actor(), action, now).allowed)
    }

    /// As [`Caller::administers`].
    ///
    /// # Errors
    /// It does not.
    pub(super) fn must_administer(&self, action: &str, now: Timestamp) -> Result<(), Problem> {
        if self.administers(action, now) {
            return Ok(());
        }
        let detail = format!("`{}` may not `{action}`: no admin policy permits it", self.principal);
        Err(Problem::new(StatusCode::FORBIDDEN, "not_an_admin", detail))
    }

    fn answers_for(&self, principal: &Principal) -> bool {
        let owner = self.catalogue.know(principal).and_then(|known| known.owner);
        owner.as_deref() == Some(self.principal.as_str())
    }

    /// Whether the caller asked, is meant, or answers for who is.
    pub(super) fn is_party_to(&self, row: &RequestRow) -> bool {
        self.principal == row.request.requester
            || self.principal == row.request.subject
            || self.answers_for(&row.request.subject)
    }

    /// Whether the caller's agreement would count now.
    pub(super) fn can_approve(&self, row: &RequestRow, now: Timestamp) -> bool {
        let (Ok(known), Ok(grant)) = (self.known(), GrantId::new("grt_none")) else { return false };
        let event = Event::Approve {
            approver: self.principal.clone(),
            groups: known.groups.clone(),
            reason: String::new(),
            grant,
        };
        row.elevation.apply(&row.request, event, now).is_ok_and(|after| after != row.elevation)
    }

    /// Whether the caller is in a group that one of the steps wants.
    fn is_wanted_by(&self, row: &RequestRow) -> bool {
        self.known().is_ok_and(|known| row.request.steps.iter().any(|step| step.wants(&known.groups)))
    }

    /// Whether the caller agreed to it.
    pub(super) fn approved(&self, row: &RequestRow) -> bool {
        match &row.elevation {
            Elevation::Pending { approvals } | Elevation::Approved { approvals, .. } => {
                approvals.iter().any(|approval| approval.approver == self.principal)
            }
            Elevation::Denied { by, .. } => by.as_ref() == Some(&self.principal),
            _ => false,
        }
    }

    /// Whether the request is the caller's to see.
    pub(super) fn sees_request(&self, row: &RequestRow, now: Timestamp) -> bool {
        self.is_party_to(row) || self.approved(row) || self.is_wanted_by(row) || self.administers("admin:read", now)
    }

    /// Whether the caller holds the grant or answers for who does.
    pub(super) fn holds(&self, grant: &Grant) -> bool {
        self.principal == grant.principal || self.answers_for(&grant.principal)
    }
}

impl Api {
    /// Runs a command of the caller's, or looks at what would come of it.
    pub(super) async fn run(&self, caller: &Caller, command: Command, trial: bool) -> Result<Reply, Problem> {
        let actor = caller.principal.clone();
        let reply = match trial {
            true => self.engine.try_out(actor, command).await,
            false => self.engine.run(actor, command).await,
        };
        Ok(reply?)
    }

    /// Now, by the wall clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now().wall
    }
}

/// A command was answered with something else than it is answered with.
pub(super) fn unexpected() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the control plane lost its thread: tell its operator")
}

/// An answer that carries its version.
pub(super) fn with_version<T: Serialize>(status: StatusCode, version: u64, body: T) -> Response {
    let mut response = (status, Json(body)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
