//! Policy: may this be asked, may it pass with nobody looking, may this approver decide, may this admin do that.
//!
//! Cedar decides (<https://docs.cedarpolicy.com>); obligations are annotations on the policies that determined the answer,
//! and the tightest wins. What is wrong with a policy refuses the load: an unknown annotation, an id twice, an action that
//! no backend has, a failed strict validation, a guardrail that permits. What goes wrong while a policy is evaluated is a
//! deny: Cedar itself passes over a policy that fails, which for a `forbid` would let through.

mod load;
pub mod schema;

use std::collections::BTreeMap;
use std::time::Duration;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, EntityUid, PolicyId, PolicySet, Request as Question, Response, Schema,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use load::{LoadError, load};

use super::document::PrincipalKind;
use crate::domain::entitlement::Step;
use crate::domain::principal::Principal;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// The namespace of everything we tell Cedar about.
const NAMESPACE: &str = "Leasehold";

/// All policies in force, with the schema they were checked against.
#[derive(Debug)]
pub struct Policies {
    schema: Schema,
    elevation: PolicySet,
    admin: PolicySet,
    guardrails: PolicySet,
    obligations: BTreeMap<PolicyId, Obligations>,
    shadow: PolicySet,
    digest: String,
}

/// What a policy demands beside its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Obligations {
    max_ttl: Option<Duration>,
    max_uses: Option<u32>,
    quorum: Option<u32>,
    approvers: Vec<String>,
    reason: Option<String>,
}

/// Somebody as policy sees them.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// What they are.
    pub kind: PrincipalKind,
    /// The groups they are in.
    pub groups: &'a [String],
    /// Who answers for them.
    pub owner: Option<&'a str>,
}

/// What a request is about, as policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The entitlement's name.
    pub entitlement: &'a str,
    /// Its backend.
    pub backend: &'a str,
    /// The groups that may ask for it.
    pub eligible: &'a [String],
    /// The actions asked for.
    pub actions: &'a [String],
    /// For how long.
    pub duration: Duration,
    /// For how many calls.
    pub uses: Option<u32>,
    /// Whether it is break-glass.
    pub emergency: bool,
    /// What justifies it.
    pub task: Option<&'a Task>,
}

/// What policy says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Not at all.
    Deny,
    /// With nobody looking.
    Approve,
    /// Approvers decide.
    Ask,
}

impl Verdict {
    /// The verdict as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Approve => "approve",
            Self::Ask => "ask",
        }
    }
}

/// A ruling: the answer, what determined it, and what it is tightened by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling {
    /// The answer.
    pub verdict: Verdict,
    /// Sentences for people.
    pub reasons: Vec<String>,
    /// The ids of the policies that determined it.
    pub determining: Vec<String>,
    /// The longest life of a grant, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_max_seconds: Option<u64>,
    /// The most calls of a grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses_max: Option<u32>,
    /// The steps, tightened.
    pub steps: Vec<Step>,
    /// The ids of policies in shadow that would have forbidden it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<String>,
    /// Which policies ruled: the SHA-256 of all of them.
    pub policy_digest: String,
}

/// An answer to a yes-or-no question, with the policies that determined it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it is yes.
    pub allowed: bool,
    /// The ids of the policies that determined it.
    pub determining: Vec<String>,
    /// Sentences for people.
    pub reasons: Vec<String>,
    /// The ids of policies in shadow that would have forbidden it.
    pub shadow: Vec<String>,
}

impl Policies {
    /// The SHA-256 of all policies in force.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What policy says to a request. `steps` are the entitlement's.
    pub fn rule(&self, actor: Actor<'_>, asked: Asked<'_>, steps: &[Step], now: Timestamp) -> Ruling {
        let request = self.elevation(actor, asked, "elevation:request", now);
        let mut ruling = Ruling {
            verdict: Verdict::Deny,
            reasons: request.reasons.clone(),
            determining: request.determining.clone(),
            ttl_max_seconds: None,
            uses_max: None,
            steps: steps.to_vec(),
            shadow: request.shadow.clone(),
            policy_digest: self.digest.clone(),
        };
        if !request.allowed {
            return ruling;
        }
        self.tighten(&mut ruling, &request);
        let auto = self.elevation(actor, asked, "elevation:auto_approve", now);
        if auto.allowed {
            ruling.determining.extend(auto.determining.clone());
            ruling.reasons = auto.reasons.clone();
            ruling.verdict = Verdict::Approve;
            self.tighten(&mut ruling, &auto);
        } else if ruling.steps.is_empty() {
            ruling.reasons = vec!["no policy approves it and the entitlement names no approvers".into()];
            ruling.reasons.extend(auto.reasons);
        } else {
            ruling.verdict = Verdict::Ask;
            ruling.reasons = auto.reasons;
        }
        ruling
    }

