//! The command line towards a control plane, typed as a new user would.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

#[path = "../common/client.rs"]
#[allow(dead_code)]
mod client;
#[path = "../common/issuer.rs"]
#[allow(dead_code)]
mod issuer;
#[path = "../real/tools.rs"]
#[allow(dead_code)]
mod tools;

mod arguments;
mod crash;
mod examples;
mod faults;
mod life;
mod login;
mod maps;
mod metrics;
mod page;
mod settings;
mod sidecars;
mod terminal;
mod world;

use tools::DEADLINE;
