//! The life of an elevation, from the first document to the record of it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::tools::wait_for;
use crate::world::{DOCUMENTS, Person, World};

#[test]
fn documents_are_declared_looked_at_and_declared_no_more() {
    let world = World::empty();
    let admin = world.admin();
    world.write("documents.yaml", DOCUMENTS);
    let dry = admin.ok(&["apply", "-f", "documents.yaml", "--dry-run"]);
    assert!(dry.contains("Entitlement/clean-up would be created\n  + "), "{dry}");
    let before = admin.ok(&["documents"]);
    assert!(before.contains("Backend  shop") && !before.contains("clean-up"), "{before}");
    let applied = admin.ok(&["apply", "-f", "documents.yaml"]);
    assert!(applied.contains("Principal/bot created\n") && applied.contains("Policy/incidents created\n"), "{applied}");
    assert!(admin.ok(&["apply", "-f", "documents.yaml"]).lines().all(|line| line.ends_with(" unchanged")));

    world.write("changed.yaml", &DOCUMENTS.replace("duration_max: 30m", "duration_max: 20m"));
    let diff = admin.ok(&["apply", "--dry-run", "-f", "changed.yaml"]);
    assert!(diff.contains("Entitlement/clean-up would be changed\n"), "{diff}");
    assert!(diff.contains("  - duration_max: 30m\n  + duration_max: 20m\n"), "{diff}");

    let listed = admin.ok(&["documents", "entitlement"]);
    assert!(listed.contains("clean-up") && listed.contains("migration") && !listed.contains("Policy"), "{listed}");
    assert!(admin.ok(&["documents", "Policy", "incidents"]).contains("auto-on-incident"));
    // What is listed can be applied again.
    world.write("again.yaml", &admin.ok(&["documents", "-o", "yaml"]));
    assert!(admin.ok(&["apply", "-f", "again.yaml"]).lines().all(|line| line.ends_with(" unchanged")));

    admin.fails(1, &["documents", "Policy", "nothing"], "not_found");
    admin.ok(&["delete", "Policy", "incidents", "--dry-run"]);
    assert_eq!(admin.ok(&["delete", "policy", "incidents"]), "Policy/incidents deleted\n");
    admin.fails(1, &["delete", "policy", "incidents"], "not_found");
}

#[test]
fn mistakes_in_documents_name_the_place() {
    let world = World::empty();
    let admin = world.admin();
    world.write("bad.yaml", "apiVersion: leasehold/v1\nkind: Policy\nkind: Policy\n");
    admin.fails(2, &["apply", "-f", "bad.yaml"], "bad.yaml:3:1: kind: the key is written twice");
    world.write("none.yaml", "kind: Policy\n");
    admin.fails(2, &["apply", "-f", "none.yaml"], "document 1 is none");
    admin.fails(2, &["apply", "-f", "missing.yaml"], "missing.yaml cannot be read");
    world.write(
        "wrong.yaml",
        "apiVersion: leasehold/v1\nkind: Policy\nmetadata: {name: p}\nspec: {target: elevation, cedar: 'nonsense'}\n",
    );
    admin.fails(1, &["apply", "-f", "wrong.yaml"], "Policy `p`: spec.cedar, line 1");
    world.person("bot").fails(1, &["apply", "-f", "wrong.yaml"], "");
}

