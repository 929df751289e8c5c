//! A worker: one thread, one runtime, its share of the connections.
//!
//! Every worker has a copy of every listening socket and its own pool, registry and record buffer, so that the path of a
//! call takes no lock that another worker holds.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::sidecar::accept::io::{CallerIo, Pulse, Socket};
use crate::sidecar::accept::listen::{Bound, Listening};
use crate::sidecar::accept::{Connection, Limits, ResetSwitch};
use crate::sidecar::call::{Caller, Shared, handle};
use crate::sidecar::plane::Offer;
use crate::sidecar::reason::Reason;
use crate::sidecar::record::call::{CallRecord, Origin};

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    open: Mutex<Slab<Arc<Watched>>>,
    drain: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// An open connection as its worker sees it.
#[derive(Debug)]
struct Watched {
    pulse: Arc<Pulse>,
    limits: Limits,
    orders: Orders,
}

/// What is wanted of a connection. A later order overrules an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// It goes on.
    Serve,
    /// No further call; it ends with the last.
    Finish,
    /// It was idle or slow too long.
    Close,
    /// Its calls were ended; it may say so and no more.
    Cut,
}

/// The latest order to a connection: one word and one waker, because they are looked at whenever the connection is.
#[derive(Debug, Default)]
struct Orders {
    latest: AtomicU8,
    waker: AtomicWaker,
}

impl Orders {
    fn give(&self, order: Order) {
        self.latest.fetch_max(order as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    fn poll(&self, waker: &Waker) -> Order {
        self.waker.register(waker);
        match self.latest.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::Finish,
            2 => Order::Close,
            _ => Order::Cut,
        }
    }
}

/// Most fields of a head that hyper has room for without being asked; asking for as many makes it slower.
const HEADERS_OF_HYPER: usize = 100;

/// How often connections are looked at for having been idle or slow too long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Worker {
    /// A worker that has not begun. `drain` stops accepting and lets calls finish, `cut` ends what is left.
    pub fn new(shared: Arc<Shared>, drain: CancellationToken, cut: CancellationToken) -> Arc<Self> {
        Arc::new(Self { shared, open: Mutex::default(), drain, cut, tasks: TaskTracker::new() })
    }

    /// Serves until `drain`, then until the last call is over or `cut`.
    ///
    /// `listeners` go with the offers of the plane in the same places; `slots` limits the connections of each over all
    /// workers.
    ///
    /// # Errors
    /// When a socket cannot be taken into this runtime.
    pub async fn run(self: Arc<Self>, listeners: Vec<Bound>, slots: Vec<Arc<Semaphore>>) -> std::io::Result<()> {
        for (place, (bound, slots)) in listeners.into_iter().zip(slots).enumerate() {
            let listening = bound.listen()?;
            let worker = Arc::clone(&self);
            self.tasks.spawn(async move { worker.accept(place, listening, slots).await });
        }
        let housekeeper = tokio::spawn(Arc::clone(&self).keep_house());
        self.drain.cancelled().await;
        self.tasks.close();
        self.order_all(Order::Finish);
        tokio::select! {
            () = self.tasks.wait() => {}
            () = self.cut.cancelled() => {
                self.order_all(Order::Cut);
                self.shared.decider.calls().end_all(Reason::Draining);
                // The bodies that were cut say so to their connections, which then end.
                let _ = tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
            }
        }
        housekeeper.abort();
        Ok(())
    }

