//! A call that was agreed to, and others that mean to pass for it: what differs in a byte is another call.

use leasehold::app::arguments;

use super::common::backend::Backend;
use super::common::world::{Setup, World, grant};

const TARGET: &str = "/upload?table=orders&limit=1";
const KIND: &str = "application/x-www-form-urlencoded";
const BODY: &str = "confirm=yes&name=a%20b";

/// Target, fields and body of calls that some backend would take for the one that was agreed to, or for more.
const SMUGGLED: &[(&str, &str, &str)] = &[
    // The query: another order, a second value, another spelling of the same value, an empty parameter, nothing.
    ("/upload?limit=1&table=orders", "", BODY),
    ("/upload?table=orders&limit=1&table=customers", "", BODY),
    ("/upload?table=%6Frders&limit=1", "", BODY),
    ("/upload?table=orders&limit=1&", "", BODY),
    ("/upload?table=orders;limit=1", "", BODY),
    ("/upload?table=orders&limit=+1", "", BODY),
    ("/upload", "", BODY),
    // The body: another order, another spelling of a space, another case of an escape, bytes before, after and between.
    (TARGET, "", "name=a%20b&confirm=yes"),
    (TARGET, "", "confirm=yes&name=a+b"),
    (TARGET, "", "confirm=yes&name=a%20b&name=c"),
    (TARGET, "", "confirm=yes&name=%61%20b"),
    (TARGET, "", "confirm=yes&name=a%20b\n"),
    (TARGET, "", "confirm=yes&name=a%20b\0"),
    (TARGET, "", "\u{feff}confirm=yes&name=a%20b"),
    (TARGET, "", ""),
    // A part of one moved into the other.
    ("/upload?table=orders&limit=1&confirm=yes", "", "name=a%20b"),
    ("/upload", "", "table=orders&limit=1\nconfirm=yes&name=a%20b"),
];

/// The same with another type or encoding: it stands in for the one that was agreed to.
const DISGUISED: &[&str] = &[
    "content-type: application/json\r\n",
    "content-type: application/x-www-form-urlencoded; charset=utf-16\r\n",
    "content-type: APPLICATION/x-www-form-urlencoded\r\n",
    "",
    "content-type: application/x-www-form-urlencoded\r\ncontent-encoding: gzip\r\n",
    "content-type: application/x-www-form-urlencoded\r\ncontent_type: application/json\r\n",
    "content-type: application/x-www-form-urlencoded\r\ncontent-type: application/json\r\n",
    "content-type: application/x-www-form-urlencoded\r\nconnection: content-type\r\n",
];

#[test]
fn what_differs_in_a_byte_is_another_call() {
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    let digest = arguments::digest("POST", TARGET, Some(KIND), BODY.as_bytes()).unwrap();
    let bound = format!("arguments: \"{digest}\", uses_max: 1, task:");
    setup.grants = grant("g1", "ci-bot", "*", "**", 3_600).replace("task:", &bound);
    let world = World::start(&setup);
    let send = |target: &str, fields: &str, body: &str| {
        let mut client = world.connect();
        client.send(&world.request_with("POST", target, &world.token, fields, body));
        client.answer().unwrap()
    };
    let kind = format!("content-type: {KIND}\r\n");
    let smuggled = SMUGGLED.iter().map(|(target, fields, body)| (*target, format!("{kind}{fields}"), *body));
    let disguised = DISGUISED.iter().map(|fields| (TARGET, (*fields).to_owned(), BODY));
    for (target, fields, body) in smuggled.chain(disguised) {
        let answer = send(target, &fields, body);
        assert!(matches!(answer.status, 400 | 403 | 415), "{target} {fields:?} {body:?}: {answer:?}");
    }
    assert!(backend.seen().is_empty());
    assert_eq!(send(TARGET, &kind, BODY).status, 200, "none of them took the use");
    // A second request in the rest of the first is a call of its own, and not agreed to.
    let mut client = world.connect();
    let mut both = world.request_with("POST", TARGET, &world.token, &kind, BODY);
    both.extend(world.request_with("POST", "/admin", &world.token, "", "x"));
    client.send(&both);
    assert_eq!((client.answer().unwrap().status, client.answer().unwrap().status), (403, 403));
    assert_eq!(backend.seen().len(), 1);
}
