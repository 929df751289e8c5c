//! Kept connections to the backends, one pool a worker.
//!
//! The key holds everything that a connection may carry the authentication of: backend, principal and credential. So no
//! two (principal, credential) ever share a connection, whatever the backend ties to it. One pool a worker, because a
//! socket belongs to the runtime that opened it and because then its lock is one nobody else holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::body::UpstreamBody;
use crate::domain::principal::Principal;

/// Whose connection it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The backend's configuration; a changed one has another number.
    pub backend: u64,
    /// Who calls.
    pub principal: Principal,
    /// With which lease; 0 without.
    pub lease: u64,
}

/// A connection that requests can be sent on.
#[derive(Debug)]
pub enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<UpstreamBody>),
    /// Many at a time.
    Http2(http2::SendRequest<UpstreamBody>),
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    since: Instant,
}

#[derive(Debug, Default)]
struct Kept {
    by_key: HashMap<PoolKey, SmallVec<[Idle; 1]>, ahash::RandomState>,
    total: usize,
}

/// The kept connections of one worker.
#[derive(Debug)]
pub struct Pool {
    kept: Mutex<Kept>,
    idle_max: usize,
}

impl Pool {
    /// A pool that keeps at most so many idle connections.
    pub fn new(idle_max: usize) -> Self {
        Self { kept: Mutex::default(), idle_max }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that was used within `idle_for`, and how long it lay idle.
    pub fn take(&self, key: &PoolKey, idle_for: Duration) -> Option<(Sender, Duration)> {
        let kept = &mut *self.kept();
        let list = kept.by_key.get_mut(key)?;
        while let Some(idle) = list.pop() {
            if let Sender::Http2(sender) = &idle.sender
                && !idle.sender.is_closed()
            {
                let copy = Sender::Http2(sender.clone());
                let since = idle.since.elapsed();
                list.push(Idle { since: Instant::now(), ..idle });
                return Some((copy, since));
            }
            kept.total -= 1;
            let since = idle.since.elapsed();
            if !idle.sender.is_closed() && since < idle_for {
                return Some((idle.sender, since));
            }
        }
        None
    }

    /// Keeps a connection for the next request of the same key. An HTTP/2 connection is kept once, when it is opened.
    pub fn keep(&self, key: PoolKey, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let kept = &mut *self.kept();
        if kept.total >= self.idle_max {
            kept.drop_some();
        }
        if kept.total >= self.idle_max {
            return;
        }
        let idle = Idle { sender, since: Instant::now() };
        match kept.by_key.entry(key) {
            Entry::Occupied(mut list) => list.get_mut().push(idle),
            Entry::Vacant(place) => {
                place.insert(SmallVec::from_iter([idle]));
            }
        }
        kept.total += 1;
    }

    /// Drops connections that lay idle for `idle_for` or were closed.
    pub fn sweep(&self, idle_for: Duration) {
        let kept = &mut *self.kept();
        kept.by_key.retain(|_, list| {
            // What still runs over an HTTP/2 connection keeps it open without us.
            list.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < idle_for);
            !list.is_empty()
        });
        kept.total = kept.by_key.values().map(SmallVec::len).sum();
    }

    /// How many connections are kept.
    pub fn len(&self) -> usize {
        self.kept().total
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Kept {
    /// Makes room: closed ones first, else the older half.
    fn drop_some(&mut self) {
        self.by_key.retain(|_, list| {
            list.retain(|idle| !idle.sender.is_closed());
            !list.is_empty()
        });
        self.total = self.by_key.values().map(SmallVec::len).sum();
        let mut ages: Vec<Instant> = self.by_key.values().flatten().map(|idle| idle.since).collect();
        if ages.len() < 2 {
            return;
        }
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.by_key.retain(|_, list| {
            list.retain(|idle| idle.since >= median);
            !list.is_empty()
        });
        self.total = self.by_key.values().map(SmallVec::len).sum();
    }
}
