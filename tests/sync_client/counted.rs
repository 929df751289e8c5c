//! Grants that are good for a number of calls, whoever makes them and whatever gets lost.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use leasehold::domain::grant::{Grant, GrantState};
use leasehold::domain::view::Change;

use crate::common::wait_for;
use crate::common::world::World;
use crate::sidecar::{Fleet, answers, end, granted, nobody, snapshot};

pub fn counted(id: &str, uses: u32) -> Grant {
    Grant { uses_max: Some(uses), ..granted(id, "allowed.read", "allowed/**") }
}

fn reason(world: &World) -> String {
    let answer = world.call("GET", "/allowed/a");
    if answer.status == 200 { "passed".to_owned() } else { answer.json()["reason"].as_str().unwrap().to_owned() }
}

#[test]
fn however_many_sidecars_and_calls_there_are_it_is_used_as_often_as_it_may_be() {
    let fleet = Fleet::start(1);
    fleet.servers[0].manner.uses_max.store(5, Ordering::SeqCst);
    fleet.state(|| snapshot(1, vec![counted("g1", 5)]));
    let worlds = [fleet.sidecar(|_| {}, ""), fleet.sidecar(|_| {}, "")];
    let answers = std::thread::scope(|scope| {
        let calls: Vec<_> = worlds.iter().cycle().take(20).map(|world| scope.spawn(|| reason(world))).collect();
        let mut answers = BTreeMap::new();
        for call in calls {
            *answers.entry(call.join().unwrap()).or_insert(0) += 1;
        }
        answers
    });
    let expected = [("passed".to_owned(), 5), ("exhausted".to_owned(), 15)];
    assert_eq!(answers, expected.into());
    assert_eq!(fleet.backend.seen().len(), 5);
    assert_eq!(fleet.servers[0].manner.taken.lock().unwrap().len(), 5);
    let grants = worlds[0].admin("/grants").json();
    assert_eq!(grants["grants"][0]["state"], "exhausted", "{grants}");
    assert!(grants["grants"][0]["uses_left"].is_null(), "only the control plane knows");
}

#[test]
fn what_else_covers_the_call_carries_it_when_one_is_used_up() {
    let fleet = Fleet::start(1);
    fleet.servers[0].manner.uses_max.store(1, Ordering::SeqCst);
    fleet.state(|| snapshot(1, vec![counted("g1", 1), counted("g2", 1)]));
    let worlds = [fleet.sidecar(|_| {}, ""), fleet.sidecar(|_| {}, "")];
    // The second sidecar does not know that the first one used one of them up.
    assert_eq!([reason(&worlds[0]), reason(&worlds[1])], ["passed", "passed"]);
    assert_eq!([reason(&worlds[0]), reason(&worlds[1])], ["exhausted", "exhausted"]);
    assert_eq!(worlds[1].call("GET", "/allowed/a").json()["next"]["action"], "request");
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again_elsewhere_under_the_same_name() {
    let fleet = Fleet::start(2);
    fleet.state(|| snapshot(1, vec![counted("g1", 9)]));
    let world = fleet.sidecar(|_| {}, "");
    for server in &fleet.servers {
        server.manner.uses_max.store(9, Ordering::SeqCst);
        server.manner.lose_answers.store(true, Ordering::SeqCst);
    }
    let call = std::thread::scope(|scope| {
        let call = scope.spawn(|| reason(&world));
        for server in &fleet.servers {
            wait_for("the use to be asked for", || (!server.manner.taken.lock().unwrap().is_empty()).then_some(()));
        }
        assert!(fleet.backend.seen().is_empty(), "nothing is sent before it is confirmed");
        fleet.servers[1].manner.lose_answers.store(false, Ordering::SeqCst);
        call.join().unwrap()
    });
    assert_eq!(call, "passed");
    let taken: Vec<_> = fleet.servers.iter().map(|server| server.manner.taken.lock().unwrap().clone()).collect();
    assert_eq!(taken[0], taken[1]);
    assert_eq!(taken[0].len(), 1);
    assert!(taken[0].first().unwrap().1.starts_with("evl_"));
}

#[test]
fn a_use_that_nobody_confirms_is_lost_and_the_call_is_refused() {
    let fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![counted("g1", 1)]));
    let world = fleet.sidecar(|_| {}, "");
    let manner = &fleet.servers[0].manner;
    manner.uses_max.store(1, Ordering::SeqCst);
    manner.lose_answers.store(true, Ordering::SeqCst);
    let answer = world.call("GET", "/allowed/a");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    let problem = answer.json();
    assert_eq!((&problem["reason"], &problem["next"]["action"]), (&"use_unconfirmed".into(), &"retry".into()));
    assert_eq!((&problem["type"], &problem["grant"]), (&"urn:leasehold:problem:unavailable".into(), &"g1".into()));
    manner.lose_answers.store(false, Ordering::SeqCst);
    assert_eq!(reason(&world), "exhausted", "what was lost is lost");
    assert!(fleet.backend.seen().is_empty());
    let calls = world.calls(2);
    assert_eq!((&calls[0]["reason"], &calls[0]["grant"]), (&"use_unconfirmed".into(), &"g1".into()));
    assert_eq!(world.records("intent").len(), 0);
}

#[test]
fn without_a_server_a_counted_grant_carries_nothing_and_others_do() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![counted("g1", 1), granted("g2", "upload", "**")]));
    let world = fleet.sidecar(|_| {}, "");
    fleet.servers.remove(0).kill();
    assert_eq!(reason(&world), "use_unconfirmed");
    assert_eq!(world.call("POST", "/upload").status, 200);
}

#[test]
fn an_end_that_comes_while_a_use_is_waited_for_ends_the_call() {
    let fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![counted("g1", 1)]));
    let world = fleet.sidecar(|_| {}, "");
    let manner = &fleet.servers[0].manner;
    manner.uses_max.store(1, Ordering::SeqCst);
    manner.lose_answers.store(true, Ordering::SeqCst);
    let answer = std::thread::scope(|scope| {
        let call = scope.spawn(|| reason(&world));
        wait_for("the use to be asked for", || (!manner.taken.lock().unwrap().is_empty()).then_some(()));
        fleet.change(&end("g1", GrantState::Revoked));
        call.join().unwrap()
    });
    assert_eq!(answer, "revoked");
    fleet.change(&Change::Grant(Box::new(granted("g2", "allowed.read", "allowed/**"))));
    answers(&world, "/allowed/a", 200, "");
}

#[test]
fn a_backend_that_is_only_observed_lets_the_call_pass_and_says_so() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![counted("g1", 1)]));
    let world = fleet.sidecar(|setup| setup.backend = "    mode: observe\n".to_owned(), "");
    fleet.servers.remove(0).kill();
    assert_eq!(reason(&world), "passed");
    let call = world.calls(1).remove(0);
    assert_eq!((&call["decision"], &call["reason"]), (&"would_deny".into(), &"use_unconfirmed".into()));
}

#[test]
fn an_address_that_hangs_does_not_cost_the_use() {
    let mut fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![counted("g1", 3)]));
    fleet.servers[0].manner.uses_max.store(3, Ordering::SeqCst);
    fleet.others = vec![nobody(b"")];
    let world = fleet.sidecar(|_| {}, "");
    for _ in 0..3 {
        assert_eq!(reason(&world), "passed");
    }
    assert_eq!(reason(&world), "exhausted");
}
