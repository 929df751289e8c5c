//! Step `accept`: sockets, TLS, and the limits of a connection.
//!
//! A permit from the connection limit is taken before `accept`, so what is over the limit waits in the kernel's queue and
//! costs nothing here. Certificates, keys and trust are read through one swap per connection, so they change together and
//! without dropping what runs.

pub mod io;
pub mod listen;
pub mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;

/// What one listener allows a connection.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections at a time.
    pub connections: usize,
    /// Longest TLS handshake, or wait for the first bytes.
    pub handshake: Duration,
    /// Longest time for a request's head, counted from the end of the last answer.
    pub head: Duration,
    /// Longest time without a running call.
    pub idle: Duration,
    /// Most bytes of a head.
    pub head_bytes: usize,
    /// Most fields of a head.
    pub headers: usize,
    /// Most calls at a time on one HTTP/2 connection.
    pub streams: u32,
}

/// What is known of a connection once it is accepted.
#[derive(Debug)]
pub struct Connection {
    /// Who is at the other end, for the record.
    pub peer: String,
    /// The client's certificate chain, verified; empty without.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// The name asked for in the handshake.
    pub server_name: Option<String>,
    /// Whether HTTP/2 is spoken.
    pub http2: bool,
}

/// Says to the connection a call came over that it must be reset, not closed: a cut answer must not look whole.
///
/// An HTTP/2 connection has none: there a stream is reset and its siblings live on.
#[derive(Debug, Clone, Default)]
pub struct ResetSwitch(Option<Arc<AtomicBool>>);

impl ResetSwitch {
    /// A switch of a connection that carries one call at a time.
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// From now on closing the connection resets it.
    pub fn set(&self) {
        if let Some(switch) = &self.0 {
            switch.store(true, Ordering::Release);
        }
    }

    /// Whether closing the connection resets it.
    pub fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|switch| switch.load(Ordering::Acquire))
    }
}
