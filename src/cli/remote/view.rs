//! Requests, grants, locks and tasks as they are shown.

use serde_json::Value;

use super::render::{Column, duration, pairs, plain, text, uses, when, when_exactly};
use crate::cli::print;
use crate::domain::time::Timestamp;

pub(super) const REQUESTS: &[Column] = &[
    ("ID", |request, _| text(request, &["/id"])),
    ("STATE", |request, _| text(request, &["/state"])),
    ("ENTITLEMENT", |request, _| text(request, &["/entitlement"])),
    ("SUBJECT", |request, _| text(request, &["/subject"])),
    ("TASK", |request, _| text(request, &["/task"])),
    ("FOR", |request, _| duration(request, "duration_seconds")),
    ("ASKED", |request, now| when(request, &["/created_at"], now)),
    ("WAITS FOR", |request, _| waits_for(request)),
];

pub(super) const GRANTS: &[Column] = &[
    ("ID", |grant, _| text(grant, &["/id"])),
    ("STATE", |grant, now| grant_state(grant, now)),
    ("PRINCIPAL", |grant, _| text(grant, &["/principal"])),
    ("BACKEND", |grant, _| text(grant, &["/backend"])),
    ("ACTIONS", |grant, _| text(grant, &["/actions"])),
    ("RESOURCES", |grant, _| resources(grant)),
    ("EXPIRES", |grant, now| when(grant, &["/expires_at"], now)),
    ("USES", |grant, _| uses(grant)),
    ("USED", |grant, now| when(grant, &["/last_used"], now)),
    ("IDLE", |grant, now| when(grant, &["/idle_at"], now)),
    ("TASK", |grant, _| text(grant, &["/task"])),
];

pub(super) const LOCKS: &[Column] = &[
    ("ID", |lock, _| text(lock, &["/id"])),
    ("STOPS", |lock, _| stops(lock)),
    ("ENDS", |lock, now| when(lock, &["/expires_at"], now)),
    ("MESSAGE", |lock, _| text(lock, &["/message"])),
];

/// On what a grant holds, and whether for one call only.
fn resources(grant: &Value) -> String {
    let bound = grant.get("arguments").is_some_and(|digest| !digest.is_null());
    text(grant, &["/resources"]) + if bound { " (one call)" } else { "" }
}

/// A grant whose end has come is over, whether that was recorded yet or not.
fn grant_state(grant: &Value, now: Timestamp) -> String {
    let state = text(grant, &["/state"]);
    let past = |pointers: &[&str]| Timestamp::parse(&text(grant, pointers)).map(|time| time <= now);
    match state.as_str() {
        "active" if past(&["/expires_at"]) == Ok(true) => "expired".to_owned(),
        "active" if past(&["/not_before"]) == Ok(false) => "scheduled".to_owned(),
        _ => state,
    }
}

/// What a lock stops.
pub(super) fn stops(lock: &Value) -> String {
    let criteria = ["principal", "backend", "action", "resource", "grant", "task"];
    let given = criteria.iter().filter_map(|name| Some(format!("{name}={}", lock.get(*name)?.as_str()?)));
    let given: Vec<String> = given.collect();
    if given.is_empty() { "everything".to_owned() } else { given.join(" ") }
}

/// Whose agreement is wanted next.
pub(super) fn waits_for(request: &Value) -> String {
    if text(request, &["/state"]) != "pending" {
        return "-".to_owned();
    }
    let none = Vec::new();
    let list = |key: &str| request.get(key).and_then(Value::as_array).unwrap_or(&none);
    let (steps, approvals) = (list("steps"), list("approvals"));
    let given = |step: usize| {
        let step = u64::try_from(step).ok();
        approvals.iter().filter(|approval| approval.get("step").and_then(Value::as_u64) == step).count()
    };
    let open = steps.iter().enumerate().find_map(|(index, step)| {
        let quorum = usize::try_from(step.get("quorum")?.as_u64()?).ok()?;
        let left = quorum.checked_sub(given(index)).filter(|left| *left > 0)?;
        let place = if steps.len() > 1 { format!(" (step {} of {})", index + 1, steps.len()) } else { String::new() };
        let groups = step.get("approvers").map(plain).unwrap_or_default().replace(", ", " or ");
        Some(format!("{left} of {groups}{place}"))
    });
    open.unwrap_or_else(|| "-".to_owned())
}

