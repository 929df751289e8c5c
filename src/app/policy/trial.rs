//! One request, from asking to its approvers' answers, on a store that is thrown away.

use std::time::Duration;

use serde::Deserialize;

use crate::control::catalogue::Catalogue;
use crate::control::command::{Ask, Command, Failed, Reply, execute};
use crate::control::document::duration;
use crate::control::refusal::Refusal;
use crate::control::route::Verdict;
use crate::control::store::memory::MemoryStore;
use crate::control::store::{RequestRow, Store, Transaction, Write};
use crate::domain::action::ActionPattern;
use crate::domain::arguments::ArgumentDigest;
use crate::domain::entitlement::{Bounds, Step};
use crate::domain::id::{EntitlementName, GrantId, RequestId, TaskRef};
use crate::domain::principal::Principal;
use crate::domain::resource::ResourcePattern;
use crate::domain::task::Task;
use crate::domain::time::Timestamp;

/// Who asks for what, and in which circumstances.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Situation {
    /// Who asks.
    pub principal: Principal,
    /// For whom, where it is somebody else.
    #[serde(default, rename = "for")]
    pub subject: Option<Principal>,
    /// For what.
    pub entitlement: EntitlementName,
    /// Fewer actions than the entitlement has.
    #[serde(default)]
    pub actions: Option<Vec<ActionPattern>>,
    /// Fewer resources than the entitlement has.
    #[serde(default)]
    pub resources: Option<Vec<ResourcePattern>>,
    /// Only the call of that digest.
    #[serde(default)]
    pub arguments: Option<ArgumentDigest>,
    /// For how long, such as `15m`; without it as long as the entitlement allows.
    #[serde(default)]
    pub duration: Option<String>,
    /// For how many calls.
    #[serde(default)]
    pub uses: Option<u32>,
    /// The requester's words.
    #[serde(default = "because")]
    pub justification: String,
    /// What justifies it.
    #[serde(default)]
    pub task: Option<TaskSituation>,
    /// When.
    #[serde(default = "monday_noon")]
    pub time: Timestamp,
    /// Who agrees afterwards, in this order.
    #[serde(default)]
    pub approvers: Vec<Principal>,
}

fn because() -> String {
    "a case of a policy test".to_owned()
}

fn monday_noon() -> Timestamp {
    // 2026-01-05T12:00:00Z.
    Timestamp::from_seconds(1_767_614_400)
}

/// A task, as it is known when it is named.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSituation {
    /// Its name at its source: `pagerduty:PGR0VU2`.
    #[serde(rename = "ref")]
    pub reference: TaskRef,
    /// What kind it is.
    #[serde(default)]
    pub kind: String,
    /// Whether its source said so.
    #[serde(default)]
    pub verified: bool,
    /// Whether it is open.
    #[serde(default = "yes")]
    pub open: bool,
    /// When it ends by itself.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

fn yes() -> bool {
    true
}

/// What a case expects; what is not said is not looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// What policy says.
    pub verdict: Verdict,
    /// How long a grant that began now would live, such as `15m`.
    #[serde(default)]
    pub max_ttl: Option<String>,
    /// How many calls it would allow.
    #[serde(default)]
    pub max_uses: Option<u32>,
    /// Who must agree.
    #[serde(default)]
    pub steps: Option<Vec<Step>>,
    /// Exactly these policies determined it.
    #[serde(default)]
    pub determining: Option<Vec<String>>,
    /// The reasons contain this text.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where the request stands in the end: `pending`, `approved`, `denied`.
    #[serde(default)]
    pub state: Option<String>,
    /// The last approver is refused with this code, such as `self_approval`.
    #[serde(default)]
    pub refused: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) reasons: Vec<String>,
    pub(super) determining: Vec<String>,
    pub(super) shadow: Vec<String>,
    pub(super) ttl: Option<Duration>,
    pub(super) uses: Option<u32>,
    pub(super) steps: Vec<Step>,
    pub(super) state: String,
    /// Why the request was not even asked, or why the last approver was refused.
    pub(super) refused: Option<Refusal>,
}

/// Runs it.
///
/// # Errors
/// What in the situation cannot be.
pub(super) fn run(catalogue: &Catalogue, situation: &Situation) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    runtime.block_on(run_on(MemoryStore::default(), catalogue, situation))
}

struct Trial<'t, T> {
    catalogue: &'t Catalogue,
    rows: T,
    now: Timestamp,
}

