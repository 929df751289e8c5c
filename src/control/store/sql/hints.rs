//! Control planes on one PostgreSQL wake each other. Nothing depends on it: whoever waits looks every 100 ms all the same.
//!
//! `NOTIFY` inside a transaction would lock the whole database until its commit; it is sent outside, and for many
//! commits once.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Where control planes wake each other.
const CHANNEL: &str = "leasehold";

/// How often one looks, whatever was heard. It does not work through a pooler that shares connections by transaction.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many commits are told at once.
const TELL_EVERY: Duration = Duration::from_millis(5);

/// How long to wait before the server is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What wakes, and what is woken.
#[derive(Debug)]
pub(super) struct Hints {
    heard: Arc<Notify>,
    written: Arc<Notify>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Hints {
    /// Begins to listen and to tell, until it is dropped.
    pub(super) fn start(url: &str) -> Self {
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(AGAIN_AFTER).connect_lazy(url);
        let (heard, written) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let tasks = match pool {
            Ok(pool) => {
                let us = name();
                let listening = listen(pool.clone(), us.clone(), Arc::clone(&heard));
                [tokio::spawn(listening), tokio::spawn(tell(pool, us, Arc::clone(&written)))]
            }
            // The URL was good enough for the store; without hints, looking remains.
            Err(_) => [tokio::spawn(std::future::pending()), tokio::spawn(std::future::pending())],
        };
        Self { heard, written, _tasks: tasks.map(AbortOnDropHandle::new) }
    }

    pub(super) async fn stirred(&self) {
        // Late or early is all the same.
        let _ = tokio::time::timeout(LOOK_EVERY, self.heard.notified()).await;
    }

    pub(super) fn stir(&self) {
        self.written.notify_one();
    }
}

/// A name that no other control plane has, so that one's own words wake nobody here.
fn name() -> String {
    let mut bytes = [0u8; 8];
    // Without randomness all have one name, and look every 100 ms.
    let _ = rand::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn listen(pool: PgPool, us: String, heard: Arc<Notify>) {
    loop {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(CHANNEL).await.is_ok()
        {
            // It connects again by itself when the server was away.
            while let Ok(said) = listener.recv().await {
                if said.payload() != us {
                    heard.notify_one();
                }
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn tell(pool: PgPool, us: String, written: Arc<Notify>) {
    loop {
        written.notified().await;
        let told = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(&us).execute(&pool).await;
        let pause = if told.is_ok() { TELL_EVERY } else { AGAIN_AFTER };
        tokio::time::sleep(pause).await;
    }
}
