//! Three control planes on one PostgreSQL, a relay, twenty sidecars, each a process of its own; and whatever dies or
//! sleeps: a caller whose grant was revoked never passes after the bound.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub, dead_code)]

#[path = "../common/backend.rs"]
mod backend;
#[path = "../common/client.rs"]
mod client;
#[path = "../common/etcd.rs"]
mod etcd;
mod house;
#[path = "../common/issuer.rs"]
mod issuer;
mod partition;
#[path = "../store/postgres.rs"]
mod postgres;
mod running;
#[path = "../real/tools.rs"]
mod tools;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use house::{CONTROL_PLANES, ELSEWHERE, House, SIDECARS, STALENESS_MAX};
use issuer::ISSUER;
use running::{Running, Watch};
use tools::{DEADLINE, wait_for};

/// Revocations in a house where things die.
const ROUNDS: usize = 6;

#[test]
fn a_revoked_caller_never_passes_after_the_bound_whatever_dies_or_sleeps() {
    let mut house = House::build_before_etcd(SIDECARS);
    house.grant(0, house::BOT, "watch");
    house.grant(0, house::BOT, "read");
    for sidecar in 0..SIDECARS {
        wait_for("a sidecar that lets the grant's holder through", || (house.call(sidecar) == Some(200)).then_some(()));
    }
    enforced_everywhere(&house);
    for round in 0..ROUNDS {
        storm(&mut house, round);
    }
}

/// In a calm house: revoked at one control plane, the report of another says that everybody enforces it, and what runs at
/// sidecars of yet others and behind the relay is cut: event streams, WebSockets, watches of etcd.
fn enforced_everywhere(house: &House) {
    let sidecars = [0, SIDECARS - 1];
    let streams: Vec<_> = sidecars.iter().flat_map(|sidecar| Running::both(house.door(*sidecar))).collect();
    let watches: Vec<_> = sidecars.iter().map(|sidecar| Watch::open(&house.door(*sidecar))).collect();
    let revision = house.revoke_all(ELSEWHERE, &json!({"principal": format!("{ISSUER}#{}", house::BOT)}));
    let report = wait_for("a report that all enforce it", || {
        let report = house.report(2, revision)?;
        (report["enforcement"]["state"] == "enforced").then_some(report)
    });
    // Ten of them, and the relay, which speaks for the others.
    assert!(report["enforcement"]["sidecars"].as_u64() >= Some(11), "{report}");
    assert_eq!(report["enforcement"]["pending"], json!([]), "{report}");
    for sidecar in 0..SIDECARS {
        assert_eq!(house.call(sidecar), Some(403), "sidecar {sidecar} after the report");
    }
    for stream in streams {
        stream.ends();
    }
    for watch in watches {
        assert_eq!(watch.ends(), (Code::PermissionDenied, "revoked".to_owned()));
    }
}

/// Something dies or sleeps, a grant is revoked meanwhile, and everybody is asked all the time.
fn storm(house: &mut House, round: usize) {
    let grant = house.grant(round % CONTROL_PLANES, house::BOT, "read");
    for sidecar in 0..SIDECARS {
        wait_for("a sidecar that lets the grant's holder through", || (house.call(sidecar) == Some(200)).then_some(()));
    }
    let victim = round % CONTROL_PLANES;
    let (asleep, other) = (round % SIDECARS, (victim + 1) % CONTROL_PLANES);
    match round % 3 {
        0 => house.kill_control(victim),
        1 => house.signal_control(victim, Signal::STOP),
        _ => house.kill_relay(),
    }
    house.signal_sidecar(asleep, Signal::STOP);
    house.revoke(other, &grant);
    let revoked = Instant::now();
    // Everybody but the sleeper is asked until the bound has passed; who answers 200 after it broke the promise.
    while revoked.elapsed() < STALENESS_MAX + Duration::from_millis(500) {
        for sidecar in (0..SIDECARS).filter(|sidecar| *sidecar != asleep) {
            let began = revoked.elapsed();
            let answer = house.call(sidecar);
            let late = answer == Some(200) && began > STALENESS_MAX;
            assert!(!late, "round {round}: sidecar {sidecar} let a call through {began:?} after the revocation");
        }
    }
    // The sleeper wakes with an old view.
    house.signal_sidecar(asleep, Signal::CONT);
    assert_ne!(house.call(asleep), Some(200), "round {round}: the sidecar that slept");
    match round % 3 {
        0 => house.start_control(victim),
        1 => house.signal_control(victim, Signal::CONT),
        _ => house.start_relay(),
    }
    for sidecar in 0..SIDECARS {
        wait_for("a sidecar that knows of the revocation", || (house.call(sidecar) == Some(403)).then_some(()));
    }
}

/// Races for one use, and callers in each.
const RACES: usize = 200;
const CALLERS: usize = 64;

/// Sidecars that the callers race through.
const DOORS: usize = 3;

#[test]
fn one_use_is_used_once_whoever_races_for_it_and_whatever_dies() {
    let mut house = House::build(DOORS);
    let mut used = 0;
    for race in 0..RACES {
        // Somebody new, who holds nothing else.
        let who = format!("bot-{race}");
        let grant = house.grant(1, &who, "once");
        for sidecar in 0..DOORS {
            wait_for("a sidecar that knows the grant", || house.knows(sidecar, &grant).then_some(()));
        }
        let passed = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    let (house, who) = (&house, &who);
                    scope.spawn(move || house.call_as(who, caller % DOORS) == Some(200))
                })
                .collect();
            match race % 20 {
                5 => house.signal_control(0, Signal::KILL),
                10 => house.signal_relay(Signal::KILL),
                15 => house.signal_control(2, Signal::STOP),
                _ => {}
            }
            callers.into_iter().map(|caller| caller.join().unwrap()).filter(|passed| *passed).count()
        });
        assert!(passed <= 1, "race {race}: one use was used {passed} times");
        used += passed;
        match race % 20 {
            5 => house.start_control(0),
            10 => house.start_relay(),
            15 => house.signal_control(2, Signal::CONT),
            _ => {}
        }
    }
    // A lost answer loses the use; that it is lost each time would be no use at all.
    assert!(used > RACES / 2, "only {used} of {RACES} uses were used");
}
