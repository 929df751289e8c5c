//! HTTP/2 frames as no library would send them, by prior knowledge on a plain connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::common::DEADLINE;
use super::common::backend::Backend;
use super::common::world::{Setup, World};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals that nobody remembers (RFC 7541 section 6.2.2), without Huffman codes.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            match text.len() {
                short @ 0..127 => bytes.push(u8::try_from(short).unwrap()),
                long => {
                    bytes.push(127);
                    let mut left = long - 127;
                    while left >= 128 {
                        bytes.push(u8::try_from(left % 128).unwrap() | 128);
                        left /= 128;
                    }
                    bytes.push(u8::try_from(left).unwrap());
                }
            }
            bytes.extend(text.bytes());
        }
    }
    bytes
}

/// What came of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Closed,
    GoAway,
    Reset,
    /// The first byte of the answer's field block: 0x88 is `:status: 200`.
    Answered(u8),
}

struct Caller(TcpStream);

impl Caller {
    fn connect(world: &World) -> Self {
        let mut stream = TcpStream::connect(world.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
        Self(stream)
    }

    /// Sends; a connection that was closed meanwhile is no fault of the caller's.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// What comes of a stream, or of the whole connection.
    fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            match self.next() {
                None => return Outcome::Closed,
                Some((GOAWAY, ..)) => return Outcome::GoAway,
                Some((RST_STREAM, of, _)) if of == stream => return Outcome::Reset,
                Some((HEADERS, of, payload)) if of == stream => return Outcome::Answered(payload[0]),
                Some(_) => {}
            }
        }
    }
}

fn start() -> (World, Backend) {
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.listener = "    limits: {head_timeout: 2s, body_timeout: 2s, idle_timeout: 5s}\n".to_owned();
    (World::start(&setup), backend)
}

fn request<'a>(world: &'a Host, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", world.host.as_str()),
        (":path", "/allowed/a"),
        ("authorization", world.bearer.as_str()),
    ];
    for (name, value) in more {
        match fields.iter_mut().find(|(known, _)| known == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

/// Texts that fields borrow.
struct Host {
    host: String,
    bearer: String,
}

impl Host {
    fn of(world: &World) -> Self {
        Self { host: world.address.to_string(), bearer: format!("Bearer {}", world.token) }
    }
}

#[track_caller]
fn is_served(world: &World) {
    let mut caller = Caller::connect(world);
    caller.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&request(&Host::of(world), &[]))));
    assert_eq!(caller.outcome(1), Outcome::Answered(0x88));
    assert_eq!(world.call("GET", "/allowed/next").status, 200);
}

#[test]
fn a_request_that_is_none_ends_its_stream_and_never_reaches_the_backend() {
    let (world, backend) = start();
    let host = Host::of(&world);
    let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut repeated = request(&host, &[]);
    repeated.push((":method", "DELETE"));
    let mut late = request(&host, &[]);
    late.insert(0, ("x", "y"));
    let whole = |fields: &[(&str, &str)]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
    let begun = |fields: &[(&str, &str)]| frame(HEADERS, END_HEADERS, 1, &block(fields));
    let post = [(":method", "POST"), (":path", "/upload")];
    let with = |more: &[(&'static str, &'static str)]| request(&host, &[&post[..], more].concat());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("BI-H2F-002", [begun(&with(&[("content-length", "0")])), frame(DATA, END_STREAM, 1, smuggled)].concat()),
        ("BI-H2F-003", [begun(&with(&[("content-length", "44")])), frame(DATA, END_STREAM, 1, b"")].concat()),
        ("BI-H2F-006", whole(&request(&host, &[("x\r\ny", "z")]))),
        ("BI-H2F-007", whole(&request(&host, &[(":path", "/allowed/a HTTP/1.1\r\nHost: x\r\n\r\nGET /smuggled")]))),
        ("BI-H2F-008", whole(&request(&host, &[(":method", "GET / HTTP/1.1\r\nx: y")]))),
        ("BI-H2F-009", whole(&request(&host, &[(":path", "/allowed/a /admin")]))),
        ("BI-H2F-012", whole(&late)),
        ("BI-H2F-014", whole(&repeated)),
        ("BI-H2F-015", whole(&request(&host, &[(":grant", "root")]))),
        ("BI-H2F-018", whole(&request(&host, &[(":scheme", "http://evil/?")]))),
        ("BI-H2F-021", [begun(&request(&host, &post)), frame(HEADERS, END_HEADERS, 1, &block(&[("x", "y")]))].concat()),
        ("BI-H2F-031", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 0])),
        ("BI-H2F-032", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("BI-PTH-051", whole(&request(&host, &[(":method", "POST"), (":path", "admin.Service/Drop")]))),
        ("BI-HST-018", whole(&request(&host, &[("host", "evil.test")]))),
        ("upper-case name", whole(&request(&host, &[("X-Upper", "1")]))),
        ("connection field", whole(&request(&host, &[("connection", "keep-alive")]))),
        ("transfer-encoding", whole(&request(&host, &[("transfer-encoding", "chunked")]))),
    ];
    for (id, bytes) in cases {
        backend.forget();
        let mut caller = Caller::connect(&world);
        caller.send(&bytes);
        let outcome = caller.outcome(1);
        assert!(outcome != Outcome::Answered(0x88), "{id}: {outcome:?}");
        let lines: Vec<_> = backend.seen().iter().map(|seen| seen.line().to_owned()).collect();
        assert!(lines.is_empty(), "{id}: the backend saw {lines:?}");
        is_served(&world);
    }
}