    /// Whether policy lets this approver decide on that request; who may at all is not asked here.
    pub fn may_approve(
        &self,
        approver: Actor<'_>,
        request: &crate::domain::elevation::Request,
        now: Timestamp,
    ) -> Answer {
        let uid = uid("Request", request.id.as_str());
        let entities = [
            actor_entity(approver),
            json!({"uid": uid, "attrs": {
                "entitlement": {"__entity": self::uid("Entitlement", request.entitlement.as_str())},
                "requester": {"__entity": self::uid("Principal", request.requester.as_str())},
                "ttl_s": i64::try_from(request.duration.as_secs()).unwrap_or(i64::MAX),
                "emergency": request.emergency,
            }, "parents": [{"type": format!("{NAMESPACE}::Backend"), "id": request.backend.as_str()}]}),
            json!({"uid": self::uid("Backend", request.backend.as_str()), "attrs": {}, "parents": []}),
        ];
        let context = json!({"now": moment(now)});
        self.ask(&self.elevation, approver, "elevation:approve", &uid, &entities, context)
    }

    /// Whether this admin may do that.
    pub fn may_administer(&self, admin: Actor<'_>, action: &str, now: Timestamp) -> Answer {
        let system = uid("System", "leasehold");
        let entities = [actor_entity(admin), json!({"uid": system, "attrs": {}, "parents": []})];
        self.ask(&self.admin, admin, action, &system, &entities, json!({"now": moment(now)}))
    }

    /// Which guardrails would stop a call, for `explain`.
    pub fn guardrails(&self, actor: Actor<'_>, backend: &str, action: &str, resource: &str, now: Timestamp) -> Answer {
        let uid = uid("Resource", resource);
        let entities = [
            actor_entity(actor),
            json!({"uid": uid, "attrs": {}, "parents": [self::uid("Backend", backend)]}),
            json!({"uid": self::uid("Backend", backend), "attrs": {}, "parents": []}),
        ];
        self.ask(&self.guardrails, actor, action, &uid, &entities, json!({"now": moment(now)}))
    }

    fn elevation(&self, actor: Actor<'_>, asked: Asked<'_>, action: &str, now: Timestamp) -> Answer {
        let resource = uid("Entitlement", asked.entitlement);
        let eligible: Vec<Value> =
            asked.eligible.iter().map(|group| json!({"__entity": uid("Group", group)})).collect();
        let entities = [
            actor_entity(actor),
            json!({"uid": resource, "attrs": {"eligible": eligible}, "parents": [uid("Backend", asked.backend)]}),
            json!({"uid": uid("Backend", asked.backend), "attrs": {}, "parents": []}),
        ];
        let mut context = json!({
            "now": moment(now),
            "ttl_s": i64::try_from(asked.duration.as_secs()).unwrap_or(i64::MAX),
            "actions": asked.actions,
            "emergency": asked.emergency,
        });
        if let Some(uses) = asked.uses {
            context["uses"] = json!(uses);
        }
        if let Some(task) = asked.task {
            let (source, reference) = task.reference.as_str().split_once(':').unwrap_or_default();
            context["task"] = json!({
                "source": source, "ref": reference, "kind": task.kind,
                "open": task.is_open(now), "verified": task.verified,
            });
        }
        self.ask(&self.elevation, actor, action, &resource, &entities, context)
    }

    fn ask(
        &self,
        policies: &PolicySet,
        actor: Actor<'_>,
        action: &str,
        resource: &Value,
        entities: &[Value],
        context: Value,
    ) -> Answer {
        match self.try_ask(policies, actor, action, resource, entities, context) {
            Ok((response, shadow)) => self.answer(&response, &shadow),
            Err(error) => Answer { allowed: false, determining: Vec::new(), reasons: vec![error], shadow: Vec::new() },
        }
    }