#[test]
fn a_request_is_approved_used_narrowed_and_given_back() {
    let world = World::new();
    let (bot, bob) = (world.person("bot"), world.person("bob"));
    assert_eq!(world.call("bot", "DELETE", "/orders/17"), 403);
    let said = bot.says(&["request", "clean-up", "--ttl", "10m", "--justification", "two\nlines"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.out.contains("is pending\n") && said.out.contains("  1 of shopkeepers\n"), "{said:?}");
    assert!(said.out.contains("“two lines” (the requester's words)"), "{said:?}");
    assert!(said.err.contains("leasehold approve req_"), "{said:?}");
    let inbox = bob.json(&["requests", "--can-approve"]);
    let id = inbox[0]["id"].as_str().unwrap().to_owned();
    assert!(bob.ok(&["requests", "--can-approve"]).contains("1 of shopkeepers"));

    bot.fails(1, &["approve", &id, "--yes"], "nobody approves their own");
    world.person("alice").fails(1, &["approve", &id, "--yes"], "owner");
    bob.fails(2, &["approve", &id], "there is no terminal");
    bob.fails(1, &["approve", &id, "--yes", "--seen", "7"], "(changed");
    let would = bob.ok(&["approve", &id, "--dry-run"]);
    assert!(would.starts_with("nothing was done; it would stand like this:"), "{would}");
    let said = bob.says(&["approve", &id, "--yes", "--reason", "go on"]);
    assert!(said.out.contains("is approved: grant grt_"), "{said:?}");
    let lets = "It lets https://idp.test#bot do order.* on orders/** of backend shop, for 10m from when it is approved, for no task.";
    assert!(said.err.contains(lets), "{said:?}");
    bob.fails(1, &["approve", &id, "--yes"], "nothing to approve");

    let grant = bot.json(&["grants", "--mine", "--state", "active"])[0]["id"].as_str().unwrap().to_owned();
    wait_for("the grant at the sidecar", || (world.call("bot", "DELETE", "/orders/17") == 200).then_some(()));
    assert!(world.admin().ok(&["grants", "--admin", &world.admin]).contains(&grant));
    let shown = bot.ok(&["show", &grant[..grant.len() - 4]]);
    assert!(shown.contains(&format!("grant {grant} is active")) && shown.contains("timeline"), "{shown}");
    let asked = bot.ok(&["show", &id]);
    assert!(asked.contains("is approved\n") && asked.contains("go on"), "{asked}");

    bot.fails(1, &["reduce", &grant, "--ttl", "2h"], "earlier");
    let said = bot.says(&["reduce", &grant, "--ttl", "5m", "--resource", "orders/17"]);
    assert!(said.code == Some(0) && said.err.contains("took the place of"), "{said:?}");
    let narrow = bot.json(&["grants", "--mine", "--state", "active"])[0].clone();
    assert_eq!(
        (&narrow["narrowed_from"], &narrow["resources"]),
        (&grant.clone().into(), &serde_json::json!(["orders/17"]))
    );
    wait_for("the narrower grant", || (world.call("bot", "DELETE", "/orders/18") == 403).then_some(()));
    let narrow = narrow["id"].as_str().unwrap();
    wait_for("the narrower grant", || (world.call("bot", "DELETE", "/orders/17") == 200).then_some(()));
    assert_eq!(bot.ok(&["release", narrow]), format!("{narrow} is released\n"));
    wait_for("the end", || (world.call("bot", "DELETE", "/orders/17") == 403).then_some(()));
    // Said again, it is the same.
    assert_eq!(bot.ok(&["release", narrow]), format!("{narrow} is released\n"));
    bot.fails(1, &["reduce", narrow, "--uses", "1"], "released");
}

#[test]
fn how_the_sidecar_beside_it_uses_a_grant_is_shown() {
    let world = World::new();
    let (bot, bob) = (world.person("bot"), world.person("bob"));
    let id = bot.asks(&["clean-up"]);
    let approved = bob.json(&["approve", &id, "--yes"]);
    let grant = approved["grant_id"].as_str().unwrap();
    let before = bot.json(&["show", grant]);
    assert!(before["last_used"].is_null() && before["calls"].is_null(), "{before}");
    wait_for("the grant at the sidecar", || (world.call("bot", "DELETE", "/orders/17") == 200).then_some(()));
    assert_eq!(world.call("bot", "GET", "/orders/17"), 200);
    let used = wait_for("both calls", || Some(bot.json(&["show", grant])).filter(|used| used["calls"] == 2));
    assert!(used["last_used"].as_str() >= before["created_at"].as_str(), "{used}");
    assert!(bot.ok(&["show", grant]).contains("calls        2"), "{}", bot.ok(&["show", grant]));
}

#[test]
fn waiting_ends_with_the_decision() {
    let world = World::new();
    let (bot, bob) = (world.person("bot"), world.person("bob"));
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bot.says(&["request", "clean-up", "--wait", "50s"]));
        let id =
            wait_for("the request", || bob.json(&["requests", "--can-approve"])[0]["id"].as_str().map(str::to_owned));
        bob.ok(&["approve", &id, "--yes"]);
        waiting.join().unwrap()
    });
    assert!(waiting.code == Some(0) && waiting.out.contains("is approved"), "{waiting:?}");
    bot.fails(3, &["request", "clean-up", "--wait=1s"], "is pending");

    let denied = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bot.says(&["request", "clean-up", "--uses", "1", "--wait", "50s", "-o", "json"]));
        let id = wait_for("the request", || {
            let list = bob.json(&["requests", "--can-approve"]);
            let found = list.as_array().unwrap().iter().find(|request| request["uses_max"] == 1).cloned();
            found.map(|request| request["id"].as_str().unwrap().to_owned())
        });
        assert!(bob.ok(&["deny", &id, "--reason", "not today"]).contains("is denied"));
        waiting.join().unwrap()
    });
    assert_eq!((denied.code, denied.json()["reason"].as_str()), (Some(1), Some("not today")));
}

