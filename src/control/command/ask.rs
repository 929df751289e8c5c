//! Asking for an elevation, and the grant it may become.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::renew::chain_until;
use super::{Failed, Reply, Work};
use crate::control::catalogue::Known;
use crate::control::refusal::Refusal;
use crate::control::route::{Asked, Ruling, Verdict};
use crate::control::store::{Change, EndReason, GrantRow, REPEATS_AFTER_END, RequestRow, Review, Rows, Write};
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::elevation::{Elevation, Event, Request};
use crate::domain::entitlement::{ArgumentRule, Bounds, DURATION_MAX, Entitlement, TaskRule};
use crate::domain::grant::{Grant, GrantState, Idle};
use crate::domain::id::{EntitlementName, GrantId, RequestId, Revision, TaskRef};
use crate::domain::lock::Lock;
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::domain::task::Task;
use crate::domain::time::Window;

/// Longest justification, in bytes.
const JUSTIFICATION_MAX: usize = 2_000;

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// The request's id, made by whoever received it.
    pub id: RequestId,
    /// The id of the grant it becomes, if it does.
    pub grant: GrantId,
    /// For whom; without it for oneself.
    pub subject: Option<Principal>,
    /// For what.
    pub entitlement: EntitlementName,
    /// Fewer actions than the entitlement has.
    pub actions: Option<Vec<ActionPattern>>,
    /// Fewer resources than the entitlement has.
    pub resources: Option<Vec<ResourcePattern>>,
    /// Only for the call of that digest.
    pub arguments: Option<ArgumentDigest>,
    /// For how many seconds; without it as long as the entitlement allows.
    pub duration_seconds: Option<u64>,
    /// For how many calls.
    pub uses: Option<u32>,
    /// The grant whose place it takes.
    pub renews: Option<GrantId>,
    /// What justifies it.
    pub task: Option<TaskRef>,
    /// Whether the requester's own proof names the task, so that its source said it is open.
    pub task_is_proven: bool,
    /// In the requester's words.
    pub justification: String,
    /// Said again with the same key, it is the same request.
    pub idempotency: Option<Idempotency>,
}

impl Ask {
    /// All of an entitlement, for oneself, for as long as may be, with nothing said.
    pub fn of(id: RequestId, grant: GrantId, entitlement: EntitlementName) -> Self {
        Self {
            id,
            grant,
            subject: None,
            entitlement,
            actions: None,
            resources: None,
            arguments: None,
            duration_seconds: None,
            uses: None,
            renews: None,
            task: None,
            task_is_proven: false,
            justification: String::new(),
            idempotency: None,
        }
    }
}

/// An idempotency key with the hash of what was asked under it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key.
    pub key: String,
    /// The hash of the whole body.
    pub digest: String,
}

/// The scope as it must be bound: a grant that renews one for a call is for that call, and some entitlements are for nothing
/// but single calls.
fn bound_as(scope: Scope, of: &Entitlement, renewed: Option<&GrantRow>) -> Result<Scope, Refusal> {
    let held = renewed.and_then(|row| row.grant.scope.arguments());
    if let (Some(asked), Some(held)) = (scope.arguments(), held)
        && asked != held
    {
        let detail = format!("what it renews is bound to `{held}`: leave `arguments` out, or ask anew");
        return Err(Refusal::invalid("arguments_differ", detail));
    }
    let scope = scope.bound_to(held.copied());
    if of.arguments == ArgumentRule::Required && scope.arguments().is_none() {
        let detail = "this entitlement wants the `arguments` of one call, as `leasehold digest` prints them";
        return Err(Refusal::invalid("arguments_required", detail));
    }
    Ok(scope)
}