    fn try_ask(
        &self,
        policies: &PolicySet,
        actor: Actor<'_>,
        action: &str,
        resource: &Value,
        entities: &[Value],
        context: Value,
    ) -> Result<(Response, Response), String> {
        let wrong = |error: &dyn std::fmt::Display| format!("policy could not be asked: {error}");
        let action = entity(&uid("Action", action)).map_err(|error| wrong(&error))?;
        let principal = entity(&uid("Principal", actor.principal.as_str())).map_err(|error| wrong(&error))?;
        let resource = entity(resource).map_err(|error| wrong(&error))?;
        let context =
            Context::from_json_value(context, Some((&self.schema, &action))).map_err(|error| wrong(&error))?;
        let question =
            Question::new(principal, action, resource, context, Some(&self.schema)).map_err(|error| wrong(&error))?;
        let entities = Entities::from_json_value(Value::Array(entities.to_vec()), Some(&self.schema))
            .map_err(|error| wrong(&error))?;
        let authorizer = Authorizer::new();
        let shadow = authorizer.is_authorized(&question, &self.shadow, &entities);
        Ok((authorizer.is_authorized(&question, policies, &entities), shadow))
    }

    fn answer(&self, response: &Response, shadow: &Response) -> Answer {
        let mut errors = response.diagnostics().errors().map(|error| format!("a policy failed: {error}")).peekable();
        let determining: Vec<PolicyId> = response.diagnostics().reason().cloned().collect();
        let mut reasons: Vec<String> =
            determining.iter().filter_map(|id| self.obligations.get(id)?.reason.clone()).collect();
        // A forbid that fails would be passed over: what cannot be evaluated denies.
        let allowed = response.decision() == Decision::Allow && errors.peek().is_none();
        reasons.extend(errors);
        if !allowed && determining.is_empty() && reasons.is_empty() {
            reasons.push("no policy permits it".into());
        }
        let shadow = shadow
            .diagnostics()
            .reason()
            .filter(|id| self.shadow.policy(id).is_some_and(|policy| policy.effect() == cedar_policy::Effect::Forbid));
        Answer {
            allowed,
            determining: determining.iter().map(ToString::to_string).collect(),
            reasons,
            shadow: shadow.map(ToString::to_string).collect(),
        }
    }

    fn tighten(&self, ruling: &mut Ruling, answer: &Answer) {
        for id in &answer.determining {
            let Some(obligations) = self.obligations.get(&PolicyId::new(id)) else { continue };
            let ttl = obligations.max_ttl.map(|ttl| ttl.as_secs());
            ruling.ttl_max_seconds = ruling.ttl_max_seconds.into_iter().chain(ttl).min();
            ruling.uses_max = ruling.uses_max.into_iter().chain(obligations.max_uses).min();
            for step in &mut ruling.steps {
                step.quorum = step.quorum.max(obligations.quorum.unwrap_or(0));
            }
            if !obligations.approvers.is_empty() {
                let quorum = obligations.quorum.unwrap_or(1);
                let more = Step { approvers: obligations.approvers.clone(), quorum };
                if !ruling.steps.contains(&more) {
                    ruling.steps.push(more);
                }
            }
        }
    }
}

fn uid(kind: &str, id: &str) -> Value {
    json!({"type": format!("{NAMESPACE}::{kind}"), "id": id})
}

fn entity(uid: &Value) -> Result<EntityUid, String> {
    EntityUid::from_json(uid.clone()).map_err(|error| error.to_string())
}

fn moment(now: Timestamp) -> Value {
    let text = now.to_string();
    // Cedar's datetime has milliseconds at most.
    let whole = text.split('.').next().unwrap_or_default().trim_end_matches('Z');
    json!({"__extn": {"fn": "datetime", "arg": format!("{whole}Z")}})
}

fn actor_entity(actor: Actor<'_>) -> Value {
    let groups: Vec<Value> = actor.groups.iter().map(|group| uid("Group", group)).collect();
    let mut attrs = json!({"kind": actor.kind.as_str()});
    if let Some(owner) = actor.owner {
        attrs["owner"] = json!(owner);
    }
    json!({"uid": uid("Principal", actor.principal.as_str()), "attrs": attrs, "parents": groups})
}