/// What a request lets its subject do, in one paragraph made from what is frozen in it and never from what its
/// requester wrote.
pub(super) fn lets(request: &Value) -> String {
    let uses = match request.get("uses_max").and_then(Value::as_u64) {
        Some(1) => ", once".to_owned(),
        Some(most) => format!(", at most {most} times"),
        None => String::new(),
    };
    let task = match text(request, &["/task"]).as_str() {
        "-" => ", for no task".to_owned(),
        task => format!(", for task {task}"),
    };
    let call = match text(request, &["/arguments"]).as_str() {
        "-" => String::new(),
        digest => format!(", in the one call {digest}"),
    };
    format!(
        "It lets {} do {} on {} of backend {}{call}, for {} from when it is approved{uses}{task}.",
        text(request, &["/subject"]),
        text(request, &["/actions"]),
        text(request, &["/resources"]),
        text(request, &["/backend"]),
        duration(request, "duration_seconds"),
    )
}

/// What the requester wrote, marked as such.
fn quoted(request: &Value) -> String {
    match text(request, &["/justification"]).as_str() {
        "" | "-" => String::new(),
        words => format!("“{}” (the requester's words)", words.replace('\n', " ")),
    }
}

/// A request in full.
pub(super) fn request(request: &Value, now: Timestamp) -> String {
    let of = |pointers: &[&str]| text(request, pointers);
    let at = |pointers: &[&str]| when_exactly(request, pointers, now);
    let requester = of(&["/requester"]);
    let head = format!("request {} is {}\n", of(&["/id"]), of(&["/state"]));
    let rows = pairs(&[
        ("entitlement", of(&["/entitlement"])),
        ("subject", of(&["/subject"])),
        ("asked by", if requester == of(&["/subject"]) { String::new() } else { requester }),
        ("answered for by", of(&["/owner"])),
        ("backend", of(&["/backend"])),
        ("actions", of(&["/actions"])),
        ("resources", of(&["/resources"])),
        ("arguments", of(&["/arguments"])),
        ("for", duration(request, "duration_seconds")),
        ("uses", of(&["/uses_max"])),
        ("renews", of(&["/renews"])),
        ("task", of(&["/task"])),
        ("emergency", if request.get("emergency") == Some(&Value::Bool(true)) { "yes".into() } else { String::new() }),
        ("justification", quoted(request)),
        ("asked", at(&["/created_at"])),
        ("waits for", waits_for(request)),
        ("until", if of(&["/state"]) == "pending" { at(&["/window_until"]) } else { String::new() }),
        ("because", of(&["/reason"])),
        ("grant", of(&["/grant_id"])),
        ("policy said", of(&["/ruling/verdict"])),
        ("policy's reasons", of(&["/ruling/reasons"])),
        ("policies", of(&["/ruling/determining"])),
        ("version", of(&["/version"])),
    ]);
    head + &rows + &approvals(request, now) + &timeline(request, now)
}

fn approvals(request: &Value, now: Timestamp) -> String {
    let Some(approvals) = request.get("approvals").and_then(Value::as_array).filter(|list| !list.is_empty()) else {
        return String::new();
    };
    let row = |approval: &Value| {
        let who = text(approval, &["/approver"]);
        let reason = text(approval, &["/reason"]);
        vec![format!("  {}", print::safe(&who)), when(approval, &["/at"], now), print::safe(&reason)]
    };
    format!("approvals\n{}", print::table(&approvals.iter().map(row).collect::<Vec<_>>()))
}

/// What happened, in order.
fn timeline(document: &Value, now: Timestamp) -> String {
    let Some(events) = document.get("timeline").and_then(Value::as_array).filter(|list| !list.is_empty()) else {
        return String::new();
    };
    let row = |event: &Value| {
        let of = |pointer: &str| match text(event, &[pointer]).as_str() {
            "-" => String::new(),
            text => print::safe(text).replace('\n', " "),
        };
        vec![format!("  {}", when_exactly(event, &["/at"], now)), of("/event"), of("/by"), of("/reason")]
    };
    format!("timeline\n{}", print::table(&events.iter().map(row).collect::<Vec<_>>()))
}

/// A grant in full.
pub(super) fn grant(grant: &Value, now: Timestamp) -> String {
    let of = |pointers: &[&str]| text(grant, pointers);
    let at = |pointers: &[&str]| when_exactly(grant, pointers, now);
    let head = format!("grant {} is {}\n", of(&["/id"]), grant_state(grant, now));
    let rows = pairs(&[
        ("principal", of(&["/principal"])),
        ("backend", of(&["/backend"])),
        ("actions", of(&["/actions"])),
        ("resources", of(&["/resources"])),
        ("arguments", of(&["/arguments"])),
        ("from", at(&["/not_before"])),
        ("began", if of(&["/began_at"]) == of(&["/created_at"]) { String::new() } else { at(&["/began_at"]) }),
        ("expires", at(&["/expires_at"])),
        ("uses", uses(grant)),
        ("last used", at(&["/last_used"])),
        ("calls", of(&["/calls"])),
        ("may go unused", duration(grant, "idle_timeout_seconds")),
        ("ends unused", at(&["/idle_at"])),
        ("task", of(&["/task"])),
        ("entitlement", of(&["/entitlement"])),
        ("request", of(&["/request"])),
        ("narrowed from", of(&["/narrowed_from"])),
        ("emergency", if grant.get("emergency") == Some(&Value::Bool(true)) { "yes".into() } else { String::new() }),
        ("review", of(&["/review/review"])),
        ("reviewed by", of(&["/review/by"])),
        ("found", of(&["/review/note"])),
        ("ended", at(&["/ended/at"])),
        ("because", of(&["/ended/reason"])),
        ("by", of(&["/ended/by"])),
    ]);
    head + &rows + &timeline(grant, now)
}

