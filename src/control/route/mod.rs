//! Policy: may this be asked, may it pass with nobody looking, may this approver decide, may this admin do that.
//!
//! Cedar decides (<https://docs.cedarpolicy.com>); obligations are annotations on the policies that determined the answer,
//! and the tightest wins. What is wrong with a policy refuses the load ([`load()`]): an unknown annotation, an id twice, an
//! action, backend or group that cannot be, a failed strict validation, a guardrail that permits. What goes wrong while a
//! policy is evaluated is a deny: Cedar itself passes over a policy that fails, which for a `forbid` would let through.
//!
//! Who is eligible and who approves is typed data of the entitlement. Policy can forbid and tighten it, and approve at
//! once; nothing that is written in a policy makes somebody eligible.

mod answer;
mod check;
mod load;
mod question;
pub mod schema;
mod slice;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use cedar_policy::{Authorizer, Entities, Entity, EntityUid, PolicyId};

pub use crate::guardrail::LoadError;
pub use crate::guardrail::words::Actor;
pub use answer::{Answer, Ruling, Verdict};
pub use load::load;

use super::document::{Mode, Target};
use crate::domain::arguments::ArgumentDigest;
use crate::domain::elevation::Request;
use crate::domain::entitlement::Step;
use crate::domain::id::{ActionName, BackendName, EntitlementName};
use crate::domain::resource::Resource;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;
use crate::guardrail::{self, GuardrailDocument, Guardrails};
use answer::Obligations;
use question::{Context, Word, uid};
use slice::Slices;

/// All policies in force, sliced by what they can be asked about.
#[derive(Debug)]
pub struct Policies {
    authorizer: Authorizer,
    request: Question,
    auto_approve: Question,
    approve: Question,
    admin: BTreeMap<&'static str, Question>,
    guardrails: Guardrails,
    /// What the guardrails were read from.
    documents: Vec<GuardrailDocument>,
    about: HashMap<PolicyId, About>,
    entitlements: BTreeMap<EntitlementName, Prepared>,
    system: Entities,
    dangling: Vec<(String, String)>,
    digest: String,
}

/// One question with the policies that have a say in it.
#[derive(Debug, Default)]
struct Question {
    enforced: Slices,
    shadow: Slices,
}

/// A policy as it is told.
#[derive(Debug)]
struct About {
    obligations: Obligations,
    document: String,
    target: Target,
    mode: Mode,
    text: String,
}

/// An entitlement as policies see it, made once.
#[derive(Debug)]
struct Prepared {
    uid: EntityUid,
    backend: EntityUid,
    entities: Entities,
    entity: Entity,
}

/// What a request is about, as policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The entitlement's name.
    pub entitlement: &'a EntitlementName,
    /// The actions asked for.
    pub actions: &'a [String],
    /// The resources asked for.
    pub resources: &'a [String],
    /// The digest of the only call asked for.
    pub arguments: Option<&'a ArgumentDigest>,
    /// For how long.
    pub duration: Duration,
    /// For how many calls.
    pub uses: Option<u32>,
    /// Whether it is break-glass.
    pub emergency: bool,
    /// What justifies it.
    pub task: Option<&'a Task>,
}

impl Policies {
    /// The SHA-256 of all policies in force.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What policy says to a request. `steps` are the entitlement's.
    pub fn rule(&self, actor: Actor<'_>, asked: Asked<'_>, steps: &[Step], now: Timestamp) -> Ruling {
        match self.try_rule(actor, asked, steps, now) {
            Ok(ruling) => ruling,
            Err(error) => Ruling::deny(vec![error], steps, &self.digest),
        }
    }

    fn try_rule(&self, actor: Actor<'_>, asked: Asked<'_>, steps: &[Step], now: Timestamp) -> Result<Ruling, String> {
        let about = self
            .entitlements
            .get(asked.entitlement)
            .ok_or_else(|| format!("no entitlement `{}` is declared", asked.entitlement))?;
        let principal = uid(Word::Principal, actor.principal.as_str());
        let entities = question::with(&about.entities, [question::actor(&principal, actor)?])?;
        let context = question::elevation(asked, now)?;
        let within = question::within(actor, &principal, &[&about.uid, &about.backend]);
        let ask = |question: &Question, action: &EntityUid| {
            self.ask(question, (&principal, action, &about.uid), &context, &entities, &within)
        };
        let request = ask(&self.request, &question::ACTIONS.request)?;
        let mut ruling = Ruling::deny(request.reasons, steps, &self.digest);
        ruling.determining = request.determining;
        ruling.shadow = request.shadow;
        if !request.allowed {
            return Ok(ruling);
        }
        let auto = ask(&self.auto_approve, &question::ACTIONS.auto_approve)?;
        ruling.decide(auto, |id| self.about.get(&PolicyId::new(id)).map(|about| &about.obligations));
        Ok(ruling)
    }

