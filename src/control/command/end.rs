//! Grants become narrower, are used up, and end.

use serde_json::json;

use super::{Failed, Reply, TaskSaid, Work};
use crate::control::refusal::Refusal;
use crate::control::store::{
    Change, EndReason, Ended, GrantRow, REPEATS_AFTER_END, RequestRow, Review, Rows, Selector, Write,
};
use crate::domain::elevation::Event;
use crate::domain::entitlement::{Narrower, reduce};
use crate::domain::grant::{GrantState, Idle};
use crate::domain::id::GrantId;
use crate::domain::task::Task;
use crate::sync::server::Use;

/// Most that one sweep records; the next takes the rest.
const SWEEP_MAX: u32 = 500;

impl<R: Rows> Work<'_, R> {
    /// Ends one grant. The only place where one ends.
    pub(super) fn end(&mut self, row: GrantRow, reason: EndReason) -> GrantRow {
        self.end_because(row, reason, "")
    }

    fn end_because(&mut self, row: GrantRow, reason: EndReason, words: &str) -> GrantRow {
        // What time had ended already, nobody ends.
        let over = row.grant.window.expires_at <= self.now && reason != EndReason::Exhausted;
        let reason = if over { EndReason::Expired } else { reason };
        let by = (!matches!(reason, EndReason::Expired | EndReason::Exhausted | EndReason::Idle))
            .then(|| self.actor.clone());
        let ended = Ended { reason, by, at: self.now };
        let state = reason.state();
        let (id, backend) = (row.grant.id.clone(), row.grant.backend.clone());
        let detail =
            if words.is_empty() { json!({"reason": reason}) } else { json!({"reason": reason, "words": words}) };
        let row = GrantRow { state, ended: Some(ended), ..row };
        self.put_grant(row, Change::End { id, backend, state }, &format!("grant.{state}"), detail)
    }

    pub(super) async fn release(&mut self, id: &GrantId) -> Result<Reply, Failed> {
        let row = self.grant_row(id).await?;
        if row.grant.principal != *self.actor {
            return Err(Refusal::not_found("grant", id).into());
        }
        // Said twice it is done once.
        if row.state == GrantState::Active {
            self.end(row, EndReason::Released);
            return Ok(Reply::Ended(vec![id.clone()]));
        }
        Ok(Reply::Ended(Vec::new()))
    }

    pub(super) async fn revoke(&mut self, selector: &Selector, reason: &str) -> Result<Reply, Failed> {
        if selector.is_empty() {
            return Err(
                Refusal::invalid("empty_selector", "say which grants: `grant`, `principal`, `backend`, …").into()
            );
        }
        let rows = self.rows.selected(selector).await?;
        if !self.administers("admin:revoke") && !self.approved_all(&rows).await? {
            return Err(match &selector.grant {
                Some(id) => Refusal::not_found("grant", id),
                None => Refusal::forbidden("not_an_admin", "only an admin, or who approved them, revokes grants"),
            }
            .into());
        }
        let ids = rows.iter().map(|row| row.grant.id.clone()).collect();
        for row in rows {
            self.end_because(row, EndReason::Revoked, reason);
        }
        Ok(Reply::Ended(ids))
    }

    /// Whether the actor is among those who approved each of these.
    async fn approved_all(&mut self, rows: &[GrantRow]) -> Result<bool, Failed> {
        for row in rows {
            let request = self.rows.request(&row.request).await?;
            let approved = request.is_some_and(|request| match request.elevation {
                crate::domain::elevation::Elevation::Approved { approvals, .. } => {
                    approvals.iter().any(|approval| approval.approver == *self.actor)
                }
                _ => false,
            });
            if !approved {
                return Ok(false);
            }
        }
        Ok(!rows.is_empty())
    }

    pub(super) async fn reduce(&mut self, id: &GrantId, to: Narrower) -> Result<Reply, Failed> {
        let row = self.grant_row(id).await?;
        let own = row.grant.principal == *self.actor;
        if !own && !self.administers("admin:revoke") && !self.approved_all(std::slice::from_ref(&row)).await? {
            return Err(Refusal::not_found("grant", id).into());
        }
        if row.state != GrantState::Active {
            return Err(Refusal::conflict("ended", format_args!("grant `{id}` is {}", row.state)).into());
        }
        let mut narrowed = reduce(&row.grant, to).map_err(|error| Refusal::invalid("would_widen", error))?;
        if narrowed.window.expires_at <= self.now || narrowed.uses_max.is_some_and(|uses| uses <= row.uses) {
            return Err(Refusal::invalid("would_end", "that leaves nothing of it: release or revoke it instead").into());
        }
        if narrowed.scope == row.grant.scope {
            let row = GrantRow { grant: narrowed.clone(), ..row };
            let detail = json!({"grant": narrowed});
            let row = self.put_grant(row, Change::Grant(Box::new(narrowed)), "grant.narrowed", detail);
            return Ok(Reply::Grant(Box::new(row)));
        }
        // A grant's scope never changes under its id: a narrower one takes its place in the same transaction.
        narrowed.id = successor(id)?;
        narrowed.uses_max = narrowed.uses_max.map(|uses| uses - row.uses);
        let next = GrantRow {
            grant: narrowed.clone(),
            narrowed_from: Some(id.clone()),
            uses: 0,
            idle: row.idle.map(|idle| Idle::new(idle.timeout(), self.now)),
            created_at: self.now,
            ..row.clone()
        };
        let detail = json!({"grant": narrowed, "narrowed_from": id, "request": row.request});
        self.end(row, EndReason::Superseded);
        let next = self.put_grant(next, Change::Grant(Box::new(narrowed)), "grant.active", detail);
        Ok(Reply::Grant(Box::new(next)))
    }

    pub(super) async fn consume(&mut self, id: &GrantId, use_id: &str) -> Result<Reply, Failed> {
        self.must_administer("admin:consume")?;
        if use_id.is_empty() || use_id.len() > 128 {
            return Err(Refusal::invalid("use_id", "`use_id` has 1 to 128 bytes").into());
        }
        let row = self.grant_row(id).await?;
        if self.rows.used(id, use_id).await? {
            return Ok(Reply::Grant(Box::new(row)));
        }
        if row.state != GrantState::Active || row.grant.window.expires_at <= self.now {
            return Err(Refusal::conflict("ended", format_args!("grant `{id}` is {}", row.state)).into());
        }
        Ok(Reply::Grant(Box::new(self.count_use(row, use_id))))
    }

    /// As [`Work::consume`], for a sidecar that may follow the grant's backend.
    pub(super) async fn take_use(&mut self, id: &GrantId, use_id: &str) -> Result<Reply, Failed> {
        let row = self.rows.grant(id).await?;
        let row = row.filter(|row| self.catalogue.may_follow(self.actor, &row.grant.backend));
        let row = row.ok_or_else(|| Refusal::not_found("grant", id))?;
        if self.rows.used(id, use_id).await? {
            return Ok(Reply::Used(Use::Taken));
        }
        if row.state == GrantState::Exhausted {
            return Ok(Reply::Used(Use::Exhausted));
        }
        if row.state != GrantState::Active || row.grant.window.expires_at <= self.now {
            return Ok(Reply::Used(Use::Ended));
        }
        self.count_use(row, use_id);
        Ok(Reply::Used(Use::Taken))
    }

    fn count_use(&mut self, row: GrantRow, use_id: &str) -> GrantRow {
        let id = row.grant.id.clone();
        let row = GrantRow { uses: row.uses + 1, ..row };
        let keep_until = row.grant.window.expires_at.plus(REPEATS_AFTER_END);
        self.plan.note(Write::Use { grant: id.clone(), use_id: use_id.to_owned(), keep_until });
        if row.grant.uses_max.is_some_and(|most| row.uses >= most) {
            return self.end(row, EndReason::Exhausted);
        }
        let mut detail = json!({"use": use_id, "uses": row.uses});
        if let Some(arguments) = row.grant.scope.arguments() {
            // Of the call that the use was taken for: a sidecar compares before it asks.
            detail["arguments"] = json!(arguments);
        }
        self.plan.transition(Write::Grant(Box::new(row.clone())), None, "grant.used", id.as_str(), detail);
        row
    }

    pub(super) async fn review(&mut self, id: &GrantId, note: &str) -> Result<Reply, Failed> {
        let reviewer = self.known()?;
        let row = self.grant_row(id).await?;
        let request = self.request_row(&row.request).await?.request;
        let by = reviewer.principal.clone();
        if by == request.requester || by == request.subject || request.owner.as_ref() == Some(&by) {
            return Err(Refusal::forbidden("self_review", "somebody else reviews an emergency").into());
        }
        if !self.administers("admin:audit") {
            return Err(Refusal::not_found("grant", id).into());
        }
        if row.review != Some(Review::Open) {
            return Err(Refusal::conflict("reviewed", "there is no open review of this grant").into());
        }
        let review = Some(Review::Done { by, note: note.to_owned(), at: self.now });
        let row = GrantRow { review, ..row };
        let detail = json!({"note": note});
        self.plan.transition(Write::Grant(Box::new(row.clone())), None, "grant.reviewed", id.as_str(), detail);
        Ok(Reply::Grant(Box::new(row)))
    }

    pub(super) async fn task(&mut self, said: &TaskSaid) -> Result<Reply, Failed> {
        self.must_administer("admin:task")?;
        let known = self.rows.task(&said.task).await?;
        let mut task = known.unwrap_or_else(|| Task::mentioned(said.task.clone(), said.at)).after(said.event, said.at);
        if !said.kind.is_empty() {
            task.kind.clone_from(&said.kind);
        }
        // An end that was announced can come earlier and not later.
        task.until = task.until.into_iter().chain(said.until).min();
        let event = if task.open { "task.open" } else { "task.closed" };
        self.plan.transition(Write::Task(task.clone()), None, event, said.task.as_str(), json!({"epoch": task.epoch}));
        let mut ended = Vec::new();
        if !task.open {
            let selector = Selector { task: Some(said.task.clone()), ..Selector::default() };
            for row in self.rows.selected(&selector).await? {
                ended.push(row.grant.id.clone());
                self.end(row, EndReason::TaskClosed);
            }
            for row in self.rows.pending_of(&said.task).await? {
                self.lapse(row, Event::Cancel { reason: "its task was closed".into() }, "request.cancelled");
            }
        }
        Ok(Reply::Task(task, ended))
    }

    pub(super) async fn sweep(&mut self, idle: bool) -> Result<Reply, Failed> {
        let grants = self.rows.grants_due(self.now, SWEEP_MAX).await?;
        let requests = self.rows.requests_due(self.now, SWEEP_MAX).await?;
        let unused = if idle { self.unused().await? } else { Vec::new() };
        let swept = grants.len() + requests.len() + unused.len();
        for row in grants {
            self.end(row, EndReason::Expired);
        }
        for row in requests {
            self.lapse(row, Event::Lapse, "request.expired");
        }
        for row in unused {
            self.end(row, EndReason::Idle);
        }
        Ok(Reply::Swept(swept))
    }

    /// Active grants that went unused for too long. Those that were used are looked at again when that may be over.
    async fn unused(&mut self) -> Result<Vec<GrantRow>, Failed> {
        let mut rows = self.rows.grants_idle(self.now, SWEEP_MAX).await?;
        rows.retain(|row| row.grant.window.expires_at > self.now);
        let ids: Vec<GrantId> = rows.iter().map(|row| row.grant.id.clone()).collect();
        let used = self.rows.activity(&ids).await?;
        let mut over = Vec::new();
        for row in rows {
            let idle = row.idle.map(|idle| used.get(&row.grant.id).map_or(idle, |used| idle.used(used.last_used)));
            if idle.is_some_and(|idle| idle.is_over(self.now)) {
                over.push(row);
            } else {
                self.plan.note(Write::Grant(Box::new(GrantRow { idle, ..row })));
            }
        }
        Ok(over)
    }

    fn lapse(&mut self, row: RequestRow, event: Event, kind: &str) {
        if let Ok(elevation) = row.elevation.apply(&row.request, event, self.now) {
            self.put_request(RequestRow { elevation, ..row }, kind, json!({}));
        }
    }
}

/// The id of the grant that takes the place of this one: its own, with how often that happened.
fn successor(id: &GrantId) -> Result<GrantId, Refusal> {
    let (stem, number) = match id.as_str().rsplit_once('.') {
        Some((stem, number)) => (stem, number.parse::<u32>().unwrap_or(0) + 1),
        None => (id.as_str(), 1),
    };
    GrantId::new(&format!("{stem}.{number}")).map_err(|error| Refusal::invalid("id", error))
}
