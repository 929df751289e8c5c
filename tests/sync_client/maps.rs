//! Action maps that come from a control plane, through a whole sidecar.

use leasehold::action_map::{ActionMapDocument, BackendBundle, NamedMap, Packed};
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::{BackendName, Revision};
use leasehold::domain::view::Change;
use leasehold::sync::{Bundle, Sink, bundle_of};
use serde_json::Value;

use crate::common::wait_for;
use crate::common::world::{MAP, Setup, World};
use crate::server::Server;
use crate::sidecar::{Fleet, answers, end, events, granted, snapshot};

/// What a control plane says of a backend that names this map.
fn said(map: &str) -> Packed {
    let map: ActionMapDocument = serde_saphyr::from_str(map).unwrap();
    BackendBundle { action_map: Some(NamedMap { name: "shop-map".to_owned(), map }) }.pack()
}

pub fn say(server: &Server, of: &str, revision: u64, Packed { digest, content }: Packed) {
    let name = bundle_of(&BackendName::new(of).unwrap());
    server.hub.bundle(Bundle { name, digest, revision: Revision(revision), content }).unwrap();
}

fn given(setup: &mut Setup) {
    setup.action_map = "control".to_owned();
}

fn status(world: &World) -> Value {
    world.admin("/status").json()["action_maps"]["shop"].clone()
}

#[track_caller]
fn ready(world: &World, status: u16, word: &str) {
    wait_for(&format!("{status} {word}"), || {
        let answer = world.admin("/readyz");
        (answer.status == status && answer.text().contains(word)).then_some(())
    });
}

const UPLOADS: &str =
    "rules:\n  - {action: upload, class: write, method: GET, path: '/allowed/{name}', resource: 'up/{name}'}\n";

#[test]
fn a_map_arrives_changes_and_goes_and_calls_follow_it() {
    let fleet = Fleet::start(1);
    let server = &fleet.servers[0];
    say(server, "shop", 1, said(MAP));
    fleet.state(|| {
        snapshot(1, vec![granted("g1", "allowed.read", "allowed/**"), granted("g2", "event.watch", "events")])
    });
    let world = fleet.sidecar(given, "");
    answers(&world, "/allowed/a", 200, "");
    ready(&world, 200, "");
    assert_eq!(server.manner.subscribed.lock().unwrap()[0].action_maps, ["shop"]);
    assert_eq!(status(&world)["name"], "shop-map");

    let mut stream = events(&world);
    // The map, and then what rests on it.
    say(server, "shop", 2, said(UPLOADS));
    fleet.change(&Change::Grant(Box::new(granted("g3", "upload", "up/a"))));
    answers(&world, "/allowed/b", 403, "out_of_scope");
    answers(&world, "/events", 403, "unmapped_action");
    answers(&world, "/allowed/a", 200, "");
    // What began by the old map is judged as it was.
    fleet.change(&end("g2", GrantState::Revoked));
    let rest = String::from_utf8_lossy(&stream.rest()).into_owned();
    assert!(rest.contains("\"reason\":\"revoked\""), "{rest}");
    for (path, action) in [("/events", "event.watch"), ("/allowed/a", "upload")] {
        let is_it = |call: &Value| call["path"] == path && call["action"] == action && call["decision"] == "permit";
        wait_for(&format!("the record of {action}"), || world.records("call").iter().any(is_it).then_some(()));
    }

    say(server, "shop", 3, BackendBundle::default().pack());
    answers(&world, "/allowed/a", 503, "stale_source");
    ready(&world, 503, "the Backend `shop` names no action map");
    assert_eq!(world.call("GET", "/allowed/a").json()["detail"], "no_action_map");
    wait_for("the denial", || world.records("call").into_iter().find(|call| call["detail"] == "no_action_map"));
    assert!(world.admin("/metrics").text().contains("\nleasehold_action_maps_missing 1\n"));

    say(server, "shop", 4, said(MAP));
    answers(&world, "/allowed/a", 200, "");
    ready(&world, 200, "");
}

#[test]
fn what_cannot_be_used_is_told_back_and_the_last_good_one_stays() {
    let fleet = Fleet::start(1);
    let server = &fleet.servers[0];
    say(server, "shop", 1, said(MAP));
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "allowed/**")]));
    let world = fleet.sidecar(given, "");
    answers(&world, "/allowed/a", 200, "");
    // It would need what this sidecar's own file refuses.
    say(server, "shop", 2, said(&format!("requires: {{path_params: true}}\n{UPLOADS}")));
    let (name, error) = wait_for("a word of it", || server.manner.unusable.lock().unwrap().pop());
    assert_eq!(name, "backend/shop");
    assert!(error.contains("canonical.path_params") && error.contains("the last good one stays"), "{error}");
    answers(&world, "/allowed/a", 200, "");
    ready(&world, 200, "");
    assert_eq!(status(&world)["error"], error);
    let metrics = world.admin("/metrics").text();
    assert!(metrics.contains("\nleasehold_action_maps_broken 1\n"), "{metrics}");
    assert!(metrics.contains("\nleasehold_action_maps_missing 0\n"), "{metrics}");
    // What comes after a broken map is in force all the same.
    fleet.change(&end("g1", GrantState::Revoked));
    answers(&world, "/allowed/a", 403, "revoked");
    say(server, "shop", 3, said(MAP));
    wait_for("a good one", || status(&world)["error"].is_null().then_some(()));
}

#[test]
fn without_a_map_nothing_passes_not_even_where_it_is_only_observed() {
    let fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![granted("g1", "*", "**")]));
    let observed = |setup: &mut Setup| {
        given(setup);
        setup.backend = "    mode: observe\n".to_owned();
    };
    let world = fleet.sidecar(observed, "");
    ready(&world, 503, "has not said the action map of `shop`");
    answers(&world, "/allowed/a", 503, "stale_source");
    assert_eq!(world.call("GET", "/nothing").json()["reason"], "stale_source");
    assert!(fleet.backend.seen().is_empty(), "a call reached the backend");
    say(&fleet.servers[0], "shop", 1, said(MAP));
    answers(&world, "/allowed/a", 200, "");
    answers(&world, "/nothing", 200, "");
}