#[test]
fn two_must_agree_and_a_request_can_be_taken_back() {
    let world = World::new();
    let (bot, bob, carol) = (world.person("bot"), world.person("bob"), world.person("carol"));
    let id = bot.asks(&["migration"]);
    assert!(bob.ok(&["approve", &id, "--yes"]).contains("is pending still: it waits for 1 of leads"));
    assert!(bob.ok(&["requests", "--approved"]).contains(&id));
    assert!(carol.ok(&["approve", &id, "--yes"]).contains("is approved"));
    let id = bot.asks(&["migration"]);
    assert!(bot.ok(&["cancel", &id]).contains("is cancelled"));
    bot.fails(1, &["cancel", &id], "cancelled");
    assert_eq!(bot.ok(&["requests", "--state", "pending"]), "no requests\n");
    world.person("stranger").fails(1, &["requests"], "unknown_principal");
    world.person("stranger").fails(1, &["show", &id], "");
}

#[test]
fn an_incident_is_approved_at_once_and_its_end_ends_it() {
    let world = World::new();
    let (bot, admin) = (world.person("bot"), world.admin());
    let would = bot.says(&["request", "clean-up", "--task", "jira:INC-1", "--dry-run"]);
    assert!(would.code == Some(3) && would.out.starts_with("nothing was asked: it would be pending"), "{would:?}");
    let opened = admin.ok(&["tasks", "open", "jira:INC-1", "--kind", "incident"]);
    assert!(opened.starts_with("task jira:INC-1 is open\n"), "{opened}");
    let granted = bot.ok(&["request", "clean-up", "--task", "jira:INC-1"]);
    assert!(granted.contains("is approved") && granted.contains("auto-on-incident"), "{granted}");
    let grant = bot.json(&["grants", "--mine"])[0].clone();
    wait_for("the grant", || (world.call("bot", "GET", "/orders/1") == 200).then_some(()));
    assert!(admin.ok(&["tasks", "show", "jira:INC-1"]).contains("kind      incident"));
    assert!(admin.ok(&["show", "jira:INC-1"]).contains("is open"));
    let closed = admin.ok(&["tasks", "close", "jira:INC-1", "--wait=50s"]);
    assert!(closed.contains(&format!("{} ended", grant["id"].as_str().unwrap())), "{closed}");
    assert!(closed.lines().any(|line| line.starts_with("enforced on 1/1 sidecar")), "{closed}");
    assert_eq!(world.call("bot", "GET", "/orders/1"), 403, "what is called enforced is");
    assert!(admin.ok(&["tasks", "close", "jira:INC-1", "--wait"]).starts_with("task jira:INC-1 is closed\n"));
    assert!(bot.ok(&["grants", "--task", "jira:INC-1"]).contains("revoked"));
}

