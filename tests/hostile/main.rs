//! Hostile inputs against the whole sidecar: each is a line of data with what must come of it.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod arguments;
mod catalogue;
mod certificates;
mod conditions;
mod frames;
mod loads;
mod raw;
mod tokens;
