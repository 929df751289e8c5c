//! The calls that run, so that what ends can end them.
//!
//! A permit is registered here before its last check, so no change falls in between: either the check sees the change, or
//! the change finds the call. Whoever changes the table, the locks or the freshness calls [`LiveCalls::recheck`]; the
//! watcher task calls it when the earliest deadline of a running call comes. A call then sees why it ended at its next
//! poll, because ending it wakes it.
//!
//! One registry a worker, so that registering is a lock nobody else holds.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use atomic_waker::AtomicWaker;
use slab::Slab;
use tokio::sync::Notify;

use crate::domain::time::{Now, Uptime};
use crate::sidecar::reason::Reason;

/// Which part of a call waits for its end. Each has a place for one waker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watcher {
    /// What waits for the head of the answer, or relays a tunnel.
    Head = 0,
    /// What sends the body of the request.
    RequestBody = 1,
    /// What sends the body of the answer.
    ResponseBody = 2,
}

/// One running call: the reason it must end, once there is one.
#[derive(Debug)]
pub struct LiveCall<T> {
    subject: T,
    /// 0 while it may run, else 1 + the place of the reason in [`Reason::ALL`].
    ended: AtomicU8,
    /// When it must end if nothing is heard from the other side, on the uptime clock.
    patience: AtomicI64,
    wakers: [AtomicWaker; 3],
}

impl<T> LiveCall<T> {
    fn new(subject: T) -> Self {
        Self {
            subject,
            ended: AtomicU8::new(0),
            patience: AtomicI64::new(i64::MAX),
            wakers: [AtomicWaker::new(), AtomicWaker::new(), AtomicWaker::new()],
        }
    }

    /// What the call is about.
    pub fn subject(&self) -> &T {
        &self.subject
    }

    /// Why the call must end, if it must.
    pub fn ended(&self) -> Option<Reason> {
        match self.ended.load(Ordering::SeqCst) {
            0 => None,
            n => Some(Reason::ALL.get(usize::from(n) - 1).copied().unwrap_or(Reason::Internal)),
        }
    }

    /// Why the call must end; if it need not yet, wakes `waker` when it must.
    pub fn poll_ended(&self, watcher: Watcher, waker: &Waker) -> Option<Reason> {
        if let Some(reason) = self.ended() {
            return Some(reason);
        }
        self.wakers[watcher as usize].register(waker);
        self.ended()
    }

    /// Ends the call. The first reason stands.
    pub fn end(&self, reason: Reason) {
        let number = u8::try_from(reason as usize + 1).unwrap_or(u8::MAX);
        if self.ended.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            for waker in &self.wakers {
                waker.wake();
            }
        }
    }

    /// Moves the end of patience of a call that is waiting already; seen within a second.
    pub fn wait_until(&self, deadline: Uptime) {
        // Once the answer has begun there is nothing to wait for any more.
        let _ = self.patience.fetch_update(Ordering::AcqRel, Ordering::Acquire, |patience| {
            (patience != i64::MAX).then_some(deadline.as_micros())
        });
    }

    fn patience(&self) -> Uptime {
        Uptime::from_micros(self.patience.load(Ordering::Acquire))
    }
}

/// A call's place in the registry; leaving it is dropping this.
#[derive(Debug)]
pub struct Registered<T> {
    call: Arc<LiveCall<T>>,
    shard: Arc<Shard<T>>,
    key: usize,
}

impl<T> Registered<T> {
    /// The call.
    pub fn call(&self) -> &Arc<LiveCall<T>> {
        &self.call
    }

    /// The call must end at `deadline` unless this is said again before.
    pub fn wait_until(&self, deadline: Uptime) {
        self.call.patience.store(deadline.as_micros(), Ordering::Release);
        self.shard.watch.come_by(deadline);
    }

    /// The call may wait as long as its permit lasts.
    pub fn wait_for_ever(&self) {
        self.call.patience.store(i64::MAX, Ordering::Release);
    }
}

