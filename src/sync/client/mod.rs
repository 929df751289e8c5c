//! Follows control planes over gRPC: drives a [`Follower`] on one stream at a time, for as long as it takes.
//!
//! Any address may die, hang or lie. A stream on which nothing is heard is left for the next address; a stream whose
//! pings are not answered proves nothing, so the view ages and everything is denied in the end. Nothing here decides
//! that: it only connects, waits, and passes on.

mod activity;
mod connect;
mod join;
mod outgoing;
mod proving;
mod status;
mod tls;
mod uses;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::follower::{About, Broken, Follower, Taken};
use super::hub::Hub;
use super::{Changed, GrantSource, Sink, Work};
use crate::domain::time::{Clock, Now, Timestamp};
use crate::wire::v1;
use crate::wire::v1::server_frame::Frame;

pub use super::server::Use;
use activity::Telling;
pub use activity::{Activity, Uses};
pub use connect::{Address, Servers, Upstreams};
pub use join::{JoinError, JoinToken, join};
use outgoing::Outgoing;
use proving::Proving;
use status::Offset;
pub use status::Status;
pub use tls::{TlsError, TlsSettings};

/// How soon everything happens; all of it follows from how old a view may be.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two pings.
    ping: Duration,
    /// Without a frame.
    silence: Duration,
    /// Without an answer to a ping.
    unproved: Duration,
    /// Longest pause before the next attempt.
    pause: Duration,
    /// For the first view, before the sidecar starts without one.
    first: Duration,
}

impl Pace {
    fn new(staleness_max: Duration, first: Duration) -> Self {
        Self {
            ping: (staleness_max / 5).min(Duration::from_secs(2)),
            silence: staleness_max / 2,
            unproved: staleness_max,
            pause: (staleness_max / 3).min(Duration::from_secs(10)),
            first,
        }
    }
}

/// The pause after a first failure; it doubles from one to the next.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Acknowledgements that nobody waits for.
const ACK_EVERY: Duration = Duration::from_millis(50);

/// What those behind a relay say within this time is passed on together.
const ACK_TOGETHER: Duration = Duration::from_millis(5);

/// Pings that others ask for.
const ASKED_EVERY: Duration = Duration::from_millis(20);

/// How long the last frames are waited for.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);

/// Grants of one snapshot; a server that states more is not believed.
const GRANTS_MAX: usize = 4_000_000;

/// An open stream.
struct Link {
    address: Address,
    /// With which certificate it was opened.
    certificate: u64,
    out: Outgoing,
    frames: Streaming<v1::ServerFrame>,
    heard: Instant,
    proved: Instant,
    pinged: Instant,
    ping: Instant,
    ack: Option<Instant>,
    asked: VecDeque<(u64, Now)>,
    grants: usize,
}

/// Why a stream ended.
#[derive(Debug)]
enum Lost {
    Broken(Broken),
    Status(Box<tonic::Status>),
    Closed,
    Silent,
    Unproved,
    TooMuch,
    Unreachable(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(broken) => broken.fmt(f),
            Self::Status(status) => write!(f, "{:?}: {}", status.code(), status.message()),
            Self::Closed => f.write_str("the stream ended"),
            Self::Silent => f.write_str("nothing was heard for too long"),
            Self::Unproved => f.write_str("no ping was answered for too long"),
            Self::TooMuch => f.write_str("a snapshot of more grants than can be"),
            Self::Unreachable(why) => f.write_str(why),
        }
    }
}

/// A source that follows control planes, or relays.
pub struct ControlSource {
    upstreams: Arc<Upstreams>,
    follower: Follower,
    sink: Proving,
    clock: Arc<dyn Clock>,
    pace: Pace,
    status: Arc<Status>,
    behind: Option<Arc<Hub>>,
    telling: Option<Telling>,
    link: Option<Link>,
    offset: Offset,
    failures: u32,
    not_before: Instant,
    look: Instant,
    said: String,
}

impl ControlSource {
    /// A source that has not connected. `staleness_max` is how old its view may be, and `first` how long the first one is
    /// waited for.
    pub fn new(
        upstreams: Arc<Upstreams>,
        about: About,
        sink: Arc<dyn Sink>,
        clock: Arc<dyn Clock>,
        (staleness_max, first): (Duration, Duration),
    ) -> Self {
        let now = Instant::now();
        Self {
            upstreams,
            follower: Follower::new(about),
            sink: Proving::over(sink),
            clock,
            pace: Pace::new(staleness_max, first),
            status: Arc::default(),
            behind: None,
            telling: None,
            link: None,
            offset: Offset::default(),
            failures: 0,
            not_before: now,
            look: now,
            said: String::new(),
        }
    }

    /// Has the source asked for evidence whenever somebody who follows `hub` asks for it, and acknowledge no more than all
    /// of them enforce.
    #[must_use]
    pub fn relaying(mut self, hub: Arc<Hub>) -> Self {
        self.behind = Some(hub);
        self
    }

    /// Has the source tell how often grants are used.
    #[must_use]
    pub fn telling(mut self, uses: Uses) -> Self {
        self.telling = Some(Telling::new(uses));
        self
    }