#[test]
fn grants_are_taken_away_one_by_one_or_as_many_as_match() {
    let world = World::new();
    let (bot, admin) = (world.person("bot"), world.admin());
    admin.ok(&["tasks", "open", "jira:INC-1", "--kind", "incident"]);
    let ask = || {
        let request = bot.json(&["request", "clean-up", "--task", "jira:INC-1"]);
        request["grant_id"].as_str().unwrap().to_owned()
    };
    let (first, second, third) = (ask(), ask(), ask());
    assert_eq!(admin.ok(&["revoke", &first, "--dry-run"]), format!("{first} would be revoked\n"));
    let revoked = admin.ok(&["revoke", &first, "--reason", "wrong", "--wait"]);
    let said = revoked.strip_prefix(&format!("{first} is revoked\nenforced on 1/1 sidecar in ")).expect("both said");
    assert!(said.ends_with(" ms\n"), "{said}");
    let listed = admin.ok(&["sidecars"]);
    assert!(listed.contains("urn:leasehold:local#sidecar") && listed.contains("yes"), "{listed}");
    admin.fails(1, &["sidecar", "join-token", "shop-1"], "signs_nothing");
    admin.fails(1, &["revoke", "grt_nothing"], "grt_nothing: ");
    let principal = "https://idp.test#bot";
    let would = admin.ok(&["revoke", "--principal", principal, "--dry-run"]);
    assert!(would.contains(&second) && would.contains(&third) && !would.contains(&first), "{would}");
    assert_eq!(admin.json(&["grants", "--state", "active"]).as_array().unwrap().len(), 2);
    let ended = admin.ok(&["revoke", "--principal", principal, "--backend", "shop", "--yes", "--wait=50s"]);
    assert_eq!(ended.lines().filter(|line| line.ends_with(" revoked")).count(), 2, "{ended}");
    assert!(ended.lines().any(|line| line.starts_with("enforced on 1/1 sidecar")), "{ended}");
    assert_eq!(admin.ok(&["revoke", "--task", "jira:INC-1", "--yes"]), "no grant matches: nothing to revoke\n");
    admin.fails(2, &["revoke"], "required");
    admin.fails(2, &["revoke", &first, "--backend", "shop"], "cannot be used with");
    bot.fails(1, &["revoke", "--backend", "shop"], "");
}

#[test]
fn a_lock_stops_calls_and_requests_until_it_is_lifted() {
    let world = World::new();
    let (bot, admin) = (world.person("bot"), world.admin());
    admin.ok(&["tasks", "open", "jira:INC-1", "--kind", "incident"]);
    bot.ok(&["request", "clean-up", "--task", "jira:INC-1"]);
    wait_for("the grant", || (world.call("bot", "GET", "/orders/1") == 200).then_some(()));
    let lock = admin.json(&["lock", "--backend", "shop", "-m", "audit in progress", "--for", "1h"]);
    let id = lock["id"].as_str().unwrap();
    wait_for("the lock", || (world.call("bot", "GET", "/orders/1") == 403).then_some(()));
    bot.fails(1, &["request", "clean-up", "--task", "jira:INC-1"], "audit in progress");
    let listed = admin.ok(&["locks"]);
    assert!(listed.contains("backend=shop") && listed.contains("in 59m"), "{listed}");
    assert!(admin.ok(&["show", id]).contains("is in force"));
    assert_eq!(admin.ok(&["unlock", id]), format!("{id} is lifted\n"));
    wait_for("the end of the lock", || (world.call("bot", "GET", "/orders/1") == 200).then_some(()));
    admin.fails(1, &["unlock", id], "not_found");
    assert_eq!(admin.ok(&["locks"]), "no locks: nothing is stopped\n");
    admin.fails(2, &["lock", "-m", "x"], "required");
    bot.fails(1, &["lock", "--everything", "-m", "x"], "");
    assert!(admin.ok(&["lock", "--everything", "-m", "stop", "-y"]).contains("stops    everything"));
    wait_for("the lock", || (world.call("bot", "GET", "/orders/1") == 403).then_some(()));
}

