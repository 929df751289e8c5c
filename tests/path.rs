//! A call's path through the whole sidecar, seen from its caller and its backend.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::backend::Backend;
use common::world::{Setup, World};

#[test]
fn a_granted_call_reaches_the_backend_with_our_credential_and_not_the_callers() {
    let backend = Backend::start();
    let world = World::start(&Setup::new(backend.address));
    let answer = world.call("GET", "/allowed/a");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
    let seen = backend.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line(), "GET /allowed/a HTTP/1.1");
    assert_eq!(seen[0].headers("authorization"), [format!("Bearer {}", world.secret)]);
    assert_eq!(seen[0].headers("host"), [backend.address.to_string()]);
    let calls = world.calls(1);
    assert_eq!(calls[0]["decision"], "permit");
}