async fn run_on(store: MemoryStore, catalogue: &Catalogue, situation: &Situation) -> Result<Outcome, String> {
    let rows = store.begin().await.map_err(|error| error.to_string())?;
    let mut trial = Trial { catalogue, rows, now: situation.time };
    if let Some(task) = &situation.task {
        let task = Task {
            kind: task.kind.clone(),
            verified: task.verified,
            open: task.open,
            until: task.until,
            ..Task::mentioned(task.reference.clone(), situation.time)
        };
        trial.rows.apply(vec![Write::Task(task)]).await.map_err(|error| error.to_string())?;
    }
    let asked = trial.execute(&situation.principal, Command::Ask(Box::new(ask(situation)?))).await?;
    let row = match asked {
        Ok(row) => row,
        Err(refusal) => return Ok(Outcome::refused(refusal)),
    };
    let mut outcome = trial.outcome(&row, situation);
    let mut row = row;
    for approver in &situation.approvers {
        let command =
            Command::Approve { request: row.request.id.clone(), seen: row.version, reason: "agreed".to_owned() };
        match trial.execute(approver, command).await? {
            Ok(after) => (row, outcome.refused) = (after, None),
            Err(refusal) => outcome.refused = Some(refusal),
        }
    }
    outcome.state = row.elevation.state().to_owned();
    Ok(outcome)
}

impl<T: Transaction> Trial<'_, T> {
    async fn execute(&mut self, actor: &Principal, command: Command) -> Result<Result<RequestRow, Refusal>, String> {
        match execute(&mut self.rows, self.catalogue, actor, &command, self.now).await {
            Ok((Reply::Request(row, _), writes)) => {
                self.rows.apply(writes).await.map_err(|error| error.to_string())?;
                Ok(Ok(*row))
            }
            Ok(_) => Err("the command answered something else than a request".to_owned()),
            Err(Failed::Refused(refusal)) => Ok(Err(refusal)),
            Err(Failed::Store(error)) => Err(error.to_string()),
        }
    }

    fn outcome(&self, row: &RequestRow, situation: &Situation) -> Outcome {
        let (request, ruling) = (&row.request, &row.ruling);
        let entitlement = self.catalogue.entitlements.get(&request.entitlement);
        let bounds = Bounds {
            requested: request.duration,
            entitlement: entitlement.map_or(request.duration, |entitlement| entitlement.duration_max),
            policy: ruling.ttl_max_seconds.map(Duration::from_secs),
            task_until: situation.task.as_ref().and_then(|task| task.until),
            chain_until: None,
        };
        let granted = ruling.verdict != Verdict::Deny;
        Outcome {
            verdict: ruling.verdict,
            reasons: ruling.reasons.clone(),
            determining: ruling.determining.clone(),
            shadow: ruling.shadow.clone(),
            ttl: granted.then(|| bounds.expires_at(self.now).since(self.now)),
            uses: request.uses_max.into_iter().chain(ruling.uses_max).min().filter(|_| granted),
            steps: if ruling.verdict == Verdict::Ask { ruling.steps.clone() } else { Vec::new() },
            state: row.elevation.state().to_owned(),
            refused: None,
        }
    }
}

impl Outcome {
    fn refused(refusal: Refusal) -> Self {
        Self {
            verdict: Verdict::Deny,
            reasons: vec![refusal.detail.clone()],
            determining: Vec::new(),
            shadow: Vec::new(),
            ttl: None,
            uses: None,
            steps: Vec::new(),
            state: "denied".to_owned(),
            refused: Some(refusal),
        }
    }
}

fn ask(situation: &Situation) -> Result<Ask, String> {
    let seconds = situation.duration.as_deref().map(duration).transpose()?.map(|d| d.as_secs());
    let id = RequestId::new("req_trial").map_err(|error| error.to_string())?;
    let grant = GrantId::new("grt_trial").map_err(|error| error.to_string())?;
    Ok(Ask {
        subject: situation.subject.clone(),
        actions: situation.actions.clone(),
        resources: situation.resources.clone(),
        arguments: situation.arguments,
        duration_seconds: seconds,
        uses: situation.uses,
        task: situation.task.as_ref().map(|task| task.reference.clone()),
        justification: situation.justification.clone(),
        ..Ask::of(id, grant, situation.entitlement.clone())
    })
}

/// A duration as documents have it.
pub(super) fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => "0s".to_owned(),
        _ if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        _ if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}
