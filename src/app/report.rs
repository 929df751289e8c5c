//! What the admin listener tells: status, grants, and what would happen to a call.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{LOOK_EVERY, Parts};
use crate::domain::grant::GrantState;
use crate::domain::principal::Principal;
use crate::domain::time::{Timestamp, Window};
use crate::sidecar::call::NO_ACTION_MAP;
use crate::sidecar::decide::{Arguments, Basis, Denial, Question};
use crate::sidecar::inflow;
use crate::sidecar::plane::Backend;
use crate::sidecar::plane::given::Standing;
use crate::sidecar::reason::Reason;
use crate::sidecar::resolve::{Match, Resolved};
use crate::telemetry::admin::{Admin, Handler};

/// Most grants that one report lists.
const GRANTS_MAX: usize = 10_000;

pub(super) fn handlers(parts: &Parts) -> BTreeMap<&'static str, Handler> {
    let mut handlers: BTreeMap<&'static str, Handler> = BTreeMap::new();
    let (a, b, c) = (parts.clone(), parts.clone(), parts.clone());
    handlers.insert("/status", Arc::new(move |_| (StatusCode::OK, status(&a))));
    handlers.insert("/grants", Arc::new(move |_| (StatusCode::OK, grants(&b))));
    handlers.insert(
        "/explain",
        Arc::new(move |query| match explain(&c, query) {
            Ok(value) => (StatusCode::OK, value),
            Err(why) => (StatusCode::BAD_REQUEST, json!({ "status": 400, "detail": why })),
        }),
    );
    handlers
}

pub(super) fn admin(parts: &Parts, handlers: BTreeMap<&'static str, Handler>, address: SocketAddr) -> Admin {
    Admin { metrics: parts.metrics.clone(), readiness: parts.readiness.clone(), reports: Arc::new(handlers), address }
}

/// Says again and again whether the conditions of readiness hold, until `stop`.
pub(super) async fn follow_readiness(parts: Parts, stop: CancellationToken) {
    loop {
        let now = parts.clock.now();
        let fresh = parts.decider.freshness().is_fresh(now);
        let stale = || "the view of the grants is older than grants.staleness_max".to_owned();
        parts.readiness.set("grants", if fresh { Ok(()) } else { Err(stale()) });
        parts.readiness.set("keys", parts.plane.load().verifier.ready(now));
        parts.readiness.set("action_maps", has_maps(&parts));
        parts.readiness.set("audit", parts.recorder.health().map_err(str::to_owned));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY / 4) => {}
        }
    }
}

fn status(parts: &Parts) -> Value {
    let now = parts.clock.now();
    let table = parts.decider.table();
    let census = table.census(now);
    let by_state: BTreeMap<_, _> =
        GrantState::ALL.into_iter().map(|state| (state.as_str(), census.by_state[state as usize])).collect();
    let plane = parts.plane.load();
    let (ready, readiness) = parts.readiness.report();
    let (audit_bytes, lost) = parts.recorder.totals();
    let guardrails = parts.decider.guardrails();
    let keys: BTreeMap<_, _> =
        plane.verifier.keys_age(now).into_iter().map(|(name, age)| (name, age.map(|age| age.as_secs_f64()))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": ready,
        "conditions": readiness["conditions"],
        "revision": table.revision().0,
        "source": parts.source.as_ref().map(|source| json!({
            "connected": source.is_connected(),
            "reconnects": source.reconnects(),
            "clock_offset_seconds": source.clock_offset_seconds(),
        })),
        "view_age_seconds": parts.decider.freshness().age(now).map(|age| age.as_secs_f64()),
        "grants": by_state,
        "locks": census.locks,
        "guardrails": {
            "policies": guardrails.len(),
            "digest": guardrails.digest(),
            "broken": parts.decider.guardrails_are_broken(),
        },
        "action_maps": action_maps(parts),
        "next_expiry_seconds": census.next_expiry.map(|next| next.as_secs_f64()),
        "calls_running": parts.decider.calls().len(),
        "leases": plane.credentials.leases(),
        "tokens_remembered": plane.verifier.remembered_tokens(),
        "keys_age_seconds": keys,
        "audit_bytes": audit_bytes,
        "outcomes_lost": lost,
    })
}

