//! Approvers decide, and requesters take back.

use serde_json::json;

use super::{Failed, Reply, Work};
use crate::control::catalogue::Known;
use crate::control::refusal::{Kind, Refusal};
use crate::control::route::{Ruling, Verdict};
use crate::control::store::{RequestRow, Rows};
use crate::domain::elevation::{Elevation, Event, Refused, Request};
use crate::domain::entitlement::{ArgumentRule, TaskRule};
use crate::domain::id::{GrantId, RequestId};
use crate::domain::task::Task;

/// The grant of a request has its id's end: there is one of each.
fn grant_of(request: &RequestId) -> Result<GrantId, Refusal> {
    let end = request.as_str().trim_start_matches("req_");
    GrantId::new(&format!("grt_{end}")).map_err(|error| Refusal::invalid("id", error))
}

fn refused(error: Refused) -> Refusal {
    match error {
        Refused::Ended(_) => Refusal::conflict("already_decided", error),
        Refused::TooLate | Refused::TooEarly => Refusal::conflict("window", error),
        Refused::SelfApproval => Refusal::forbidden("self_approval", error),
        Refused::OwnerApproval => Refusal::forbidden("approver_not_owner", error),
        Refused::NotAnApprover => Refusal::forbidden("not_an_approver", error),
    }
}

/// A pending request by what policy demands now, where that is more than it was: more approvers, less time, fewer uses.
fn tightened(row: RequestRow, now: Option<&Ruling>) -> RequestRow {
    let Some(now) = now.filter(|ruling| ruling.verdict != Verdict::Deny && row.elevation.is_pending()) else {
        return row;
    };
    let mut ruling = now.clone();
    ruling.ttl_max_seconds = ruling.ttl_max_seconds.into_iter().chain(row.ruling.ttl_max_seconds).min();
    ruling.uses_max = ruling.uses_max.into_iter().chain(row.ruling.uses_max).min();
    let request = Request { steps: ruling.steps.clone(), ..row.request };
    RequestRow { request, ruling, ..row }
}