    /// What it shows of itself.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Follows; returns once there is a proved view where `until_proved`. Dropping the future loses nothing.
    async fn keep(&mut self, changed: &(dyn Fn() + Send + Sync), until_proved: bool) {
        while !until_proved || self.sink.proofs() == 0 {
            let now = Instant::now();
            if now >= self.look {
                self.look = now + tls::LOOK_EVERY;
                self.upstreams.look(self.clock.now().wall);
                let shown = self.upstreams.certificate();
                if self.link.as_ref().is_some_and(|link| link.certificate != shown) {
                    // The server lets a stream live no longer than the certificate that it began with.
                    self.farewell().await;
                    self.status.closed();
                }
            }
            let outcome = match &mut self.link {
                Some(_) => self.step(changed).await,
                None => {
                    tokio::time::sleep_until(self.not_before).await;
                    self.open().await
                }
            };
            if let Err(lost) = outcome {
                self.lose(&lost);
            }
        }
    }

    async fn open(&mut self) -> Result<(), Lost> {
        let address = self.upstreams.address().clone();
        self.upstreams.look(self.clock.now().wall);
        let certificate = self.upstreams.certificate();
        let opening = async {
            let mut client = self.upstreams.connect(&address).await.map_err(Lost::Unreachable)?;
            let (out, said) = Outgoing::new();
            out.send(self.follower.subscribe());
            let answer = client.sync(said).await.map_err(|status| Lost::Status(Box::new(status)))?;
            Ok((out, answer.into_inner()))
        };
        let opened = tokio::time::timeout(self.pace.silence.max(Duration::from_secs(1)), opening).await;
        let (out, frames) = match opened {
            Ok(opened) => opened.inspect_err(|_| self.upstreams.leave(&address))?,
            Err(_) => {
                self.upstreams.leave(&address);
                return Err(Lost::Silent);
            }
        };
        let now = Instant::now();
        self.link = Some(Link {
            address,
            certificate,
            out,
            frames,
            heard: now,
            proved: now,
            pinged: now,
            ping: now,
            ack: None,
            asked: VecDeque::new(),
            grants: 0,
        });
        self.status.opened();
        Ok(())
    }

