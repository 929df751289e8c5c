//! What guardrails say of a call.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Entities, Entity, EntityUid, Policy, PolicyId, PolicySet, Request,
};
use dashmap::DashMap;

use super::bundle::Mode;
use super::head::Head;
use super::load::Needs;
use super::people::{People, Seat};
use super::words::{self, Actor, Word, uid, wrong};
use crate::domain::id::{ActionName, BackendName};
use crate::domain::principal::Principal;
use crate::domain::resource::{Extent, Resource};
use crate::domain::time::Timestamp;

/// Most answers that are remembered; past it they are found again.
const ANSWERS_MAX: usize = 100_000;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// All guardrails in force, sliced by what they can be asked about.
#[derive(Debug)]
pub struct Guardrails {
    authorizer: Authorizer,
    serial: u32,
    /// Everything is forbidden, because of this.
    refuses: Option<Arc<Said>>,
    answers: DashMap<Asked, Answered, ahash::RandomState>,
    pub(super) digest: String,
    pub(super) slices: Map<BackendName, Map<ActionName, Slice>>,
    pub(super) rules: HashMap<PolicyId, Arc<Rule>>,
    pub(super) all: Vec<Guardrail>,
    pub(super) needs: Needs,
    /// The principals that policies name.
    pub(super) named: BTreeSet<String>,
    pub(super) people: People,
}

/// One policy.
#[derive(Debug)]
pub(crate) struct Guardrail {
    pub(crate) rule: Arc<Rule>,
    pub(crate) mode: Mode,
    pub(crate) policy: Policy,
    pub(crate) head: Head,
}

/// Where a policy is written, and what it says to whom it stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name of its document.
    pub document: String,
    /// Its `@id`.
    pub id: String,
    /// Its `@reason`.
    pub reason: Option<String>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.document, self.id)
    }
}

/// What speaks against a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// The policies that forbid it.
    pub forbids: Vec<Arc<Rule>>,
    /// The policies that could not be evaluated, which forbids it too.
    pub failed: Vec<Arc<Rule>>,
    /// Why they, or all, could not be; for the operator.
    pub faults: Vec<String>,
    /// The policies in shadow that would have forbidden it.
    pub shadow: Vec<Arc<Rule>>,
}

impl Said {
    fn fault(fault: String) -> Self {
        Self { faults: vec![fault], ..Self::default() }
    }

    /// Whether the call is forbidden.
    pub fn stops(&self) -> bool {
        !self.forbids.is_empty() || !self.failed.is_empty() || !self.faults.is_empty()
    }

    /// The policies that stop the call.
    pub fn stopping(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.forbids.iter().chain(&self.failed)
    }

    /// What is told to whom it stops, if a policy has a word for them.
    pub fn reason(&self) -> Option<&str> {
        self.forbids.iter().find_map(|rule| rule.reason.as_deref())
    }

    fn is_nothing(&self) -> bool {
        !self.stops() && self.shadow.is_empty()
    }

    fn add(&mut self, other: &Self) {
        let more = |all: &mut Vec<Arc<Rule>>, some: &[Arc<Rule>]| {
            all.extend(some.iter().cloned());
            all.sort_by(|a, b| a.id.cmp(&b.id));
            all.dedup();
        };
        more(&mut self.forbids, &other.forbids);
        more(&mut self.failed, &other.failed);
        more(&mut self.shadow, &other.shadow);
        self.faults.extend(other.faults.iter().cloned());
        self.faults.sort();
        self.faults.dedup();
    }
}

/// A call, as guardrails see it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Who calls.
    pub principal: &'a Principal,
    /// On which backend.
    pub backend: &'a BackendName,
    /// What is done.
    pub action: &'a ActionName,
    /// To what.
    pub resource: &'a Resource,
}

/// What was found about a call.
#[derive(Debug, Clone, Default)]
pub struct Judgement {
    /// What speaks against it, if anything does.
    pub said: Option<Arc<Said>>,
    /// Whether time alone can change that.
    pub timed: bool,
}

impl Judgement {
    /// What stops the call, if anything does.
    pub fn stop(&self) -> Option<&Arc<Said>> {
        self.said.as_ref().filter(|said| said.stops())
    }
}

/// What an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Asked {
    slice: u32,
    seat: Seat,
    /// Which of the resources that the slice names; 0 for all others.
    resource: u32,
}

/// An answer, and the second it is for; 0 where it is for all.
#[derive(Debug, Clone)]
struct Answered(i64, Option<Arc<Said>>);

/// The policies that can have a say in one action of one backend.
#[derive(Debug)]
pub(super) struct Slice {
    number: u32,
    backend: EntityUid,
    action: EntityUid,
    groups: Vec<&'static str>,
    enforced: PolicySet,
    shadow: PolicySet,
    timed: bool,
    /// The resources that policies name.
    resources: Vec<Box<str>>,
}