impl<R: Rows> Work<'_, R> {
    pub(super) async fn approve(&mut self, id: &RequestId, seen: u64, reason: &str) -> Result<Reply, Failed> {
        let approver = self.known()?;
        let row = self.request_row(id).await?;
        let grant = grant_of(id)?;
        let task = match &row.request.task {
            Some(reference) => self.rows.task(reference).await?,
            None => None,
        };
        let ruling = self.ruled_now(&row.request, task.as_ref());
        let row = tightened(row, ruling.as_ref());
        let event = Event::Approve {
            approver: approver.principal.clone(),
            groups: approver.groups.clone(),
            reason: reason.to_owned(),
            grant: grant.clone(),
        };
        // What no policy can permit is refused first, and with its own words.
        let after = row.elevation.apply(&row.request, event, self.now).map_err(refused)?;
        if after == row.elevation {
            return Ok(Reply::Request(Box::new(row), None));
        }
        if row.version != seen {
            let detail = format!("you saw version {seen} and it is version {}: look at it again", row.version);
            return Err(Refusal::new(Kind::Changed, "changed", detail).into());
        }
        self.policy_permits(&approver, &row)?;
        let renewed = self.still_renewed(&row.request).await?;
        let forbidden = match &renewed {
            Err(reason) => Some(reason.clone()),
            Ok(_) => self.forbidden_by_now(&row, task.as_ref(), ruling.as_ref()).await?,
        };
        if let Some(reason) = forbidden {
            let forbidden = row.elevation.apply(&row.request, Event::Forbid { reason: reason.clone() }, self.now);
            let row = RequestRow { elevation: forbidden.map_err(refused)?, ..row };
            let detail = json!({"reason": reason, "at": "approval", "approver": approver.principal});
            let row = self.put_request(row, "request.denied", detail);
            return Ok(Reply::Request(Box::new(row), None));
        }
        let Ok(renewed) = renewed else { return Err(Refusal::conflict("ended", "what it renews has ended").into()) };
        let approved = matches!(after, Elevation::Approved { .. });
        if approved
            && row.request.renews.is_none()
            && let Some(subject) = self.catalogue.know(&row.request.subject)
        {
            // Others may have been approved since it was asked; it waits until one of them ends.
            self.check_grants_max(&subject).await?;
        }
        let kind = if approved { "request.approved" } else { "request.agreed" };
        let row = RequestRow { elevation: after, ..row };
        let row = self.put_request(row, kind, json!({"approver": approver.principal, "reason": reason, "seen": seen}));
        let grant = approved.then(|| Box::new(self.issue(&row, grant, task.as_ref(), renewed)));
        Ok(Reply::Request(Box::new(row), grant))
    }

    fn policy_permits(&self, approver: &Known, row: &RequestRow) -> Result<(), Refusal> {
        let people = [&row.request.requester, &row.request.subject].map(|person| self.catalogue.know(person));
        let people: Vec<_> = people.iter().flatten().map(Known::actor).collect();
        let answer = self.catalogue.policies.may_approve(approver.actor(), &row.request, &people, self.now);
        if answer.allowed {
            return Ok(());
        }
        Err(Refusal::forbidden("policy", format_args!("policy forbids this approval: {}", answer.reasons.join("; "))))
    }

    /// Why the request, good when it was asked, is not any more.
    async fn forbidden_by_now(
        &mut self,
        row: &RequestRow,
        task: Option<&Task>,
        ruling: Option<&Ruling>,
    ) -> Result<Option<String>, Failed> {
        if let Some(lock) = self.locked(&row.request).await? {
            return Ok(Some(format!("a lock stops it: {}", lock.message)));
        }
        if task.is_some_and(|task| !task.is_open(self.now) || task.epoch != row.task_epoch) {
            return Ok(Some("its task was closed".into()));
        }
        if self.catalogue.know(&row.request.subject).is_none_or(|known| known.disabled) {
            return Ok(Some("the principal is not known any more, or disabled".into()));
        }
        let Some(entitlement) = self.catalogue.entitlements.get(&row.request.entitlement) else {
            return Ok(Some("the entitlement is declared no more".into()));
        };
        if entitlement.task == TaskRule::Verified && !task.is_some_and(|task| task.verified) {
            return Ok(Some("the source of its task has not said that it is open".into()));
        }
        if !row.request.scope.is_within(&entitlement.scope) || entitlement.backend != row.request.backend {
            return Ok(Some("the entitlement became narrower than the request".into()));
        }
        if entitlement.arguments == ArgumentRule::Required && row.request.scope.arguments().is_none() {
            return Ok(Some("the entitlement is for single calls now, and it names none".into()));
        }
        let denied = ruling.filter(|ruling| ruling.verdict == Verdict::Deny);
        Ok(denied.map(|ruling| format!("policy changed: {}", ruling.reasons.join("; "))))
    }

    /// What policy says to the request now; nothing where the subject is not known any more.
    fn ruled_now(&self, request: &Request, task: Option<&Task>) -> Option<Ruling> {
        let subject = self.catalogue.know(&request.subject)?;
        Some(self.rule(request, &subject, task))
    }

    pub(super) async fn deny(&mut self, id: &RequestId, reason: &str) -> Result<Reply, Failed> {
        let approver = self.known()?;
        let row = self.request_row(id).await?;
        let event = Event::Deny {
            approver: approver.principal.clone(),
            groups: approver.groups.clone(),
            reason: reason.to_owned(),
        };
        let elevation = row.elevation.apply(&row.request, event, self.now).map_err(refused)?;
        let detail = json!({"approver": approver.principal, "reason": reason});
        let row = self.put_request(RequestRow { elevation, ..row }, "request.denied", detail);
        Ok(Reply::Request(Box::new(row), None))
    }

    pub(super) async fn cancel(&mut self, id: &RequestId, reason: &str) -> Result<Reply, Failed> {
        let row = self.request_row(id).await?;
        let own = *self.actor == row.request.requester || *self.actor == row.request.subject;
        if !own && !self.administers("admin:revoke") {
            return Err(Refusal::not_found("request", id).into());
        }
        let event = Event::Cancel { reason: reason.to_owned() };
        let elevation = row.elevation.apply(&row.request, event, self.now).map_err(refused)?;
        let row = self.put_request(RequestRow { elevation, ..row }, "request.cancelled", json!({"reason": reason}));
        Ok(Reply::Request(Box::new(row), None))
    }
}