    async fn accept(self: Arc<Self>, place: usize, listening: Listening, slots: Arc<Semaphore>) {
        let mut pause = Duration::from_millis(5);
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drain.cancelled() => return,
                accepted = accept_one(&listening, &slots) => accepted,
            };
            match accepted {
                Ok((socket, peer, slot)) => {
                    pause = Duration::from_millis(5);
                    let worker = Arc::clone(&self);
                    self.tasks.spawn(async move { worker.serve(place, socket, peer, slot).await });
                }
                Err(error) => {
                    // Out of descriptors, most likely: waiting lets others close theirs.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, place: usize, socket: Socket, peer: String, slot: OwnedSemaphorePermit) {
        let plane = self.shared.plane.load_full();
        let Some(offer) = plane.offers.get(place) else { return };
        let reset = ResetSwitch::new();
        let opened = tokio::select! {
            biased;
            () = self.cut.cancelled() => return,
            // Apart, because what a handshake needs is needed once and the connection stays.
            opened = tokio::time::timeout(offer.limits.handshake, Box::pin(open(offer, socket, peer, &reset))) => opened,
        };
        let Ok(Ok((mut io, connection))) = opened else {
            tracing::debug!(listener = %offer.name, "a connection ended before its first request");
            return;
        };
        let pulse = Arc::new(Pulse::new());
        if !connection.http2 {
            // What an HTTP/2 connection reads may be a ping; its heads have limits of their own.
            io.beat(Arc::clone(&pulse));
        }
        let limits = offer.limits.clone();
        let origin = Arc::new(Origin {
            listener: Arc::clone(&offer.name),
            peer: connection.peer.as_str().into(),
            protocol: if connection.http2 { "h2" } else { "h1" },
        });
        let reset = if connection.http2 { ResetSwitch::default() } else { reset };
        let shared = Arc::clone(&self.shared);
        let caller = Arc::new(Caller { shared, offer: place, connection, origin, reset });
        drop(plane);
        let watched = Arc::new(Watched { pulse, limits, orders: Orders::default() });
        let key = self.open().insert(Arc::clone(&watched));
        // What was ordered before it was there to hear.
        if self.drain.is_cancelled() {
            watched.orders.give(Order::Finish);
        }
        self.speak(io, Arc::clone(&caller), &watched).await;
        self.open().remove(key);
        drop(slot);
    }

    async fn speak(&self, io: CallerIo, caller: Arc<Caller>, watched: &Watched) {
        let io = TokioIo::new(io);
        let limits = &watched.limits;
        let pulse = Arc::clone(&watched.pulse);
        let http2 = caller.connection.http2;
        let service = {
            let caller = Arc::clone(&caller);
            service_fn(move |request| {
                let (caller, call) = (Arc::clone(&caller), pulse.call());
                // Apart, because a connection keeps the room for a call and is idle most of the time.
                Box::pin(async move {
                    let response = handle(&caller, request).await;
                    Ok::<_, Infallible>(response.map(|body| call.carry(body)))
                })
            })
        };
        let ended = if http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.streams)
                .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
                .max_pending_accept_reset_streams(Some(20))
                .max_local_error_reset_streams(Some(64))
                .initial_stream_window_size(64 * 1024)
                .initial_connection_window_size(256 * 1024)
                .max_send_buf_size(64 * 1024)
                .keep_alive_interval(Some(Duration::from_secs(20)))
                .keep_alive_timeout(Duration::from_secs(10))
                .serve_connection(io, service);
            // Apart, so that the many connections of HTTP/1.1 need no room for it.
            let mut connection = Box::pin(connection);
            self.until_over(watched, connection.as_mut(), http2::Connection::graceful_shutdown).await
        } else {
            // Slow heads and idleness are seen by the housekeeper, so that no call sets a timer.
            let mut builder = http1::Builder::new();
            builder.header_read_timeout(None).max_buf_size(limits.head_bytes.max(8 * 1024));
            if limits.headers != HEADERS_OF_HYPER {
                builder.max_headers(limits.headers);
            }
            let connection = builder.serve_connection(io, service).with_upgrades();
            let mut connection = pin!(connection);
            self.until_over(watched, connection.as_mut(), http1::UpgradeableConnection::graceful_shutdown).await
        };
        if let Some(Err(error)) = ended {
            self.record_unread(&caller, &error);
        }
    }

    /// Polls a connection until it is over; asks it to finish when draining. Returns nothing where it was closed by us.
    async fn until_over<C: Future<Output = hyper::Result<()>>>(
        &self,
        watched: &Watched,
        mut connection: std::pin::Pin<&mut C>,
        finish: fn(std::pin::Pin<&mut C>),
    ) -> Option<hyper::Result<()>> {
        let mut finishing = false;
        let ended = std::future::poll_fn(|cx| {
            match watched.orders.poll(cx.waker()) {
                Order::Serve => {}
                Order::Finish => {
                    if !std::mem::replace(&mut finishing, true) {
                        finish(connection.as_mut());
                    }
                }
                order @ (Order::Close | Order::Cut) => return Poll::Ready(Err(order)),
            }
            connection.as_mut().poll(cx).map(Ok)
        })
        .await;
        match ended {
            Ok(result) => Some(result),
            Err(Order::Cut) => self.last_words(connection).await,
            Err(_) => None,
        }
    }

    /// After the cut a connection may still say that its calls were ended.
    async fn last_words<C: Future<Output = hyper::Result<()>>>(
        &self,
        connection: std::pin::Pin<&mut C>,
    ) -> Option<hyper::Result<()>> {
        tokio::time::timeout(Duration::from_millis(200), connection).await.ok()
    }

    /// A head that is no HTTP was answered by hyper; what is left is to record it.
    fn record_unread(&self, caller: &Caller, error: &hyper::Error) {
        if !error.is_parse() {
            return;
        }
        let at = self.shared.decider.clock().now().wall;
        let recorder = Arc::clone(&self.shared.recorder);
        let mut record = CallRecord::begin(recorder, Arc::clone(&caller.origin), at, http::Method::default());
        let reason = if error.is_parse_too_large() { Reason::HeadTooLarge } else { Reason::Malformed };
        record.answering(reason.status());
        record.denied(reason, Some("unreadable_head"), None);
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Slab<Arc<Watched>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order_all(&self, order: Order) {
        for (_, watched) in &*self.open() {
            watched.orders.give(order);
        }
    }

    async fn keep_house(self: Arc<Self>) {
        let mut round: u32 = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            for (_, watched) in &*self.open() {
                if watched.pulse.is_overdue(&watched.limits) {
                    watched.orders.give(Order::Close);
                }
            }
            round = round.wrapping_add(1);
            if round.is_multiple_of(20) {
                self.shared.pool.sweep(Duration::from_secs(60));
            }
        }
    }
}

async fn accept_one(
    listening: &Listening,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(Socket, String, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (socket, peer) = listening.accept().await?;
    Ok((socket, peer, slot))
}

async fn open(
    offer: &Offer,
    socket: Socket,
    peer: String,
    reset: &ResetSwitch,
) -> std::io::Result<(CallerIo, Connection)> {
    let Some(tls) = &offer.tls else {
        let mut io = CallerIo::plain(socket, reset.clone());
        let http2 = io.speaks_http2().await?;
        let certificates = Arc::from([]);
        return Ok((io, Connection { peer, certificates, server_name: None, http2 }));
    };
    let stream = TlsAcceptor::from(tls.current()).accept(socket).await?;
    let session = stream.get_ref().1;
    let certificates = session.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|c| c.clone().into_owned()).collect();
    let server_name = session.server_name().map(str::to_owned);
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let mut io = CallerIo::tls(stream, reset.clone());
    let http2 = match alpn.as_deref() {
        Some(b"h2") => true,
        Some(_) => false,
        None => io.speaks_http2().await?,
    };
    Ok((io, Connection { peer, certificates, server_name, http2 }))
}
