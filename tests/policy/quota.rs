//! What the command side refuses by what documents say: quotas, tasks, and what changed in between.

use leasehold::control::catalogue::Catalogue;
use leasehold::control::command::{Ask, Command, Failed, Reply, execute};
use leasehold::control::store::memory::MemoryStore;
use leasehold::control::store::{Rows, Store, Transaction, Write};
use leasehold::domain::id::{EntitlementName, GrantId, RequestId, TaskRef};
use leasehold::domain::task::Task;
use serde_json::json;

use crate::{ALICE, BOB, BOT, base, document, elevation, noon, who};

const AUTO: &str = "@id(\"auto\") permit(principal, action == Leasehold::Action::\"elevation:auto_approve\", resource) \
                    when { context.ttl_s > 0 };";

fn ask(number: usize, entitlement: &str, task: Option<&str>) -> Command {
    let id = RequestId::new(&format!("req_{number}")).unwrap();
    let grant = GrantId::new(&format!("grt_{number}")).unwrap();
    let task = task.map(|task| TaskRef::new(task).unwrap());
    Command::Ask(Box::new(Ask { task, ..Ask::of(id, grant, EntitlementName::new(entitlement).unwrap()) }))
}

fn code(answer: &Result<(Reply, Vec<Write>), Failed>) -> &'static str {
    match answer {
        Ok(_) => "done",
        Err(Failed::Refused(refusal)) => refusal.code,
        Err(Failed::Store(_)) => "store",
    }
}

#[tokio::test]
async fn a_principal_holds_at_most_its_grants_over_all_entitlements() {
    let mut documents = base();
    documents.retain(|document| document.metadata.name != "bot");
    let spec = json!({"principal": BOT, "type": "workload", "groups": ["dba"], "grants_max": 3});
    documents.extend([document("Principal", "bot", spec), elevation(AUTO)]);
    let catalogue = Catalogue::read(&documents, 0).unwrap();
    let store = MemoryStore::default();
    let mut rows = store.begin().await.unwrap();
    for (number, entitlement, expected) in
        [(1, "maint", "done"), (2, "purge", "done"), (3, "maint", "done"), (4, "purge", "too_many_grants")]
    {
        let answer = execute(&mut rows, &catalogue, &who(BOT), &ask(number, entitlement, None), noon()).await;
        assert_eq!(code(&answer), expected, "{number}");
        if let Ok((_, writes)) = answer {
            rows.apply(writes).await.unwrap();
        }
    }
    // What ended is not held.
    let release = Command::Release(GrantId::new("grt_1").unwrap());
    let (_, writes) = execute(&mut rows, &catalogue, &who(BOT), &release, noon()).await.unwrap();
    rows.apply(writes).await.unwrap();
    let answer = execute(&mut rows, &catalogue, &who(BOT), &ask(4, "purge", None), noon()).await;
    assert_eq!(code(&answer), "done");
}