impl<T> Drop for Registered<T> {
    fn drop(&mut self) {
        self.shard.calls().remove(self.key);
    }
}

/// When the watcher has to look next.
#[derive(Debug)]
struct Watch {
    next: AtomicI64,
    changed: Notify,
}

impl Watch {
    fn come_by(&self, deadline: Uptime) {
        let deadline = deadline.as_micros();
        if deadline < self.next.load(Ordering::Acquire) {
            self.next.fetch_min(deadline, Ordering::AcqRel);
            self.changed.notify_one();
        }
    }
}

#[derive(Debug)]
struct Shard<T> {
    calls: Mutex<Slab<Arc<LiveCall<T>>>>,
    watch: Arc<Watch>,
}

impl<T> Shard<T> {
    fn calls(&self) -> std::sync::MutexGuard<'_, Slab<Arc<LiveCall<T>>>> {
        // Nothing panics while the lock is held; if it ever did, the slab would still be whole.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running calls of one worker.
#[derive(Debug)]
pub struct WorkerCalls<T>(Arc<Shard<T>>);

impl<T> Clone for WorkerCalls<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> WorkerCalls<T> {
    /// Registers a call that must be looked at again at `deadline`.
    pub fn register(&self, subject: T, deadline: Uptime) -> Registered<T> {
        let call = Arc::new(LiveCall::new(subject));
        let key = self.0.calls().insert(Arc::clone(&call));
        self.0.watch.come_by(deadline);
        Registered { call, shard: Arc::clone(&self.0), key }
    }
}

/// The running calls of all workers.
#[derive(Debug)]
pub struct LiveCalls<T> {
    shards: Vec<Arc<Shard<T>>>,
    watch: Arc<Watch>,
    next_worker: AtomicUsize,
}

/// How many calls are looked at before a worker's lock is given back.
const CHUNK: usize = 512;

impl<T> LiveCalls<T> {
    /// A registry for so many workers.
    pub fn new(workers: usize) -> Self {
        let watch = Arc::new(Watch { next: AtomicI64::new(i64::MAX), changed: Notify::new() });
        let shard = || Arc::new(Shard { calls: Mutex::new(Slab::new()), watch: Arc::clone(&watch) });
        Self { shards: (0..workers.max(1)).map(|_| shard()).collect(), watch, next_worker: AtomicUsize::new(0) }
    }

    /// The registry of the next worker.
    pub fn worker(&self) -> WorkerCalls<T> {
        let place = self.next_worker.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        WorkerCalls(Arc::clone(&self.shards[place]))
    }

    /// How many calls run.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.calls().len()).sum()
    }

    /// Whether no call runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at every running call and ends those that must: `verdict` says why a call may not go on, or until when it
    /// need not be looked at again.
    pub fn recheck(&self, now: Now, mut verdict: impl FnMut(&T) -> Result<Uptime, Reason>) {
        // Deadlines registered from here on lower it again.
        self.watch.next.store(i64::MAX, Ordering::SeqCst);
        let mut next = Uptime::MAX;
        for shard in &self.shards {
            let mut from = 0;
            loop {
                let calls = shard.calls();
                let last = calls.capacity();
                for key in from..(from + CHUNK).min(last) {
                    let Some(call) = calls.get(key) else { continue };
                    match verdict(&call.subject) {
                        Err(reason) => call.end(reason),
                        Ok(_) if call.patience() <= now.uptime => call.end(Reason::UpstreamTimeout),
                        Ok(until) => next = next.min(until).min(call.patience()),
                    }
                }
                from += CHUNK;
                if from >= last {
                    break;
                }
            }
        }
        self.watch.come_by(next);
    }

    /// Looks at every call that runs and has not to end.
    pub fn look(&self, mut see: impl FnMut(&T)) {
        for shard in &self.shards {
            let mut from = 0;
            loop {
                let calls = shard.calls();
                let last = calls.capacity();
                let some = (from..(from + CHUNK).min(last)).filter_map(|key| calls.get(key));
                some.filter(|call| call.ended().is_none()).for_each(|call| see(&call.subject));
                from += CHUNK;
                if from >= last {
                    break;
                }
            }
        }
    }

