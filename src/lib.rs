//! Leasehold: privilege orchestration for machines.
//!
//! Nobody and nothing holds standing admin rights. A sidecar in front of a sensitive backend checks every call against
//! its table of live grants, injects a short-lived upstream credential only for a permitted call, cuts what runs when
//! the grant ends, and records one outcome for each call.
//!
//! The map, in the order of dependency; `tests/boundaries.rs` holds who may name whom:
//!
//! * [`domain`] — what things are: ids, time, principals, actions, resources, grants, locks. No I/O, no clock.
//! * [`action_map`] — how the calls of a backend become actions, as it is written; both planes read it.
//! * [`guardrail`] — what forbids a call although a grant covers it; both planes read and evaluate it alike.
//! * [`identity`] — a proof in, a [`Verified`](identity::Verified) principal out.
//! * [`telemetry`] — log lines, the metric registry, the admin listener; knows no word of the domain.
//! * [`wire`] — what the planes say to each other, as messages.
//! * [`sync`] — how grants and their ends come from where they are decided to where they are enforced.
//! * [`sidecar`] — the data plane: a folder for each step of a call, in order.
//! * [`control`] — the control plane: what may be asked for, who agrees, what becomes of it, when it ends.
//! * [`config`] — the only reader of files and environment: as written, then resolved.
//! * [`app`] — the only module that knows everything: configuration in, a running program out.
//! * [`cli`] — commands and flags; the only module that prints.

pub mod domain;

pub mod action_map;

pub mod guardrail;

pub mod identity;

pub mod telemetry;

pub mod wire;

pub mod sync;

pub mod sidecar;

pub mod control;

pub mod config;

pub mod app;

pub mod cli;
