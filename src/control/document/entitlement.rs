//! What may be asked for.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::{duration_text, group_name};
use crate::domain::action::{ActionPattern, Scope};
use crate::domain::entitlement::{ArgumentRule, DURATION_MAX, Entitlement, Step, TaskRule};
use crate::domain::grant::Idle;
use crate::domain::id::{BackendName, EntitlementName};
use crate::domain::resource::ResourcePattern;

/// Longest life of a break-glass grant: it is for the time until somebody can be asked.
const EMERGENCY_MAX: Duration = Duration::from_secs(3_600);

/// Longest time for which a request waits for approvers.
const WINDOW_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Most steps of an approval, and most approvers of a step.
const STEPS_MAX: usize = 8;
const QUORUM_MAX: u32 = 16;

/// Most actions, resources and groups of an entitlement: each is looked through for every request.
const NAMES_MAX: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntitlementSpec {
    backend: BackendName,
    actions: Vec<ActionPattern>,
    resources: Vec<ResourcePattern>,
    eligible: Vec<String>,
    #[serde(deserialize_with = "duration_text")]
    duration_max: Duration,
    #[serde(default)]
    uses_max: Option<u32>,
    #[serde(deserialize_with = "some_duration", default)]
    idle_timeout: Option<Duration>,
    #[serde(default)]
    approval: ApprovalSpec,
    #[serde(default)]
    justification: Need,
    #[serde(default)]
    task: TaskRule,
    #[serde(default)]
    arguments: ArgumentRule,
    #[serde(default = "one")]
    concurrent_max: u32,
    #[serde(default)]
    emergency: bool,
}

/// A duration where one is written: `null` is none.
fn some_duration<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<Duration>, D::Error> {
    duration_text(reader).map(Some)
}

fn one() -> u32 {
    1
}

/// Whether something must be said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Need {
    #[default]
    Optional,
    Required,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApprovalSpec {
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(deserialize_with = "duration_text", default = "day")]
    window: Duration,
}

impl Default for ApprovalSpec {
    fn default() -> Self {
        Self { steps: Vec::new(), window: day() }
    }
}

fn day() -> Duration {
    Duration::from_secs(86_400)
}

impl EntitlementSpec {
    pub(super) fn resolve(self, name: &str) -> Result<Entitlement, String> {
        self.check_names()?;
        self.check_bounds()?;
        self.check_approval()?;
        Ok(Entitlement {
            name: EntitlementName::new(name).map_err(|error| error.to_string())?,
            backend: self.backend,
            scope: Scope::new(self.actions, self.resources),
            eligible: self.eligible,
            duration_max: self.duration_max,
            uses_max: self.uses_max,
            idle_timeout: self.idle_timeout,
            steps: self.approval.steps,
            window: self.approval.window,
            justification_required: self.justification == Need::Required,
            task: self.task,
            arguments: self.arguments,
            concurrent_max: self.concurrent_max,
            emergency: self.emergency,
        })
    }

    fn check_names(&self) -> Result<(), String> {
        let lengths =
            [("actions", self.actions.len()), ("resources", self.resources.len()), ("eligible", self.eligible.len())];
        for (field, length) in lengths {
            if length == 0 || length > NAMES_MAX {
                return Err(format!("spec.{field}: name from 1 to {NAMES_MAX}"));
            }
        }
        self.eligible.iter().try_for_each(|group| group_name(group)).map_err(|error| format!("spec.eligible: {error}"))
    }

    fn check_bounds(&self) -> Result<(), String> {
        if self.duration_max.is_zero() || self.duration_max > DURATION_MAX {
            return Err("spec.duration_max: from `1s` to `24h`".into());
        }
        if self.emergency && self.duration_max > EMERGENCY_MAX {
            return Err(
                "spec.duration_max: at most `1h` with `emergency: true`; ask again, or ask approvers, for more".into(),
            );
        }
        if self.uses_max == Some(0) {
            return Err("spec.uses_max: at least 1".into());
        }
        let idle = Idle::TIMEOUT_MIN..=self.duration_max;
        if self.idle_timeout.is_some_and(|timeout| !idle.contains(&timeout)) {
            return Err("spec.idle_timeout: from `1m` to `duration_max`".into());
        }
        if self.concurrent_max == 0 {
            return Err("spec.concurrent_max: at least 1".into());
        }
        Ok(())
    }

    fn check_approval(&self) -> Result<(), String> {
        let approval = &self.approval;
        if approval.window.is_zero() || approval.window > WINDOW_MAX {
            return Err("spec.approval.window: from `1s` to `30d`".into());
        }
        if approval.steps.len() > STEPS_MAX {
            return Err(format!("spec.approval.steps: at most {STEPS_MAX}"));
        }
        for (place, step) in approval.steps.iter().enumerate() {
            let wrong = |what: &str| format!("spec.approval.steps[{place}]{what}");
            if step.approvers.is_empty() || step.approvers.len() > NAMES_MAX {
                return Err(wrong(&format!(".approvers: name from 1 to {NAMES_MAX} groups")));
            }
            if step.quorum == 0 || step.quorum > QUORUM_MAX {
                return Err(wrong(&format!(".quorum: from 1 to {QUORUM_MAX}")));
            }
            let named = step.approvers.iter().try_for_each(|group| group_name(group));
            named.map_err(|error| wrong(&format!(".approvers: {error}")))?;
        }
        Ok(())
    }
}