/// How it stands with the action maps that the control plane says.
fn action_maps(parts: &Parts) -> Value {
    let one = |standing: Standing| {
        let (name, digest) = standing.held.unzip();
        let map = json!({"name": name, "digest": digest, "error": standing.error});
        (standing.backend.to_string(), map)
    };
    parts.maps.standing().into_iter().map(one).collect::<serde_json::Map<_, _>>().into()
}

/// Whether there is a map for each backend whose map the control plane says.
fn has_maps(parts: &Parts) -> Result<(), String> {
    let missing = parts.maps.standing().into_iter().filter(|standing| standing.held.is_none());
    let said: Vec<String> = missing
        .map(|Standing { backend, error, .. }| {
            error.unwrap_or_else(|| format!("the control plane has not said the action map of `{backend}`"))
        })
        .collect();
    if said.is_empty() { Ok(()) } else { Err(said.join("; ")) }
}

fn grants(parts: &Parts) -> Value {
    let now = parts.clock.now();
    let counts = parts.decider.counts();
    let mut entries = parts.decider.table().entries();
    let total = entries.len();
    entries.sort_by(|a, b| a.id().cmp(&b.id()));
    entries.truncate(GRANTS_MAX);
    let listed: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let (uses_max, uses) = entry.uses();
            let window = entry.window().window();
            let state = match entry.state(now) {
                GrantState::Active if uses_max.is_some_and(|max| uses >= max) => GrantState::Exhausted,
                state => state,
            };
            json!({
                "id": entry.id().as_str(),
                "state": state.as_str(),
                "principal": entry.principal().as_str(),
                "backend": entry.backend().as_str(),
                "actions": entry.scope().actions().iter().map(|a| a.as_str()).collect::<Vec<_>>(),
                "resources": entry.scope().resources().iter().map(|r| r.as_str()).collect::<Vec<_>>(),
                "arguments": entry.scope().arguments(),
                "not_before": window.not_before.to_string(),
                "expires_at": window.expires_at.to_string(),
                "uses_max": uses_max,
                // Where others count, only they know.
                "uses_left": uses_max.filter(|_| counts).map(|max| max.saturating_sub(uses)),
                "task": entry.task().map(|task| task.as_str()),
            })
        })
        .collect();
    json!({ "total": total, "grants": listed })
}

/// The parameters of a query, decoded.
fn parameters(query: &str) -> Result<Vec<(String, String)>, String> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (decode(name), decode(value)) {
                (Ok(name), Ok(value)) => Ok((name, value)),
                _ => Err("a parameter is not UTF-8".to_owned()),
            }
        })
        .collect()
}

/// What would happen to a call, and why. Nothing is used up by asking.
fn explain(parts: &Parts, query: &str) -> Result<Value, String> {
    let parameters = parameters(query)?;
    let one = |name: &str| parameters.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
    let principal = Principal::parse(one("principal").ok_or("name a `principal`")?).map_err(|e| e.to_string())?;
    let method = one("method").ok_or("name a `method`")?;
    let target = one("target").ok_or("name a `target`")?;
    let plane = parts.plane.load();
    let mut backends = plane.offers.iter().flat_map(|offer| &offer.backends);
    let backend = match one("backend") {
        Some(name) => {
            backends.find(|b| b.rules.name.as_str() == name).ok_or(format!("there is no backend `{name}`"))?
        }
        None => backends.next().ok_or("there is no backend")?,
    };
    let mut request =
        Request::builder().method(method).uri(target).header(http::header::HOST, backend.canonical.a_name());
    for (_, header) in parameters.iter().filter(|(name, _)| name == "header") {
        let (name, value) = header.split_once(':').ok_or("write a header as `name: value`")?;
        request = request.header(name.trim(), value.trim());
    }
    let body = match one("body_base64") {
        Some(body) => STANDARD.decode(body).map_err(|_| "`body_base64` is no base64")?,
        None => Vec::new(),
    };
    let (head, ()) = request.body(()).map_err(|error| error.to_string())?.into_parts();
    Ok(explain_call(parts, backend, &principal, head, &body))
}

