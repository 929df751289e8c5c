//! Bytes on a plain connection, as they stand in `raw_h1.jsonl`.
//!
//! In `send` every character stands for one byte; `${HOST}`, `${TOKEN}` and repetitions are filled in when it is sent.
//! `expect` says what the caller, the backend and the record must show. Whatever the input was, the next caller is served,
//! nobody but the backend ever sees the credential, and each answer has exactly one record.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;

use super::common::backend::Backend;
use super::common::client::{Answer, find};
use super::common::wait_for;
use super::common::world::{Setup, World};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub id: String,
    pub what: String,
    pub send: String,
    pub expect: Expect,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    /// What the first answer may be.
    pub status: Vec<u16>,
    /// What each answer may be, where several come.
    pub statuses: Vec<Vec<u16>>,
    /// How many answers come, each as `status` says; one where this is absent.
    pub answers: usize,
    /// Whether no answer at all is right too.
    pub or_close: bool,
    /// Whether the connection ends.
    pub closed: bool,
    /// How many whole requests the backend may see.
    pub upstream_max: Option<usize>,
    /// What the backend must not receive, but for the name it is called by.
    pub never_upstream: Vec<String>,
    /// What the backend must not be asked for.
    pub never_requested: Vec<String>,
    /// Whether our credential arrives where the call is let through.
    pub credential_arrives: bool,
    /// Whether the record says that it was refused.
    pub denied: bool,
    /// Whether the record says that it was permitted.
    pub allowed: bool,
}

const CASES: &str = include_str!("raw_h1.jsonl");

/// How many sidecars share the inputs.
const WORLDS: usize = 6;

pub(crate) fn cases() -> Vec<Case> {
    CASES.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn every_input_comes_to_what_it_must() {
    let cases = cases();
    let share = cases.len().div_ceil(WORLDS);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = cases.chunks(share).map(|cases| scope.spawn(|| run(cases))).collect();
        running.into_iter().flat_map(|world| world.join().expect("no panic")).collect()
    });
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn run(cases: &[Case]) -> Vec<String> {
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    // What stalls is to end soon, so that the tests do.
    setup.listener = "    limits: {head_timeout: 1s, body_timeout: 1s, idle_timeout: 3s}\n".to_owned();
    let world = World::start(&setup);
    let mut failures = Vec::new();
    for case in cases {
        backend.forget();
        let checked = catch_unwind(AssertUnwindSafe(|| check(case, &world, &backend)));
        if let Err(failure) = checked.unwrap_or_else(|_| Err("see the panic above".to_owned())) {
            failures.push(format!("{} ({}): {failure}", case.id, case.what));
        }
    }
    let metrics = world.admin("/metrics").text();
    assert!(!metrics.contains(&world.secret));
    assert_eq!(world.admin("/readyz").status, 200);
    let secret = world.secret.clone();
    let record = world.stop();
    assert!(record.contains("/allowed/next") && !record.contains(&secret));
    failures
}

fn check(case: &Case, world: &World, backend: &Backend) -> Result<(), String> {
    let expect = &case.expect;
    let recorded = world.records("call").len();
    let (answers, rest) = exchange(case, world);
    let more = rest.windows(9).filter(|window| window == b"HTTP/1.1 ").count();
    let seen = backend.seen();
    expect.check_answers(&answers)?;
    for answer in &answers {
        let leak =
            find(answer.head.as_bytes(), world.secret.as_bytes()).or(find(&answer.body, world.secret.as_bytes()));
        ensure(leak.is_none(), || format!("the caller sees the credential: {answer:?}"))?;
    }
    ensure(find(&rest, world.secret.as_bytes()).is_none(), || "the caller sees the credential".to_owned())?;
    expect.check_backend(&seen, &world.secret)?;
    next_caller(world, backend)?;

    // The next caller's own record comes after all of the input's.
    let records = wait_for("the next caller's record", || {
        let records = world.records("call").split_off(recorded);
        records.iter().any(|record| record["path"] == "/allowed/next").then_some(records)
    });
    let decisions: Vec<_> = records.iter().filter(|record| record["path"] != "/allowed/next").collect();
    let due = answers.len() + more;
    ensure(decisions.len() >= due, || format!("{due} answers and {} records", decisions.len()))?;
    ensure(decisions.len() <= due.max(1), || format!("{due} answers and {} records: {decisions:?}", decisions.len()))?;
    let permitted = decisions.iter().filter(|record| record["decision"] == "permit").count();
    ensure(!expect.denied || permitted == 0 || seen.is_empty(), || "the record says that it was permitted".to_owned())?;
    ensure(!expect.allowed || permitted == 1, || format!("it was not permitted: {decisions:?}"))
}

