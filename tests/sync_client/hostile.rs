//! What a server says that is not as it should be: nothing of it revives, and nothing of it ends the source.

use std::time::Duration;

use leasehold::domain::grant::GrantState;
use leasehold::domain::view::Change;
use leasehold::wire::v1;
use leasehold::wire::v1::server_frame::Frame;

use crate::common::wait_for;
use crate::follow::{Follows, end, grant, snapshot};
use crate::server::Server;

const LONG: Duration = Duration::from_secs(30);

fn delta(from: u64, to: u64, changes: Vec<v1::Change>) -> Frame {
    Frame::Delta(v1::Delta { from, to, changes })
}

fn stated(id: &str) -> v1::Change {
    v1::Change { change: Some(v1::change::Change::Grant((&grant(id)).into())) }
}

fn part(revision: u64, part: u32, last: bool, grants: usize) -> Frame {
    let grants = (0..grants).map(|number| v1::Grant::from(&grant(&format!("many{number}")))).collect();
    Frame::Snapshot(v1::Snapshot { revision, grants, locks: Vec::new(), part, last })
}

/// SHA-256 of nothing.
const NO_BUNDLES: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn pong(bundles: &str) -> Frame {
    Frame::Pong(v1::Pong { nonce: 77, as_of_revision: 0, server_time: 0, bundles: bundles.to_owned() })
}

#[test]
fn nothing_that_is_said_out_of_turn_revives_or_ends_the_source() {
    let mut nameless = v1::Grant::from(&grant("g1"));
    nameless.id.clear();
    let nonsense = v1::Change { change: Some(v1::change::Change::Grant(nameless)) };
    let scripts: Vec<(&str, Vec<Frame>)> = vec![
        ("a gap", vec![delta(9, 10, vec![stated("g1")])]),
        ("a delta back", vec![delta(2, 1, vec![stated("g1")])]),
        ("a grant that ended", vec![delta(2, 2, vec![stated("g1")])]),
        ("a part without a beginning", vec![part(5, 1, true, 1)]),
        ("parts of two snapshots", vec![part(5, 0, false, 1), part(6, 1, true, 1)]),
        ("a grant without a name", vec![delta(2, 3, vec![nonsense])]),
        ("a change of no kind", vec![delta(2, 3, vec![v1::Change { change: None }])]),
        ("a pong that nobody asked for", vec![pong(NO_BUNDLES)]),
        ("a pong of other bundles", vec![pong("other")]),
        ("an older snapshot", vec![part(1, 0, true, 1)]),
        ("a frame of eight megabytes", vec![part(5, 0, true, 200_000)]),
        ("a request to go away for ever", vec![Frame::GoAway(v1::GoAway { reason: "x".into(), retry_after_ms: 1 })]),
    ];
    for (what, script) in scripts {
        let server = Server::start(None);
        server.state(snapshot(1, &["g1", "g2"]));
        let follows = Follows::start(&[&server], LONG);
        follows.fresh();
        server.change(end("g1"));
        follows.has("g1", GrantState::Revoked);
        server.enforced();
        // The next stream begins with what is not true.
        let address = server.address;
        server.kill();
        let server = Server::start_at(address, None);
        let frames = script.into_iter().map(|frame| v1::ServerFrame { frame: Some(frame) });
        server.manner.script.lock().unwrap().extend(frames);
        server.state(snapshot(2, &["g2"]));
        wait_for(what, || (!server.manner.subscribed.lock().unwrap().is_empty()).then_some(()));
        server.change(Change::Grant(Box::new(grant("g3"))));
        server.change(end("g2"));
        follows.has("g3", GrantState::Active);
        follows.has("g2", GrantState::Revoked);
        assert_eq!(follows.state("g1"), Some(GrantState::Revoked), "{what}");
        follows.fresh();
    }
}