#[test]
fn the_record_is_listed_followed_and_verified() {
    let world = World::new();
    let admin = world.admin();
    let listed = admin.ok(&["audit", "list", "--limit", "2"]);
    assert!(listed.starts_with("SEQUENCE") && listed.lines().count() == 3, "{listed}");
    let verified = admin.ok(&["audit", "verify"]);
    let head = verified.lines().last().unwrap().to_owned();
    let (last, _) = head.split_once(':').unwrap();
    assert!(verified.starts_with(&format!("entries 1 to {last} are as they were written\n")), "{verified}");
    admin.ok(&["tasks", "open", "jira:INC-1", "--kind", "incident"]);
    admin.ok(&["audit", "verify", "--expect", &head]);
    let wrong = format!("{last}:{}", "0".repeat(64));
    admin.fails(1, &["audit", "verify", "--expect", &wrong], "written anew");
    let cut = format!("9999:{}", "0".repeat(64));
    admin.fails(1, &["audit", "verify", "--expect", &cut], "cut off");

    let entries = admin.ok(&["audit", "list", "--limit", "1000", "-o", "json"]);
    world.write("record.json", &entries);
    admin.ok(&["audit", "verify", "--from-file", "record.json", "--expect", &head]);
    world.write("edited.json", &entries.replacen("local#admin", "local#nobody", 1));
    admin.fails(1, &["audit", "verify", "--from-file", "edited.json"], "was changed");
    let mut list: Vec<serde_json::Value> = serde_json::from_str(&entries).unwrap();
    list.remove(2);
    let lines: String = list.iter().map(|entry| format!("{entry}\n")).collect();
    world.write("gap.jsonl", &lines);
    admin.fails(1, &["audit", "verify", "--from-file", "gap.jsonl"], "entry 4 follows on entry 2");
    world.person("bot").fails(1, &["audit", "list"], "");
}

#[test]
fn who_follows_the_record_ends_with_their_reader() {
    let world = World::new();
    let admin = world.admin();
    let follow = |out: Stdio| {
        let mut command = admin.command();
        command.args(["audit", "list", "--follow"]).stdout(out).stderr(Stdio::null()).spawn().unwrap()
    };
    // Nobody ever reads: it ends at the first entry.
    let mut follower = follow(Stdio::piped());
    drop(follower.stdout.take());
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    // The reader goes away while there is nothing to print: after the last entry it waits.
    let last = admin.ok(&["audit", "verify"]).lines().last().unwrap().split_once(':').unwrap().0.to_owned();
    let mut follower = follow(Stdio::piped());
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(&format!("\"sequence\":{last}"))));
    drop(lines);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    // A file has no reader, and gets what comes later too.
    let path = world.folder().join("followed");
    let file = std::fs::File::create(&path).unwrap();
    let mut follower = follow(file.into());
    let says = |text: &str| wait_for(text, || std::fs::read_to_string(&path).unwrap().contains(text).then_some(()));
    says(&format!("\"sequence\":{last}"));
    for n in 0..3 {
        admin.ok(&["tasks", "open", &format!("jira:LATER-{n}"), "--kind", "incident"]);
        says(&format!("jira:LATER-{n}"));
    }
    assert!(follower.try_wait().unwrap().is_none());
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn who_one_is_and_what_deserves_a_look_is_said() {
    let world = World::new();
    let me = world.person("bob").ok(&["whoami"]);
    assert!(me.starts_with("https://idp.test#bob\n") && me.contains("groups  shopkeepers, leads"), "{me}");
    assert_eq!(world.admin().json(&["whoami"])["admin"], true);
    let found = world.admin().ok(&["doctor"]);
    assert!(found.contains("  fix: "), "{found}");
    std::fs::create_dir(world.folder().join("elsewhere")).unwrap();
    let nobody = Person::at(&world.folder().join("elsewhere")).with("LEASEHOLD_SERVER", &world.url);
    nobody.fails(1, &["whoami"], "leasehold login");
}