#[test]
fn a_stream_that_is_reset_leaves_its_siblings() {
    let (world, _backend) = start();
    let host = Host::of(&world);
    let mut caller = Caller::connect(&world);
    caller.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&request(&host, &[("connection", "keep-alive")]))));
    assert_eq!(caller.outcome(1), Outcome::Reset);
    caller.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &block(&request(&host, &[]))));
    assert_eq!(caller.outcome(3), Outcome::Answered(0x88));
}

/// How much of memory this process holds, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends a piece again and again while somebody takes it; what comes back is read and forgotten.
fn flood(world: &World, first: &[u8], count: usize, mut piece: impl FnMut(u32) -> Vec<u8>) -> u64 {
    let mut caller = Caller::connect(world);
    caller.0.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut reader = caller.0.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 64 * 1024];
        while matches!(reader.read(&mut piece), Ok(read) if read > 0) {}
    });
    let before = resident_kib();
    caller.send(first);
    for number in 0..count {
        if !caller.send(&piece(u32::try_from(number).unwrap())) {
            break;
        }
    }
    let grown = resident_kib().saturating_sub(before);
    let _ = caller.0.shutdown(std::net::Shutdown::Both);
    reading.join().unwrap();
    grown
}

#[test]
fn floods_of_frames_are_bounded_and_harm_nobody_else() {
    // BI-H2F-023, -024, -028, -029, -033, and the CONTINUATION flood. One test, because they all look at this process.
    let (world, _backend) = start();
    let host = Host::of(&world);
    let fields = block(&request(&host, &[]));
    let post = block(&request(&host, &[(":method", "POST"), (":path", "/upload")]));
    let stream = |number: u32| 1 + 2 * number;
    let begin = |number: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &fields);
    let mut grown = vec![(
        "rapid reset",
        flood(&world, &[], 20_000, |n| [begin(n), frame(RST_STREAM, 0, stream(n), &8u32.to_be_bytes())].concat()),
    )];
    grown.push((
        "made to reset",
        flood(&world, &[], 20_000, |n| [begin(n), frame(WINDOW_UPDATE, 0, stream(n), &[0; 4])].concat()),
    ));
    let first = frame(HEADERS, END_HEADERS, 1, &post);
    grown.push(("empty data", flood(&world, &first, 200_000, |_| frame(DATA, 0, 1, &[]))));
    let chatter = [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8]), frame(PRIORITY, 0, 3, &[0; 5])].concat();
    grown.push(("settings, pings, priorities", flood(&world, &[], 50_000, |_| chatter.clone())));
    let first = frame(HEADERS, 0, 1, &fields);
    grown.push(("continuations", flood(&world, &first, 20_000, |_| frame(CONTINUATION, 0, 1, &block(&[("x", "y")])))));
    let first = frame(HEADERS, END_HEADERS, 1, &block(&request(&host, &[(":method", "POST"), (":path", "/none")])));
    grown.push(("early data", flood(&world, &first, 1_000, |_| frame(DATA, 0, 1, &[b'a'; 16_384]))));
    for (what, kib) in grown {
        assert!(kib < 64 * 1024, "{what}: {kib} KiB more");
    }
    is_served(&world);
}