    /// Whether policy lets this approver decide on that request; who may at all is not asked here. What policies can say
    /// of `people` — the requester and the subject — is known only of those who are named there.
    pub fn may_approve(&self, approver: Actor<'_>, request: &Request, people: &[Actor<'_>], now: Timestamp) -> Answer {
        Answer::or_deny(self.try_may_approve(approver, request, people, now))
    }

    fn try_may_approve(
        &self,
        approver: Actor<'_>,
        request: &Request,
        people: &[Actor<'_>],
        now: Timestamp,
    ) -> Result<Answer, String> {
        let principal = uid(Word::Principal, approver.principal.as_str());
        let (resource, entity) = question::request(request)?;
        let mut entities = vec![entity, question::actor(&principal, approver)?];
        let mut named = vec![approver.principal];
        for person in people {
            if !named.contains(&person.principal) {
                entities.push(question::actor(&uid(Word::Principal, person.principal.as_str()), *person)?);
                named.push(person.principal);
            }
        }
        entities.extend(self.entitlements.get(&request.entitlement).map(|about| about.entity.clone()));
        let entities = question::with(&Entities::empty(), entities)?;
        let backend = uid(Word::Backend, request.backend.as_str());
        let action = &question::ACTIONS.approve;
        let asked = (&principal, action, &resource);
        let within = question::within(approver, &principal, &[&resource, &backend]);
        self.ask(&self.approve, asked, &question::moment(now)?, &entities, &within)
    }

    /// Whether this admin may do that.
    pub fn may_administer(&self, admin: Actor<'_>, action: &str, now: Timestamp) -> Answer {
        Answer::or_deny(self.try_may_administer(admin, action, now))
    }

    fn try_may_administer(&self, admin: Actor<'_>, action: &str, now: Timestamp) -> Result<Answer, String> {
        let question =
            self.admin.get(action).ok_or_else(|| format!("nobody may do `{action}`: there is no such word"))?;
        let principal = uid(Word::Principal, admin.principal.as_str());
        let entities = question::with(&self.system, [question::actor(&principal, admin)?])?;
        let (action, system) = (uid(Word::Action, action), uid(Word::System, "leasehold"));
        let within = question::within(admin, &principal, &[&system]);
        self.ask(question, (&principal, &action, &system), &question::moment(now)?, &entities, &within)
    }

    /// Which guardrails would stop a call, for `explain`. Where none would, it is allowed.
    pub fn guardrails(&self, actor: Actor<'_>, call: Call<'_>, now: Timestamp) -> Answer {
        let resource = Resource::exact(call.resource);
        let call = guardrail::Call {
            principal: actor.principal,
            backend: call.backend,
            action: call.action,
            resource: &resource,
        };
        Answer::of_guardrails(self.guardrails.explain(actor, call, now))
    }

    /// The guardrails, and the documents they were read from.
    pub fn bundled(&self) -> (&Guardrails, &[GuardrailDocument]) {
        (&self.guardrails, &self.documents)
    }

    fn ask(
        &self,
        question: &Question,
        (principal, action, resource): (&EntityUid, &EntityUid, &EntityUid),
        context: &Context,
        entities: &Entities,
        within: &[EntityUid],
    ) -> Result<Answer, String> {
        // Our own code builds it, and a test holds that the schema takes it: it is not validated each time.
        let request =
            cedar_policy::Request::new(principal.clone(), action.clone(), resource.clone(), context.clone(), None)
                .map_err(|error| format!("policy could not be asked: {error}"))?;
        let found = question.enforced.ask(&self.authorizer, &request, entities, within);
        let shadow = question.shadow.ask(&self.authorizer, &request, entities, within);
        let reason = |id: &PolicyId| self.about.get(id)?.obligations.reason.clone();
        Ok(Answer::of(found, shadow, reason))
    }

    /// Policies that name an entitlement which is not declared: the document, and a sentence. A new policy must not, since a
    /// slip would make it say nothing; one that is in force does not stop an entitlement from being taken away.
    pub fn dangling(&self) -> &[(String, String)] {
        &self.dangling
    }

    /// Where a policy is written and its text.
    pub fn told(&self, id: &str) -> Option<Told<'_>> {
        let about = self.about.get(&PolicyId::new(id))?;
        Some(Told { document: &about.document, target: about.target, mode: about.mode, text: &about.text })
    }

    /// The ids of all policies, the built-in ones included.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.about.keys().map(ToString::to_string).collect();
        ids.sort();
        ids
    }

    /// How many guardrails each call costs: for every action of every backend.
    pub fn slices(&self) -> impl Iterator<Item = (&BackendName, &ActionName, usize)> {
        self.guardrails.slices().into_iter()
    }

    /// How many policies the questions about a request and its approval are put to, at most.
    pub fn asked(&self) -> [(&'static str, usize); 3] {
        [
            ("elevation:request", self.request.len()),
            ("elevation:auto_approve", self.auto_approve.len()),
            ("elevation:approve", self.approve.len()),
        ]
    }
}

impl Question {
    fn len(&self) -> usize {
        self.enforced.len() + self.shadow.len()
    }
}

/// A call, as guardrails see it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// On which backend.
    pub backend: &'a BackendName,
    /// What is done.
    pub action: &'a ActionName,
    /// To what.
    pub resource: &'a str,
}

/// A policy as it stands in its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told<'a> {
    /// The document's name; `leasehold` where it is built in.
    pub document: &'a str,
    /// What it is asked about.
    pub target: Target,
    /// Whether it counts.
    pub mode: Mode,
    /// Its text.
    pub text: &'a str,
}