/// Sends it, and takes as many answers as are due; then whatever still comes until the connection ends.
fn exchange(case: &Case, world: &World) -> (Vec<Answer>, Vec<u8>) {
    let mut client = world.connect();
    let bytes = fill(&case.send, &world.address.to_string(), &world.token);
    let method = case.send.split(' ').next().unwrap_or_default().to_owned();
    client.send(&bytes);
    if !bytes.windows(2).any(|window| window == b"\n\n" || window == b"\n\r") {
        // A head that is not whole: its sender has nothing to add.
        client.finish();
    }
    let due = case.expect.statuses.len().max(case.expect.answers).max(1);
    let answers: Vec<Answer> = (0..due).map_while(|_| client.answer_to(&method)).collect();
    if !case.expect.closed {
        client.finish();
    }
    (answers, client.rest())
}

fn ensure(good: bool, failure: impl FnOnce() -> String) -> Result<(), String> {
    if good { Ok(()) } else { Err(failure()) }
}

impl Expect {
    fn check_answers(&self, answers: &[Answer]) -> Result<(), String> {
        if !self.statuses.is_empty() {
            let given: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            let good = given.len() == self.statuses.len()
                && given.iter().zip(&self.statuses).all(|(given, may)| may.contains(given));
            return ensure(good, || format!("answered {given:?}"));
        }
        ensure(answers.len() >= self.answers, || format!("{} answers came", answers.len()))?;
        if let Some(answer) = answers.iter().skip(1).find(|answer| !self.status.contains(&answer.status)) {
            return Err(format!("a later answer was {}", answer.status));
        }
        match answers.first() {
            None => ensure(self.or_close, || "there was no answer".to_owned()),
            Some(_) if self.status.is_empty() => Ok(()),
            Some(answer) => ensure(self.status.contains(&answer.status), || {
                format!("answered {} {}, expected {:?}", answer.status, answer.text(), self.status)
            }),
        }
    }

    fn check_backend(&self, seen: &[super::common::backend::Seen], secret: &str) -> Result<(), String> {
        let lines: Vec<&str> = seen.iter().map(super::common::backend::Seen::line).collect();
        ensure(self.upstream_max.is_none_or(|max| seen.len() <= max), || format!("the backend saw {lines:?}"))?;
        for request in seen {
            let named: Vec<&str> =
                request.head.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("host:")).collect();
            let text = named.join("\r\n");
            ensure(!request.head.replace("\r\n", "").contains(['\r', '\n', '\0']), || {
                format!("the head is not canonical: {:?}", request.head)
            })?;
            for never in &self.never_upstream {
                let found = text.contains(never.as_str()) || find(&request.body, never.as_bytes()).is_some();
                ensure(!found, || format!("the backend got {never:?}: {text:?}"))?;
            }
            for never in &self.never_requested {
                ensure(!request.line().contains(never.as_str()), || format!("the backend was asked {lines:?}"))?;
            }
            ensure(request.headers("authorization") == [format!("Bearer {secret}")], || {
                format!("without our credential, or with more: {text:?}")
            })?;
        }
        Ok(())
    }
}

/// Another caller is served, whatever came before.
fn next_caller(world: &World, backend: &Backend) -> Result<(), String> {
    backend.forget();
    let answer = world.call("GET", "/allowed/next");
    let lines: Vec<String> = backend.seen().iter().map(|seen| seen.line().to_owned()).collect();
    ensure(answer.status == 200 && answer.text() == "ok\n", || format!("the next caller got {answer:?}"))?;
    ensure(lines == ["GET /allowed/next HTTP/1.1"], || format!("for the next caller the backend saw {lines:?}"))
}

/// The bytes of an input with its macros filled in.
pub(crate) fn fill(text: &str, host: &str, token: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        bytes.extend(rest[..at].chars().map(|c| c as u8));
        let Some(length) = rest[at..].find('}') else { break };
        let end = at + length;
        let name = &rest[at + 2..end];
        match name.split(':').collect::<Vec<_>>()[..] {
            ["HOST"] => bytes.extend_from_slice(host.as_bytes()),
            ["TOKEN"] => bytes.extend_from_slice(token.as_bytes()),
            ["REP", byte, count] | ["REPS", byte, count] => {
                let piece: Vec<u8> =
                    (0..byte.len()).step_by(2).map(|at| u8::from_str_radix(&byte[at..at + 2], 16).unwrap()).collect();
                bytes.extend(piece.repeat(count.parse().unwrap()));
            }
            ["REPS_REQ", line, count] => {
                let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
                bytes.extend(request.as_bytes().repeat(count.parse().unwrap()));
            }
            ["REPS_HDR", size, count] => {
                for number in 0..count.parse::<usize>().unwrap() {
                    let field = format!("X-{number}: ");
                    let value = "a".repeat(size.parse::<usize>().unwrap() - field.len() - 2);
                    bytes.extend_from_slice(format!("{field}{value}\r\n").as_bytes());
                }
            }
            _ => panic!("`{name}` is no macro"),
        }
        rest = &rest[end + 1..];
    }
    bytes.extend(rest.chars().map(|c| c as u8));
    bytes
}
