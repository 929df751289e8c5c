//! The program in front of the real servers, called by real clients. `scripts/test` installs what this needs.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

#[path = "../common/issuer.rs"]
#[allow(dead_code)]
mod issuer;

mod clients;
mod etcd;
#[path = "../common/etcd.rs"]
mod etcd_server;
mod oidc;
mod process;
mod proxy;
mod rabbitmq;
mod service;
mod tools;