impl Slice {
    pub(super) fn new(number: u32, backend: &BackendName, action: &ActionName, groups: &[&'static str]) -> Self {
        Self {
            number,
            backend: uid(Word::Backend, backend.as_str()),
            action: uid(Word::Action, action.as_str()),
            groups: groups.to_vec(),
            enforced: PolicySet::new(),
            shadow: PolicySet::new(),
            timed: false,
            resources: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        mode: Mode,
        policy: &Policy,
        timed: bool,
        resources: &BTreeSet<String>,
    ) -> Result<(), String> {
        let set = match mode {
            Mode::Enforce => &mut self.enforced,
            Mode::Shadow => &mut self.shadow,
        };
        set.add(policy.clone()).map_err(|error| error.to_string())?;
        self.timed |= timed;
        for resource in resources {
            if !self.resources.iter().any(|known| **known == **resource) {
                self.resources.push(resource.as_str().into());
            }
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.enforced.num_of_policies() + self.shadow.num_of_policies()
    }

    /// The resources to ask about for what a call reaches, by their numbers: the one it names, and where it reaches all
    /// under that, each of those that a policy names.
    fn reached<'a>(&'a self, resource: &'a Resource) -> impl Iterator<Item = (u32, &'a str)> {
        let text = resource.text();
        let under = resource.extent() == Extent::Under;
        let numbered = || (1..).zip(self.resources.iter().map(|named| &**named));
        let own = numbered().find(|(_, named)| *named == text).map_or(0, |(number, _)| number);
        let inside = numbered().filter(move |(number, named)| under && *number != own && named.starts_with(text));
        std::iter::once((own, text)).chain(inside)
    }
}

impl Guardrails {
    /// No guardrails: nothing is forbidden.
    pub fn none() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(1);
        Self {
            authorizer: Authorizer::new(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            refuses: None,
            answers: DashMap::default(),
            digest: super::GuardrailBundle::default().digest(),
            slices: Map::default(),
            rules: HashMap::new(),
            all: Vec::new(),
            needs: Needs::default(),
            named: BTreeSet::new(),
            people: People::read(&[], &BTreeSet::new()).unwrap_or_else(|_| unreachable!("nobody is there twice")),
        }
    }

    /// In place of guardrails that could not be read and that none came before: everything is forbidden.
    pub fn unreadable() -> Self {
        let said = Said::fault("the guardrails could not be read".to_owned());
        Self { refuses: Some(Arc::new(said)), digest: String::new(), ..Self::none() }
    }

    /// The digest of the bundle that was loaded.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// A number that no other guardrails of this process have.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is no policy.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What of somebody the policies look at.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    pub(crate) fn all(&self) -> &[Guardrail] {
        &self.all
    }

    /// How many guardrails can apply to every action of every backend.
    pub fn slices(&self) -> Vec<(&BackendName, &ActionName, usize)> {
        let of = |(backend, slices)| {
            let one = move |(action, slice): (_, &Slice)| (backend, action, slice.len());
            Map::<ActionName, Slice>::iter(slices).map(one)
        };
        let mut all: Vec<_> = self.slices.iter().flat_map(of).collect();
        all.sort();
        all
    }

    fn slice(&self, call: &Call<'_>) -> Option<&Slice> {
        self.slices.get(call.backend)?.get(call.action)
    }

    /// What a principal is to these guardrails.
    pub fn seat(&self, principal: &Principal) -> Seat {
        self.people.seat(principal)
    }

    /// What speaks against a call now. `seat` finds [`Guardrails::seat`] of its principal, and is asked only where it
    /// matters.
    pub fn judge(&self, call: Call<'_>, seat: impl FnOnce(&Self) -> Seat, now: Timestamp) -> Judgement {
        if self.all.is_empty() {
            return Judgement { said: self.refuses.clone(), timed: false };
        }
        let Some(slice) = self.slice(&call) else {
            return Judgement { said: self.unknown(&call).map(Arc::new), timed: false };
        };
        if slice.len() == 0 {
            return Judgement::default();
        }
        let seat = seat(self);
        let mut said: Option<Arc<Said>> = None;
        for (number, resource) in slice.reached(call.resource) {
            let Some(more) = self.answer(slice, seat, (number, resource), &call, now) else { continue };
            match &mut said {
                None => said = Some(more),
                Some(said) => Arc::make_mut(said).add(&more),
            }
        }
        Judgement { said, timed: slice.timed }
    }

    /// The answer that is remembered, or a new one.
    fn answer(
        &self,
        slice: &Slice,
        seat: Seat,
        (number, resource): (u32, &str),
        call: &Call<'_>,
        now: Timestamp,
    ) -> Option<Arc<Said>> {
        let asked = Asked { slice: slice.number, seat, resource: number };
        let second = if slice.timed { now.as_seconds() } else { 0 };
        if let Some(answered) = self.answers.get(&asked)
            && answered.0 == second
        {
            return answered.1.clone();
        }
        let said = self.ask(slice, call.principal, self.people.actor(seat, call.principal), resource, now);
        let said = (!said.is_nothing()).then(|| Arc::new(said));
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.clear();
        }
        self.answers.insert(asked, Answered(second, said.clone()));
        said
    }

