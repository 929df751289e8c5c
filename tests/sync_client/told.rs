//! What a sidecar tells of the use of its grants.

use crate::common::wait_for;
use crate::sidecar::{Fleet, answers, granted, snapshot};

#[test]
fn uses_are_told_when_it_stops_and_only_of_what_passed() {
    let fleet = Fleet::start(1);
    fleet.state(|| snapshot(1, vec![granted("g1", "allowed.read", "**"), granted("g2", "upload", "**")]));
    let world = fleet.sidecar(|_| {}, "");
    for _ in 0..3 {
        answers(&world, "/allowed/a", 200, "");
    }
    assert_eq!(world.call("POST", "/upload").status, 200);
    answers(&world, "/admin", 403, "out_of_scope");
    world.stop();
    let manner = &fleet.servers[0].manner;
    let told = wait_for("both grants", || Some(manner.activity.lock().unwrap().clone()).filter(|all| all.len() == 2));
    assert_eq!(told, [("g1".to_owned(), 3), ("g2".to_owned(), 1)].into());
}