impl<R: Rows> Work<'_, R> {
    pub(super) async fn ask(&mut self, ask: &Ask) -> Result<Reply, Failed> {
        if let Some(reply) = self.asked_before(ask).await? {
            return Ok(reply);
        }
        let requester = self.known()?;
        let subject = self.subject(ask, &requester)?;
        let catalogue = self.catalogue;
        let entitlement = catalogue
            .entitlements
            .get(&ask.entitlement)
            .ok_or_else(|| Refusal::not_found("entitlement", &ask.entitlement))?;
        let task = self.task_of(ask, entitlement).await?;
        let mut request = self.request_of(ask, entitlement, &requester, &subject)?;
        if let Some(lock) = self.locked(&request).await? {
            return Err(Refusal::forbidden("lock", format_args!("a lock stops this: {}", lock.message)).into());
        }
        let renewed = self.renewed(ask, entitlement, &request.subject).await?;
        request.scope = bound_as(request.scope, entitlement, renewed.as_ref())?;
        let held = self.rows.held(&request.subject, &request.entitlement).await?;
        let held = held.saturating_sub(u32::from(renewed.is_some()));
        if held >= entitlement.concurrent_max {
            let detail = format!(
                "`{}` has {held} active grants or pending requests of `{}` and may have {}",
                request.subject, request.entitlement, entitlement.concurrent_max
            );
            let hint = "release one of these grants or cancel one of these requests, then ask again";
            return Err(Refusal::limited("too_many", detail, hint).into());
        }
        if renewed.is_none() {
            self.check_grants_max(&subject).await?;
        }
        if let Some(task) = &task
            && self.rows.task(&task.reference).await?.as_ref() != Some(task)
        {
            let event = if task.verified { "task.open" } else { "task.mentioned" };
            self.plan.transition(Write::Task(task.clone()), None, event, task.reference.as_str(), json!({}));
        }
        let ruling = self.rule(&request, &subject, task.as_ref());
        self.decide_at_once(ask, request, ruling, (task.as_ref(), renewed))
    }

    /// Everything that the subject holds, of whatever entitlements.
    pub(super) async fn check_grants_max(&mut self, subject: &Known) -> Result<(), Failed> {
        let all = self.catalogue.entitlements.values().map(|entitlement| entitlement.concurrent_max);
        // What cannot be reached needs no look at the rows.
        if all.fold(0, u32::saturating_add) <= subject.grants_max {
            return Ok(());
        }
        let held = self.rows.holds(&subject.principal, subject.grants_max).await?;
        if held < subject.grants_max {
            return Ok(());
        }
        let detail = format!("`{}` holds {held} active grants, all that it may", subject.principal);
        let hint = "release one of these grants, then ask again";
        Err(Refusal::limited("too_many_grants", detail, hint).into())
    }

    async fn asked_before(&mut self, ask: &Ask) -> Result<Option<Reply>, Failed> {
        let Some(idempotency) = &ask.idempotency else { return Ok(None) };
        let Some(before) = self.rows.idempotent(self.actor, &idempotency.key).await? else { return Ok(None) };
        if before.digest != idempotency.digest {
            let detail = "this Idempotency-Key was used for another request; use a new key for a new request";
            return Err(Refusal::conflict("idempotency_key_reused", detail).into());
        }
        let row = self.request_row(&before.request).await?;
        let grant = match &row.elevation {
            Elevation::Approved { grant, .. } => self.rows.grant(grant).await?.map(Box::new),
            _ => None,
        };
        Ok(Some(Reply::Request(Box::new(row), grant)))
    }

    /// For oneself, or for what one answers for.
    fn subject(&self, ask: &Ask, requester: &Known) -> Result<Known, Refusal> {
        let Some(subject) = ask.subject.as_ref().filter(|subject| **subject != requester.principal) else {
            return Ok(requester.clone());
        };
        let known = self.catalogue.know(subject).filter(|known| !known.disabled);
        known
            .filter(|known| known.owner.as_deref() == Some(requester.principal.as_str()))
            .ok_or_else(|| Refusal::forbidden("not_the_owner", format_args!("only its owner asks for `{subject}`")))
    }

    async fn task_of(&mut self, ask: &Ask, entitlement: &Entitlement) -> Result<Option<Task>, Failed> {
        let Some(reference) = &ask.task else {
            if entitlement.task != TaskRule::Optional {
                let detail = "this entitlement wants a task, such as `jira:OPS-17`";
                return Err(Refusal::invalid("task_required", detail).into());
            }
            return Ok(None);
        };
        let known = self.rows.task(reference).await?;
        let mut task = known.unwrap_or_else(|| Task::mentioned(reference.clone(), self.now));
        task.verified |= ask.task_is_proven;
        if !task.is_open(self.now) {
            return Err(Refusal::forbidden("task_closed", format_args!("task `{reference}` is closed")).into());
        }
        if entitlement.task == TaskRule::Verified && !task.verified {
            let detail = format_args!("the source of task `{reference}` has not said that it is open").to_string();
            return Err(Refusal::forbidden("task_unverified", detail).into());
        }
        Ok(Some(task))
    }

    fn request_of(&self, ask: &Ask, of: &Entitlement, requester: &Known, subject: &Known) -> Result<Request, Refusal> {
        let scope = Scope::new(
            ask.actions.clone().unwrap_or_else(|| of.scope.actions().to_vec()),
            ask.resources.clone().unwrap_or_else(|| of.scope.resources().to_vec()),
        )
        .bound_to(ask.arguments);
        if scope.actions().is_empty() || scope.resources().is_empty() {
            return Err(Refusal::invalid(
                "empty_scope",
                "`actions` and `resources` name at least one each, or are left out",
            ));
        }
        if !scope.is_within(&of.scope) {
            let detail = format_args!("what is asked reaches further than entitlement `{}`", of.name).to_string();
            return Err(Refusal::forbidden("scope_too_wide", detail));
        }
        let duration = ask.duration_seconds.map_or(of.duration_max, Duration::from_secs);
        if duration.is_zero() || duration > of.duration_max {
            let most = of.duration_max.as_secs();
            return Err(Refusal::invalid("duration", format_args!("`duration_seconds` is from 1 to {most} here")));
        }
        if ask.uses == Some(0) || ask.uses.zip(of.uses_max).is_some_and(|(asked, most)| asked > most) {
            return Err(Refusal::invalid("uses", "`uses` is at least 1 and at most what the entitlement allows"));
        }
        if of.justification_required && ask.justification.trim().is_empty() {
            return Err(Refusal::invalid("justification_required", "this entitlement wants a `justification`"));
        }
        if ask.justification.len() > JUSTIFICATION_MAX {
            return Err(Refusal::invalid("justification_too_long", "`justification` has at most 2,000 bytes"));
        }
        let owner = subject.owner.as_deref().filter(|_| !subject.owner_may_approve);
        Ok(Request {
            id: ask.id.clone(),
            requester: requester.principal.clone(),
            subject: subject.principal.clone(),
            on_behalf_of: Vec::new(),
            owner: owner.and_then(|owner| Principal::parse(owner).ok()),
            entitlement: of.name.clone(),
            backend: of.backend.clone(),
            scope,
            duration,
            uses_max: ask.uses.or(of.uses_max),
            renews: ask.renews.clone(),
            task: ask.task.clone(),
            justification: ask.justification.clone(),
            emergency: of.emergency,
            steps: of.steps.clone(),
            created_at: self.now,
            window_until: self.now.plus(of.window),
        })
    }

    /// A lock that stands in the way of the whole request. One on some actions or resources only is for calls.
    pub(super) async fn locked(&mut self, request: &Request) -> Result<Option<Lock>, Failed> {
        let locks = self.rows.locks().await?;
        Ok(locks.into_iter().find(|lock| {
            lock.expires_at.is_none_or(|end| self.now < end)
                && lock.action.is_none()
                && lock.resource.is_none()
                && lock.grant.is_none()
                && lock.principal.as_ref().is_none_or(|p| *p == request.subject || *p == request.requester)
                && lock.backend.as_ref().is_none_or(|b| *b == request.backend)
                && lock.task.as_ref().is_none_or(|t| Some(t) == request.task.as_ref())
        }))
    }

    pub(super) fn rule(&self, request: &Request, subject: &Known, task: Option<&Task>) -> Ruling {
        let actions: Vec<String> = request.scope.actions().iter().map(ToString::to_string).collect();
        let resources: Vec<String> = request.scope.resources().iter().map(ToString::to_string).collect();
        let asked = Asked {
            entitlement: &request.entitlement,
            actions: &actions,
            resources: &resources,
            arguments: request.scope.arguments(),
            duration: request.duration,
            uses: request.uses_max,
            emergency: request.emergency,
            task,
        };
        self.catalogue.policies.rule(subject.actor(), asked, &request.steps, self.now)
    }

    fn decide_at_once(
        &mut self,
        ask: &Ask,
        mut request: Request,
        ruling: Ruling,
        (task, renewed): (Option<&Task>, Option<GrantRow>),
    ) -> Result<Reply, Failed> {
        request.steps.clone_from(&ruling.steps);
        let event = match ruling.verdict {
            Verdict::Deny => Some(Event::Forbid { reason: ruling.reasons.join("; ") }),
            Verdict::Approve => Some(Event::AutoApprove { grant: ask.grant.clone() }),
            Verdict::Ask => None,
        };
        let elevation = match event {
            Some(event) => Elevation::new()
                .apply(&request, event, self.now)
                .map_err(|error| Refusal::conflict("elevation", error))?,
            None => Elevation::new(),
        };
        let detail = json!({
            "request": request, "verdict": ruling.verdict, "determining": ruling.determining,
            "reasons": ruling.reasons, "policy_digest": ruling.policy_digest,
        });
        let kind = format!("request.{}", elevation.state());
        let row = RequestRow { request, elevation, ruling, version: 0, task_epoch: task.map_or(0, |task| task.epoch) };
        let row = self.put_request(row, &kind, detail);
        let grant = match &row.elevation {
            Elevation::Approved { .. } => Some(Box::new(self.issue(&row, ask.grant.clone(), task, renewed))),
            _ => None,
        };
        if let Some(idempotency) = &ask.idempotency {
            self.plan.note(Write::Idempotent {
                caller: self.actor.clone(),
                key: idempotency.key.clone(),
                digest: idempotency.digest.clone(),
                request: row.request.id.clone(),
                // No grant of it lives longer than that.
                keep_until: row.request.window_until.plus(DURATION_MAX).plus(REPEATS_AFTER_END),
            });
        }
        Ok(Reply::Request(Box::new(row), grant))
    }

    /// The grant that an approved request becomes.
    pub(super) fn issue(
        &mut self,
        row: &RequestRow,
        id: GrantId,
        task: Option<&Task>,
        renewed: Option<GrantRow>,
    ) -> GrantRow {
        let request = &row.request;
        let entitlement = self.catalogue.entitlements.get(&request.entitlement);
        let bounds = Bounds {
            requested: request.duration,
            entitlement: entitlement.map_or(request.duration, |e| e.duration_max),
            policy: row.ruling.ttl_max_seconds.map(Duration::from_secs),
            task_until: task.and_then(|task| task.until),
            chain_until: renewed.as_ref().zip(entitlement).map(|(row, of)| chain_until(row, of)),
        };
        let began_at = renewed.as_ref().map_or(self.now, |renewed| renewed.began_at);
        if let Some(renewed) = renewed {
            self.end(renewed, EndReason::Superseded);
        }
        let grant = Grant {
            id,
            principal: request.subject.clone(),
            backend: request.backend.clone(),
            scope: request.scope.clone().into(),
            window: Window { not_before: self.now, expires_at: bounds.expires_at(self.now) },
            uses_max: request.uses_max.into_iter().chain(row.ruling.uses_max).min(),
            task: request.task.clone(),
        };
        let row = GrantRow {
            request: request.id.clone(),
            narrowed_from: None,
            entitlement: request.entitlement.clone(),
            state: GrantState::Active,
            ended: None,
            uses: 0,
            idle: entitlement.and_then(|of| of.idle_timeout).map(|timeout| Idle::new(timeout, self.now)),
            emergency: request.emergency,
            review: request.emergency.then_some(Review::Open),
            task_epoch: row.task_epoch,
            created_at: self.now,
            began_at,
            revision: Revision(0),
            grant,
        };
        let mut detail = json!({"grant": row.grant, "request": row.request, "emergency": row.emergency});
        if let Some(idle) = row.idle {
            detail["idle_timeout_seconds"] = json!(idle.timeout().as_secs());
        }
        let change = Change::Grant(Box::new(row.grant.clone()));
        self.put_grant(row, change, "grant.active", detail)
    }
}