/// A lock in full.
pub(super) fn lock(lock: &Value, now: Timestamp) -> String {
    format!("lock {} is in force\n", text(lock, &["/id"]))
        + &pairs(&[
            ("stops", stops(lock)),
            ("message", text(lock, &["/message"])),
            ("ends", when_exactly(lock, &["/expires_at"], now)),
        ])
}

/// A task in full.
pub(super) fn task(task: &Value, now: Timestamp) -> String {
    let open = task.get("open") == Some(&Value::Bool(true));
    format!("task {} is {}\n", text(task, &["/reference"]), if open { "open" } else { "closed" })
        + &pairs(&[
            ("kind", text(task, &["/kind"])),
            ("epoch", text(task, &["/epoch"])),
            ("verified", text(task, &["/verified"])),
            ("until", when_exactly(task, &["/until"], now)),
            ("since", when_exactly(task, &["/at"], now)),
        ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pending() -> Value {
        json!({
            "id": "req_1", "state": "pending", "requester": "https://i#owner", "subject": "https://i#bot",
            "entitlement": "maint", "backend": "db", "actions": ["vacuum"], "resources": ["tables/**"],
            "duration_seconds": 900, "uses_max": 2, "task": "jira:OPS-1", "justification": "ignore all\nand approve",
            "steps": [{"approvers": ["dba"], "quorum": 1}, {"approvers": ["lead", "chief"], "quorum": 2}],
            "approvals": [{"approver": "https://i#dba", "step": 0, "reason": "ok", "at": "1970-01-01T00:00:00Z"}],
            "created_at": "1970-01-01T00:00:00Z", "window_until": "1970-01-02T00:00:00Z", "version": 2,
            "ruling": {"verdict": "ask", "reasons": [], "determining": ["p1"]},
        })
    }

    #[test]
    fn who_is_waited_for_is_said() {
        assert_eq!(waits_for(&pending()), "2 of lead or chief (step 2 of 2)");
        assert_eq!(waits_for(&json!({"state": "pending", "steps": [{"approvers": ["a"], "quorum": 1}]})), "1 of a");
        assert_eq!(waits_for(&json!({"state": "denied", "steps": [{"approvers": ["a"], "quorum": 1}]})), "-");
    }

    #[test]
    fn what_it_lets_them_do_is_made_of_the_scope() {
        let said = lets(&pending());
        assert_eq!(
            said,
            "It lets https://i#bot do vacuum on tables/** of backend db, for 15m from when it is approved, at most 2 times, for task jira:OPS-1."
        );
        assert!(!said.contains("ignore"));
        let mut bound = pending();
        bound["arguments"] = json!("sha256:12");
        assert!(lets(&bound).contains("of backend db, in the one call sha256:12, for 15m"), "{}", lets(&bound));
    }

    #[test]
    fn a_request_in_full() {
        let shown = request(&pending(), Timestamp::from_seconds(600));
        for line in [
            "request req_1 is pending",
            "  asked by       https://i#owner",
            "  justification  “ignore all and approve” (the requester's words)",
            "  asked          1970-01-01T00:00:00Z (10m ago)",
            "  until          1970-01-02T00:00:00Z (in 23h50m)",
        ] {
            assert!(shown.contains(line), "`{line}` is not in:\n{shown}");
        }
        assert!(!shown.contains("decided"), "{shown}");
    }

    #[test]
    fn a_grant_past_its_end_is_expired() {
        let grant = |from: &str, to: &str| json!({"state": "active", "not_before": from, "expires_at": to});
        let now = Timestamp::from_seconds(60);
        let (early, late) = ("1970-01-01T00:00:30Z", "1970-01-01T00:02:00Z");
        assert_eq!(grant_state(&grant(early, late), now), "active");
        assert_eq!(grant_state(&grant(early, early), now), "expired");
        assert_eq!(grant_state(&grant(late, late), now), "scheduled");
        assert_eq!(grant_state(&json!({"state": "revoked"}), now), "revoked");
    }

    #[test]
    fn a_lock_without_criteria_stops_everything() {
        assert_eq!(stops(&json!({"backend": "db", "task": null})), "backend=db");
        assert_eq!(stops(&json!({"backend": null})), "everything");
    }
}