    /// Waits for whatever comes first, and does what it asks for.
    async fn step(&mut self, changed: &(dyn Fn() + Send + Sync)) -> Result<(), Lost> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let is_whole = self.follower.held().is_some();
        let silent = link.heard + self.pace.silence;
        // A snapshot that is still coming says nothing that could be proved.
        let unproved = if is_whole { link.proved + self.pace.unproved } else { silent };
        let more = link.ack.into_iter().chain(self.telling.as_ref().map(|telling| telling.due));
        let due = more.chain([link.ping, silent, unproved, self.look]).min().unwrap_or(silent);
        let frame = tokio::select! {
            biased;
            () = tokio::time::sleep_until(due) => return self.tick(silent, unproved),
            () = asked(self.behind.as_deref()) => {
                link.ping = link.ping.min((link.pinged + ASKED_EVERY).max(Instant::now()));
                return Ok(());
            }
            () = acknowledged(self.behind.as_deref()) => {
                // Very many say so one after another, and each time all are looked at.
                link.ack.get_or_insert(Instant::now() + ACK_TOGETHER);
                return Ok(());
            }
            frame = link.frames.message() => frame,
        };
        match frame {
            Ok(Some(frame)) => self.take(frame, changed),
            Ok(None) => Err(Lost::Closed),
            Err(status) => Err(Lost::Status(Box::new(status))),
        }
    }

    fn tick(&mut self, silent: Instant, unproved: Instant) -> Result<(), Lost> {
        let ahead = self.told_ahead();
        let Some(link) = &mut self.link else { return Ok(()) };
        let now = Instant::now();
        if now >= silent {
            return Err(Lost::Silent);
        }
        if now >= unproved {
            return Err(Lost::Unproved);
        }
        if now >= link.ping {
            (link.pinged, link.ping) = (now, now + self.pace.ping);
            if self.behind.is_some() {
                // Somebody's evidence may have run out, which nobody says.
                link.ack.get_or_insert(now);
            }
            let asked = self.clock.now();
            if link.out.has_room()
                && let Some(ping) = self.follower.ping(asked.uptime)
            {
                if let Some(v1::client_frame::Frame::Ping(v1::Ping { nonce })) = &ping.frame {
                    link.asked.push_back((*nonce, asked));
                }
                link.out.send(ping);
            }
        }
        if link.ack.is_some_and(|at| now >= at) {
            link.acknowledge(&mut self.follower, self.behind.as_deref());
        }
        if let Some(telling) = self.telling.as_mut().filter(|telling| now >= telling.due) {
            telling.tell(&link.out, ahead);
        }
        Ok(())
    }

    /// How far the server's clock is ahead of the one that uses are noted by, in microseconds. Those who follow a relay
    /// note them by its clock already, or by the origin's.
    fn told_ahead(&self) -> i64 {
        if self.behind.is_some() { 0 } else { self.status.clock_offset_micros() }
    }

    /// Tells what is left to be told, and ends the stream in good order.
    async fn farewell(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        let ahead = self.told_ahead();
        if let Some(telling) = &mut self.telling {
            telling.tell(&link.out, ahead);
        }
        drop(link.out);
        let read = async { while let Ok(Some(_)) = link.frames.message().await {} };
        let _ = tokio::time::timeout(FAREWELL_WITHIN, read).await;
    }

    fn take(&mut self, frame: v1::ServerFrame, changed: &(dyn Fn() + Send + Sync)) -> Result<(), Lost> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.heard = Instant::now();
        match &frame.frame {
            Some(Frame::Pong(pong)) => {
                if let Some(asked) = link.asked_with(pong.nonce) {
                    let server = Timestamp::from_micros(pong.server_time);
                    let ahead = self.offset.learn(asked, self.clock.now(), server, &self.status);
                    self.sink.ahead(ahead);
                }
            }
            Some(Frame::Snapshot(part)) => {
                link.grants = if part.part == 0 { 0 } else { link.grants } + part.grants.len();
                if link.grants > GRANTS_MAX {
                    return Err(Lost::TooMuch);
                }
            }
            _ => {}
        }
        let (held, proofs) = (self.follower.held(), self.sink.proofs());
        let Taken { changed: is_changed, ended, reply } =
            self.follower.take(frame, &self.sink).map_err(Lost::Broken)?;
        if let Some(reply) = reply {
            if let Some(v1::client_frame::Frame::Nack(v1::Nack { name, digest, error })) = &reply.frame {
                tracing::error!(name, digest, error, "not in force");
            }
            link.out.send(reply);
        }
        if self.follower.held() != held && held.is_none() {
            link.proved = link.heard;
        }
        if self.follower.held() != held {
            link.ack.get_or_insert(link.heard + ACK_EVERY);
        }
        if ended {
            link.acknowledge(&mut self.follower, self.behind.as_deref());
        }
        if self.sink.proofs() != proofs {
            link.proved = link.heard;
            self.failures = 0;
            if !self.said.is_empty() {
                tracing::info!(address = %link.address, "the grants are current again");
                self.said.clear();
            }
        }
        if is_changed {
            changed();
        }
        Ok(())
    }

    /// A stream is over, or there was none: another address, after a while that nobody else waits as long.
    fn lose(&mut self, lost: &Lost) {
        if let Some(link) = self.link.take() {
            self.status.closed();
            self.upstreams.leave(&link.address);
        }
        let doubled = PAUSE_MIN.saturating_mul(1 << self.failures.min(16));
        let most = doubled.min(self.pace.pause);
        self.failures += 1;
        let mut pause = most.mul_f64(fraction());
        if let Lost::Broken(Broken::GoAway { after, .. }) = lost {
            pause += (*after).min(self.pace.pause);
        }
        self.not_before = Instant::now() + pause;
        let said = lost.to_string();
        if said != self.said {
            tracing::warn!(error = said, "a source of grants was lost; they hold until the view is stale");
            self.said = said;
        }
    }
}

impl Link {
    fn acknowledge(&mut self, follower: &mut Follower, behind: Option<&Hub>) {
        self.ack = None;
        if !self.out.has_room() {
            self.ack = Some(Instant::now() + ACK_EVERY);
            return;
        }
        let ack = match behind {
            None => follower.ack(),
            Some(hub) => hub.enforced().and_then(|enforced| follower.ack_up_to(enforced)),
        };
        if let Some(ack) = ack {
            self.out.send(ack);
        }
    }

    /// When the ping of that number was sent. Those before it are answered too.
    fn asked_with(&mut self, nonce: u64) -> Option<Now> {
        let place = self.asked.iter().position(|(asked, _)| *asked == nonce)?;
        self.asked.drain(..=place).next_back().map(|(_, at)| at)
    }
}

/// A number between 0 and 1, so that not everybody does the same at once.
#[allow(clippy::cast_precision_loss, reason = "a part of a pause")]
pub fn fraction() -> f64 {
    (connect::random() >> 11) as f64 / (1u64 << 53) as f64
}

async fn acknowledged(hub: Option<&Hub>) {
    match hub {
        Some(hub) => hub.acknowledged().await,
        None => std::future::pending().await,
    }
}

async fn asked(hub: Option<&Hub>) {
    match hub {
        Some(hub) => hub.asked().await,
        None => std::future::pending().await,
    }
}

impl GrantSource for ControlSource {
    /// Waits a while for the first view. Without one the sidecar starts all the same, and denies everything until it comes.
    fn first(&mut self) -> Work<'_, Result<(), String>> {
        Box::pin(async {
            let patience = self.pace.first;
            if tokio::time::timeout(patience, self.keep(&|| {}, true)).await.is_err() {
                tracing::warn!(?patience, "no view of the grants yet: everything is denied until it comes");
            }
            Ok(())
        })
    }

    fn follow(mut self: Box<Self>, stop: CancellationToken, changed: Changed) -> Work<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.keep(&*changed, false) => {}
            }
            self.farewell().await;
        })
    }
}