    /// As [`Guardrails::judge`] for somebody of whom everything is known, and asked anew; for `explain`.
    pub fn explain(&self, actor: Actor<'_>, call: Call<'_>, now: Timestamp) -> Said {
        let mut said = Said::default();
        match self.slice(&call) {
            None => said.add(&Said::fault(unknown(&call))),
            Some(slice) => {
                for (_, resource) in slice.reached(call.resource) {
                    said.add(&self.ask(slice, actor.principal, Some(actor), resource, now));
                }
            }
        }
        said
    }

    /// An action that is none of the backend's as guardrails know it: what could be about it forbids it.
    fn unknown(&self, call: &Call<'_>) -> Option<Said> {
        let about = |guardrail: &&Guardrail| {
            let head = &guardrail.head;
            let group = |name: &String| name == call.action.as_str() || name.starts_with("call:");
            guardrail.mode == Mode::Enforce
                && head.backend().is_none_or(|named| named == call.backend.as_str())
                && head.actions().is_none_or(|named| named.iter().any(group))
        };
        self.all.iter().any(|guardrail| about(&guardrail)).then(|| Said::fault(unknown(call)))
    }

    fn ask(
        &self,
        slice: &Slice,
        principal: &Principal,
        actor: Option<Actor<'_>>,
        resource: &str,
        now: Timestamp,
    ) -> Said {
        self.try_ask(slice, principal, actor, resource, now).unwrap_or_else(Said::fault)
    }

    fn try_ask(
        &self,
        slice: &Slice,
        principal: &Principal,
        actor: Option<Actor<'_>>,
        resource: &str,
        now: Timestamp,
    ) -> Result<Said, String> {
        let principal = uid(Word::Principal, principal.as_str());
        let resource = uid(Word::Resource, resource);
        let groups = slice.groups.iter().map(|group| uid(Word::Action, group)).collect();
        // Whoever is not known has no attributes: what asks for one fails, and what fails denies.
        let known = actor.map(|actor| words::actor(&principal, actor)).transpose()?;
        let entities = [
            Entity::new_no_attrs(resource.clone(), [slice.backend.clone()].into()),
            Entity::new_no_attrs(slice.action.clone(), groups),
        ];
        let entities = words::with(&Entities::empty(), entities.into_iter().chain(known))?;
        let context = if slice.timed { words::moment(now)? } else { Context::empty() };
        // Our own code builds it, and a test holds that the schema takes it: it is not validated each time.
        let request = Request::new(principal, slice.action.clone(), resource, context, None).map_err(wrong)?;
        let mut said = Said::default();
        self.put(&slice.enforced, &request, &entities, &mut said);
        let mut shadow = Said::default();
        self.put(&slice.shadow, &request, &entities, &mut shadow);
        said.shadow = std::mem::take(&mut shadow.forbids);
        said.shadow.append(&mut shadow.failed);
        said.shadow.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(said)
    }

    /// Puts the question to a set of policies.
    fn put(&self, policies: &PolicySet, request: &Request, entities: &Entities, said: &mut Said) {
        if policies.is_empty() {
            return;
        }
        let response = self.authorizer.is_authorized(request, policies, entities);
        let nameless = |id: &PolicyId| Rule { document: String::new(), id: id.to_string(), reason: None };
        let rule = |id: &PolicyId| self.rules.get(id).cloned().unwrap_or_else(|| Arc::new(nameless(id)));
        said.forbids.extend(response.diagnostics().reason().map(rule));
        said.forbids.sort_by(|a, b| a.id.cmp(&b.id));
        for error in response.diagnostics().errors() {
            let AuthorizationError::PolicyEvaluationError(failed) = error;
            said.failed.push(rule(failed.policy_id()));
            said.faults.push(format!("a policy failed: {error}"));
        }
        said.failed.sort_by(|a, b| a.id.cmp(&b.id));
        said.faults.sort();
    }
}

fn unknown(call: &Call<'_>) -> String {
    format!("`{}` has no action `{}`: it is denied", call.backend, call.action)
}
