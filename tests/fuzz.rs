//! The fuzz targets on a stable compiler: the kept corpus, and arbitrary changes of it.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "fuzz/bodies.rs"]
mod bodies;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What is kept of a target: small inputs that reach far.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut inputs: Vec<Vec<u8>> =
        std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs
}

/// Runs what is kept, then pieces of it with bytes put in, taken out and turned.
fn run(target: &str, body: fn(&[u8])) {
    let kept = corpus(target);
    for input in &kept {
        body(input);
    }
    let change = (any::<prop::sample::Index>(), 0u8..4, any::<u8>());
    let changed = (prop::sample::select(kept), prop::collection::vec(change, 0..12));
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&changed, |(mut input, changes)| {
        for (place, kind, byte) in changes {
            let place = place.index(input.len() + 1);
            match kind {
                0 => input.insert(place, byte),
                1 if place < input.len() => drop(input.remove(place)),
                2 if place < input.len() => input[place] ^= byte,
                _ => input.truncate(place.max(1)),
            }
        }
        body(&input);
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{target}: {error}"));
}

#[test]
fn canonical() {
    run("canonical", bodies::canonical);
}

#[test]
fn action_map() {
    run("action_map", bodies::action_map);
}

#[test]
fn config() {
    run("config", bodies::config);
}

#[test]
fn grants() {
    run("grants", bodies::grants);
}

#[test]
fn guardrails() {
    run("guardrails", bodies::guardrails);
}

#[test]
fn token() {
    run("token", bodies::token);
}
