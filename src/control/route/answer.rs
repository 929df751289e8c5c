//! What policy answers, and how obligations tighten it.

use std::sync::Arc;
use std::time::Duration;

use cedar_policy::PolicyId;
use serde::{Deserialize, Serialize};

use super::slice::Found;
use crate::domain::entitlement::Step;
use crate::guardrail::{Rule, Said};

/// What a policy demands beside its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Obligations {
    pub(super) max_ttl: Option<Duration>,
    pub(super) max_uses: Option<u32>,
    pub(super) quorum: Option<u32>,
    pub(super) approvers: Vec<String>,
    pub(super) reason: Option<String>,
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
    /// Whether a policy could not be evaluated; it is no then, whatever the others say.
    pub failed: bool,
}

impl Answer {
    pub(super) fn of(found: Found, shadow: Found, reason: impl Fn(&PolicyId) -> Option<String>) -> Self {
        let failed = !found.errors.is_empty();
        let determining = if found.forbids.is_empty() { found.permits } else { found.forbids.clone() };
        // A forbid that fails would be passed over: what cannot be evaluated denies.
        let allowed = found.forbids.is_empty() && !determining.is_empty() && !failed;
        let mut reasons: Vec<String> = determining.iter().filter_map(reason).collect();
        reasons.extend(found.errors.iter().map(|error| format!("a policy failed: {error}")));
        if !allowed && determining.is_empty() && reasons.is_empty() {
            reasons.push("no policy permits it".into());
        }
        let ids = |ids: Vec<PolicyId>| ids.iter().map(ToString::to_string).collect();
        Self { allowed, determining: ids(determining), reasons, shadow: ids(shadow.forbids), failed }
    }

    /// Guardrails only forbid: nothing that speaks against the call is an answer too.
    pub(super) fn of_guardrails(said: Said) -> Self {
        let ids = |rules: &[Arc<Rule>]| rules.iter().map(|rule| rule.id.clone()).collect();
        let mut reasons: Vec<String> = said.forbids.iter().filter_map(|rule| rule.reason.clone()).collect();
        reasons.extend(said.faults.iter().cloned());
        Self {
            allowed: !said.stops(),
            determining: ids(&said.forbids),
            reasons,
            shadow: ids(&said.shadow),
            failed: !said.faults.is_empty(),
        }
    }

    pub(super) fn or_deny(asked: Result<Self, String>) -> Self {
        asked.unwrap_or_else(|error| Self {
            allowed: false,
            determining: Vec::new(),
            reasons: vec![error],
            shadow: Vec::new(),
            failed: true,
        })
    }
}

impl Ruling {
    pub(super) fn deny(reasons: Vec<String>, steps: &[Step], digest: &str) -> Self {
        Self {
            verdict: Verdict::Deny,
            reasons,
            determining: Vec::new(),
            ttl_max_seconds: None,
            uses_max: None,
            steps: steps.to_vec(),
            shadow: Vec::new(),
            policy_digest: digest.to_owned(),
        }
    }

    /// What becomes of a request that may be asked, by the answer to whether it passes with nobody looking.
    pub(super) fn decide<'o>(&mut self, auto: Answer, obligations: impl Fn(&str) -> Option<&'o Obligations>) {
        self.shadow.extend(auto.shadow);
        self.shadow.sort();
        self.shadow.dedup();
        if auto.allowed {
            self.determining.extend(auto.determining);
        }
        let demanded: Vec<&Obligations> = self.determining.iter().filter_map(|id| obligations(id)).collect();
        let approvers = self.tighten(&demanded);
        if auto.allowed && !approvers {
            (self.verdict, self.reasons) = (Verdict::Approve, auto.reasons);
        } else if self.steps.is_empty() {
            self.reasons = vec!["no policy approves it and the entitlement names no approvers".into()];
            self.reasons.extend(auto.reasons);
        } else {
            self.verdict = Verdict::Ask;
            self.reasons =
                if auto.allowed { vec!["a policy that permits it demands approvers".into()] } else { auto.reasons };
        }
    }

    /// The tightest of everything demanded; whether approvers are demanded whatever else is said.
    fn tighten(&mut self, demanded: &[&Obligations]) -> bool {
        self.ttl_max_seconds = demanded.iter().filter_map(|o| o.max_ttl).map(|ttl| ttl.as_secs()).min();
        self.uses_max = demanded.iter().filter_map(|o| o.max_uses).min();
        for obligations in demanded.iter().filter(|o| !o.approvers.is_empty()) {
            // Each demand is a step of its own: that one group agrees does not answer for another.
            if !self.steps.iter().any(|step| same(&step.approvers, &obligations.approvers)) {
                self.steps.push(Step { approvers: obligations.approvers.clone(), quorum: 1 });
            }
        }
        let quorum = demanded.iter().filter_map(|o| o.quorum).max().unwrap_or(0);
        for step in &mut self.steps {
            step.quorum = step.quorum.max(quorum);
        }
        demanded.iter().any(|o| !o.approvers.is_empty())
    }
}

fn same(a: &[String], b: &[String]) -> bool {
    a.iter().all(|group| b.contains(group)) && b.iter().all(|group| a.contains(group))
}