#[tokio::test]
async fn what_waits_for_approval_does_not_pass_the_quota_either() {
    let mut documents = base();
    documents.retain(|document| document.metadata.name != "bot");
    let spec = json!({"principal": BOT, "type": "workload", "groups": ["dba"], "grants_max": 1});
    documents.push(document("Principal", "bot", spec));
    let catalogue = Catalogue::read(&documents, 0).unwrap();
    let store = MemoryStore::default();
    let mut rows = store.begin().await.unwrap();
    let approve = |number| Command::Approve {
        request: RequestId::new(&format!("req_{number}")).unwrap(),
        seen: 1,
        reason: String::new(),
    };
    for (actor, command, expected) in [
        (BOT, ask(1, "maint", None), "done"),
        (BOT, ask(2, "maint", None), "done"),
        (ALICE, approve(1), "done"),
        (ALICE, approve(2), "too_many_grants"),
        (BOT, Command::Release(GrantId::new("grt_1").unwrap()), "done"),
        (ALICE, approve(2), "done"),
    ] {
        let answer = execute(&mut rows, &catalogue, &who(actor), &command, noon()).await;
        assert_eq!(code(&answer), expected, "{command:?}");
        if let Ok((_, writes)) = answer {
            rows.apply(writes).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_task_is_required_or_verified_as_the_entitlement_says() {
    let mut documents = base();
    for (name, rule) in [("any", "optional"), ("some", "required"), ("sure", "verified")] {
        let spec = json!({
            "backend": "db", "actions": ["pg.vacuum"], "resources": ["**"], "eligible": ["dba"], "duration_max": "5m",
            "task": rule, "approval": {"steps": [{"approvers": ["oncall"], "quorum": 1}]},
        });
        documents.push(document("Entitlement", name, spec));
    }
    let catalogue = Catalogue::read(&documents, 0).unwrap();
    let store = MemoryStore::default();
    let mut rows = store.begin().await.unwrap();
    let task = |name: &str, verified, open| {
        let reference = TaskRef::new(name).unwrap();
        Write::Task(Task { verified, open, ..Task::mentioned(reference, noon()) })
    };
    let tasks = vec![task("t:said", true, true), task("t:closed", true, false), task("t:heard", false, true)];
    rows.apply(tasks).await.unwrap();
    for (entitlement, named, expected) in [
        ("any", None, "done"),
        ("any", Some("t:closed"), "task_closed"),
        ("some", None, "task_required"),
        ("some", Some("t:new"), "done"),
        ("some", Some("t:closed"), "task_closed"),
        ("sure", None, "task_required"),
        ("sure", Some("t:new"), "task_unverified"),
        ("sure", Some("t:heard"), "task_unverified"),
        ("sure", Some("t:closed"), "task_closed"),
        ("sure", Some("t:said"), "done"),
    ] {
        let answer = execute(&mut rows, &catalogue, &who(BOT), &ask(1, entitlement, named), noon()).await;
        assert_eq!(code(&answer), expected, "{entitlement} {named:?}");
    }
}

#[tokio::test]
async fn a_rule_on_tasks_that_came_later_is_asked_at_approval() {
    let entitlement = |rule: &str| {
        document(
            "Entitlement",
            "some",
            json!({
                "backend": "db", "actions": ["pg.vacuum"], "resources": ["**"], "eligible": ["dba"], "duration_max": "5m",
                "task": rule, "approval": {"steps": [{"approvers": ["oncall"], "quorum": 1}]},
            }),
        )
    };
    let read = |rule| Catalogue::read(&base().into_iter().chain([entitlement(rule)]).collect::<Vec<_>>(), 0).unwrap();
    let store = MemoryStore::default();
    let mut rows = store.begin().await.unwrap();
    let (_, writes) = execute(&mut rows, &read("optional"), &who(BOT), &ask(1, "some", None), noon()).await.unwrap();
    rows.apply(writes).await.unwrap();
    let approve = Command::Approve { request: RequestId::new("req_1").unwrap(), seen: 1, reason: String::new() };
    let (reply, _) = execute(&mut rows, &read("verified"), &who(ALICE), &approve, noon()).await.unwrap();
    let Reply::Request(row, None) = reply else { panic!("{reply:?}") };
    assert_eq!(row.elevation.state(), "denied");
    let (reply, _) = execute(&mut rows, &read("optional"), &who(ALICE), &approve, noon()).await.unwrap();
    assert!(matches!(reply, Reply::Request(_, Some(_))), "{reply:?}");
}

#[tokio::test]
async fn a_policy_does_not_keep_an_entitlement_and_a_new_one_names_what_is_there() {
    let store = MemoryStore::default();
    let mut rows = store.begin().await.unwrap();
    let admin = who("urn:leasehold:local#admin");
    let about = |name: &str| {
        elevation(&format!(
            "@id(\"a\") forbid(principal, action == Leasehold::Action::\"elevation:request\", \
             resource == Leasehold::Entitlement::\"{name}\");"
        ))
    };
    let empty = Catalogue::read(&[], 0).unwrap();
    let all = base().into_iter().chain([about("maint")]).collect();
    let (_, writes) = execute(&mut rows, &empty, &admin, &Command::Apply(all), noon()).await.unwrap();
    rows.apply(writes).await.unwrap();
    let catalogue = Catalogue::read(&rows.documents().await.unwrap(), 0).unwrap();
    let slip = execute(&mut rows, &catalogue, &admin, &Command::Apply(vec![about("miant")]), noon()).await;
    assert!(
        matches!(&slip, Err(Failed::Refused(refusal)) if refusal.detail.contains("no Entitlement `miant`")),
        "{slip:?}"
    );
    let delete = Command::Delete(leasehold::control::document::Kind::Entitlement, "maint".to_owned());
    let (_, writes) = execute(&mut rows, &catalogue, &admin, &delete, noon()).await.unwrap();
    rows.apply(writes).await.unwrap();
    let catalogue = Catalogue::read(&rows.documents().await.unwrap(), 0).unwrap();
    assert_eq!(catalogue.policies.dangling().len(), 1);
    // What is not about it goes on as before.
    let other = document("Principal", "carl", json!({"principal": "https://idp.example#carl", "type": "user"}));
    execute(&mut rows, &catalogue, &admin, &Command::Apply(vec![other]), noon()).await.unwrap();
}

/// What policy demands since it was asked counts at approval: less time, fewer uses, more approvers.
#[tokio::test]
async fn a_policy_that_came_later_tightens_what_is_approved() {
    let read =
        |cedar: &str| Catalogue::read(&base().into_iter().chain([elevation(cedar)]).collect::<Vec<_>>(), 0).unwrap();
    let head = "permit(principal, action == Leasehold::Action::\"elevation:request\", resource) when { principal.kind == \"workload\" };";
    let before = read(&format!("@id(\"a\") @max_ttl(\"20m\") @max_uses(\"2\") {head}"));
    let after = read(&format!(
        "@id(\"a\") @max_ttl(\"5m\") @max_uses(\"9\") @require_approvers(\"oncall\") @quorum(\"2\") {head}"
    ));
    let store = MemoryStore::default();
    let mut rows = store.begin().await.unwrap();
    let (_, writes) = execute(&mut rows, &before, &who(BOT), &ask(1, "maint", None), noon()).await.unwrap();
    rows.apply(writes).await.unwrap();
    let approve = |seen| Command::Approve { request: RequestId::new("req_1").unwrap(), seen, reason: String::new() };
    // Under the old policies one was enough.
    let (reply, _) = execute(&mut rows, &before, &who(ALICE), &approve(1), noon()).await.unwrap();
    let Reply::Request(_, Some(grant)) = reply else { panic!("{reply:?}") };
    assert_eq!((grant.grant.window.expires_at, grant.grant.uses_max), (noon().plus(minutes(20)), Some(2)));
    let (reply, writes) = execute(&mut rows, &after, &who(ALICE), &approve(1), noon()).await.unwrap();
    let Reply::Request(row, None) = reply else { panic!("{reply:?}") };
    assert_eq!((row.elevation.state(), row.request.steps.len(), row.request.steps[0].quorum), ("pending", 1, 2));
    rows.apply(writes).await.unwrap();
    let (reply, _) = execute(&mut rows, &after, &who(BOB), &approve(2), noon()).await.unwrap();
    let Reply::Request(row, Some(grant)) = reply else { panic!("{reply:?}") };
    assert_eq!((grant.grant.window.expires_at, grant.grant.uses_max), (noon().plus(minutes(5)), Some(2)));
    assert_eq!((row.ruling.ttl_max_seconds, &row.ruling.policy_digest[..]), (Some(300), after.policies.digest()));
    // Lax again, what was demanded in between stays demanded.
    let (reply, _) = execute(&mut rows, &before, &who(BOB), &approve(2), noon()).await.unwrap();
    let Reply::Request(_, Some(grant)) = reply else { panic!("{reply:?}") };
    assert_eq!(grant.grant.window.expires_at, noon().plus(minutes(5)));
}

fn minutes(number: u64) -> std::time::Duration {
    std::time::Duration::from_secs(number * 60)
}
