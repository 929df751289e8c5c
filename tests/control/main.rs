//! The whole control plane beside a sidecar, seen from its API.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod plane;

mod arguments;
mod beside;
mod certificates;
mod guardrail;
mod inputs;
mod life;
mod lists;
mod openapi;
mod routes;
mod schemathesis;