fn explain_call(
    parts: &Parts,
    backend: &Arc<Backend>,
    principal: &Principal,
    head: http::request::Parts,
    body: &[u8],
) -> Value {
    let name = backend.rules.name.as_str();
    let refused = |reason: Reason, detail: &str| json!({ "decision": "deny", "reason": reason.as_str(), "detail": detail, "backend": name, "status": reason.status().as_u16() });
    let canonical = match crate::sidecar::canonical::canonicalise(head, &backend.canonical) {
        Ok(canonical) => canonical,
        Err(malformed) => return refused(malformed.as_reason(), malformed.reason()),
    };
    let Some(map) = &backend.actions else {
        return refused(Reason::StaleSource, NO_ACTION_MAP);
    };
    let resolved = match map.resolve(&canonical) {
        Match::Action(resolved) => Some(resolved),
        Match::Unmapped => None,
        Match::NeedsBody(rules) => match rules.resolve(&canonical, body) {
            Ok(resolved) => resolved,
            Err(refusal) => return refused(refusal.as_reason(), refusal.reason()),
        },
    };
    let Some(Resolved { action, resource }) = resolved else {
        return refused(Reason::UnmappedAction, "no rule of the action map names what this call does");
    };
    let now = parts.clock.now();
    let always = Window { not_before: Timestamp::from_seconds(0), expires_at: Timestamp::MAX };
    let question = Question {
        principal,
        identity: always.anchor(now),
        task: None,
        backend: &backend.rules,
        action: Some(&action),
        resource: &resource,
        arguments: &Arguments::Unread,
    };
    let mut value = json!({
        "backend": name,
        "target": canonical.path_and_query().as_str(),
        "action": action.name.as_str(),
        "class": action.class.as_str(),
        "resource": resource.to_string(),
    });
    let mut foreseen = parts.decider.foresee(&question);
    if foreseen.as_ref().is_err_and(Denial::is_open) {
        let digest = inflow::digest(&canonical, body);
        let arguments = match inflow::is_whole(&canonical) {
            true if body.len() <= backend.body.arguments_max => Arguments::Known(digest),
            true => Arguments::Hidden(Reason::BodyTooLarge),
            false => Arguments::Hidden(Reason::BodyUnreadable),
        };
        foreseen = parts.decider.foresee(&Question { arguments: &arguments, ..question });
        value["depends_on"] = "arguments".into();
        value["arguments"] = json!(digest);
    }
    tell(&mut value, foreseen);
    value
}

/// What was foreseen, in the words of an answer.
fn tell(value: &mut Value, foreseen: Result<Basis, Denial>) {
    match foreseen {
        Ok(Basis::Grant(entry)) => {
            value["decision"] = "permit".into();
            value["reason"] = Reason::Granted.as_str().into();
            value["grant"] = entry.id().as_str().into();
            value["expires_at"] = entry.window().window().expires_at.to_string().into();
        }
        Ok(Basis::Baseline(_) | Basis::Observed(_)) => {
            value["decision"] = "permit".into();
            value["reason"] = Reason::Baseline.as_str().into();
        }
        Err(denial) => {
            value["decision"] = "deny".into();
            value["reason"] = denial.reason.as_str().into();
            value["reasons"] = denial.reasons.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().into();
            value["status"] = denial.reason.status().as_u16().into();
            if let Some(said) = &denial.guardrail {
                value["guardrails"] = said.stopping().map(|rule| rule.to_string()).collect();
                value["faults"] = said.faults.clone().into();
            }
            if let Some(grant) = &denial.grant {
                value["grant"] = grant.as_str().into();
            }
        }
    }
}