    /// Ends every call that runs.
    pub fn end_all(&self, reason: Reason) {
        for shard in &self.shards {
            for (_, call) in &*shard.calls() {
                call.end(reason);
            }
        }
    }

    /// When the next deadline of a running call comes.
    pub fn next_deadline(&self) -> Uptime {
        Uptime::from_micros(self.watch.next.load(Ordering::Acquire))
    }

    /// Returns when an earlier deadline than before was registered. Dropping the future loses nothing.
    pub async fn deadline_moved(&self) {
        self.watch.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    fn now(uptime: i64) -> Now {
        Now { wall: Timestamp::from_seconds(0), uptime: Uptime::from_micros(uptime) }
    }

    #[test]
    fn a_call_leaves_when_it_is_dropped() {
        let calls = LiveCalls::<u32>::new(1);
        let worker = calls.worker();
        let one = worker.register(1, Uptime::MAX);
        assert_eq!(calls.len(), 1);
        drop(one);
        assert!(calls.is_empty());
    }

    #[test]
    fn recheck_ends_what_must_end_and_nothing_else() {
        let calls = LiveCalls::<u32>::new(2);
        let registered: Vec<_> = (0..2_000).map(|n| calls.worker().register(n, Uptime::MAX)).collect();
        calls.recheck(now(0), |n| if n % 2 == 0 { Err(Reason::Revoked) } else { Ok(Uptime::MAX) });
        for call in &registered {
            let expected = call.call().subject().is_multiple_of(2).then_some(Reason::Revoked);
            assert_eq!(call.call().ended(), expected);
        }
    }

    #[test]
    fn what_runs_is_seen_and_what_has_to_end_is_not() {
        let calls = LiveCalls::<u32>::new(2);
        let registered: Vec<_> = (0..2_000).map(|n| calls.worker().register(n, Uptime::MAX)).collect();
        registered[7].call().end(Reason::Revoked);
        let mut seen = Vec::new();
        calls.look(|n| seen.push(*n));
        seen.sort_unstable();
        assert!(seen.iter().copied().eq((0..2_000).filter(|n| *n != 7)));
    }

    #[test]
    fn the_first_reason_stands() {
        let calls = LiveCalls::<u32>::new(1);
        let one = calls.worker().register(1, Uptime::MAX);
        one.call().end(Reason::Lock);
        one.call().end(Reason::Expired);
        assert_eq!(one.call().ended(), Some(Reason::Lock));
    }

    #[test]
    fn every_reason_survives_the_way_through() {
        for reason in Reason::ALL {
            let calls = LiveCalls::<u32>::new(1);
            let one = calls.worker().register(1, Uptime::MAX);
            one.call().end(*reason);
            assert_eq!(one.call().ended(), Some(*reason));
        }
    }

    #[test]
    fn patience_runs_out_and_deadlines_are_remembered() {
        let calls = LiveCalls::<u32>::new(1);
        let one = calls.worker().register(1, Uptime::from_micros(500));
        assert_eq!(calls.next_deadline(), Uptime::from_micros(500));
        one.wait_until(Uptime::from_micros(100));
        assert_eq!(calls.next_deadline(), Uptime::from_micros(100));
        calls.recheck(now(99), |_| Ok(Uptime::from_micros(500)));
        assert_eq!(one.call().ended(), None);
        assert_eq!(calls.next_deadline(), Uptime::from_micros(100));
        one.wait_for_ever();
        calls.recheck(now(100), |_| Ok(Uptime::from_micros(500)));
        assert_eq!(one.call().ended(), None);
        assert_eq!(calls.next_deadline(), Uptime::from_micros(500));
        one.wait_until(Uptime::from_micros(200));
        calls.recheck(now(200), |_| Ok(Uptime::from_micros(500)));
        assert_eq!(one.call().ended(), Some(Reason::UpstreamTimeout));
    }
}
