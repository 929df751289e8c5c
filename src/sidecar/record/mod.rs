//! Step `record`: one outcome for each call, from which the record line, the metrics and the access log are made, so that
//! they cannot disagree.
//!
//! Before a permitted call leaves, its intent is written: once [`WorkerRecorder::intend`] returns, the line is with the
//! kernel and a killed process does not take it along. The calls that a worker finds ready in one turn share one `write`,
//! and outcomes go out with the next intent or after a few milliseconds. When nothing can be written, nothing is permitted.
//!
//! Deliberately absent: query strings, header values, bodies and anything of a credential but its lease's id.

pub mod call;
mod line;
mod metrics;
mod spool;
mod uses;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::arguments::ArgumentDigest;
use crate::domain::id::{ActionName, BackendName, Borrowed, GrantId, TaskRef};
use crate::domain::principal::Principal;
use crate::domain::resource::Resource;
use crate::domain::time::{Clock, Now, Timestamp};
use crate::guardrail::Rule;
use crate::sidecar::reason::{Decision, Reason};

use line::Lines;
use metrics::RecordMetrics;
use spool::Spool;
pub use uses::Used;
use uses::Uses;

/// Whether each permitted call is on record before it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentMode {
    /// Yes: one `write` a call.
    EachCall,
    /// No: a killed process may take the last few milliseconds along.
    Batched,
}

/// Whether each call is also shown on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// It is not.
    Off,
    /// It is.
    Stdout,
}

/// Where and how much is recorded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the record files.
    pub directory: PathBuf,
    /// Bytes after which the next file is begun.
    pub segment_bytes: u64,
    /// Bytes of all files together; past it calls are denied until somebody takes files away.
    pub bytes_max: u64,
    /// Whether each permitted call is on record before it leaves.
    pub intent: IntentMode,
    /// Whether each call is also shown on standard output.
    pub access_log: AccessLog,
}

/// The names that records and metrics may have: every backend with its actions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue(Vec<(BackendName, Vec<ActionName>)>);

impl Catalogue {
    /// A catalogue; a backend's place in it is what [`Outcome`] holds.
    pub fn new(backends: Vec<(BackendName, Vec<ActionName>)>) -> Self {
        Self(backends)
    }

    fn backend(&self, place: Option<usize>) -> Option<&BackendName> {
        self.0.get(place?).map(|(name, _)| name)
    }
}

/// The id of one call, `evl_` and 26 characters: unique over restarts, and in order within a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallId {
    prefix: Arc<str>,
    number: u64,
}

/// Digits of a call's number.
const NUMBER_DIGITS: usize = 10;

impl CallId {
    /// The number, in hexadecimal digits.
    fn digits(&self) -> [u8; NUMBER_DIGITS] {
        let mut digits = [0; NUMBER_DIGITS];
        for (place, digit) in digits.iter_mut().rev().enumerate() {
            let nibble = (self.number >> (4 * place)) & 0xf;
            *digit = b"0123456789abcdef"[nibble as usize];
        }
        digits
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("evl_")?;
        f.write_str(&self.prefix)?;
        self.digits().iter().try_for_each(|digit| fmt::Write::write_char(f, char::from(*digit)))
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Whole.
    Complete,
    /// By us, because its permit ended.
    Cut(Reason),
    /// The caller went away.
    CallerGone,
    /// The backend went away.
    UpstreamTruncated,
    /// It was not carried out.
    Refused,
}

impl Ended {
    /// The end as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cut(_) => "cut",
            Self::CallerGone => "caller_gone",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::Refused => "refused",
        }
    }
}

/// What is about to be done.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are those of the call")]
pub struct Intent<'a> {
    pub id: &'a CallId,
    pub at: Timestamp,
    pub principal: &'a Principal,
    pub backend: &'a BackendName,
    pub action: Option<&'a ActionName>,
    pub resource: &'a Resource,
    pub grant: Option<Borrowed<'a, GrantId>>,
    pub task: Option<Borrowed<'a, TaskRef>>,
    pub lease: Option<&'a str>,
}

/// What was done, or not.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are those of the call")]
pub struct Outcome<'a> {
    pub id: &'a CallId,
    pub at: Timestamp,
    pub listener: &'a str,
    pub peer: &'a str,
    pub protocol: &'a str,
    pub principal: Option<&'a Principal>,
    pub identity: Option<&'a str>,
    pub backend: Option<usize>,
    /// Its place in the map by which the call was resolved, which may be another than today's, and its name.
    pub action: Option<(usize, &'a ActionName)>,
    pub resource: Option<&'a Resource>,
    pub method: &'a str,
    pub path: &'a str,
    pub grant: Option<Borrowed<'a, GrantId>>,
    /// The digest of the call, where a grant that could cover it is bound to one.
    pub arguments: Option<&'a ArgumentDigest>,
    pub task: Option<Borrowed<'a, TaskRef>>,
    pub decision: Decision,
    /// Let go on although the view of the grants was stale.
    pub stale: bool,
    pub reason: Reason,
    pub detail: Option<&'a str>,
    pub reasons: &'a [Reason],
    pub guardrails: &'a [Arc<Rule>],
    pub shadow: &'a [Arc<Rule>],
    pub lease: Option<&'a str>,
    pub upstream_status: Option<u16>,
    pub status: Option<u16>,
    pub ended: Ended,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub own: Duration,
    pub upstream: Duration,
    pub total: Duration,
    pub trace: Option<&'a str>,
}

/// Nothing can be recorded, so nothing may be permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record of the call cannot be written")]
pub struct AuditUnavailable;

/// Why records cannot be kept at all.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The folder or a file in it.
    #[error("audit directory {path}: {error}")]
    Directory {
        /// Which.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Longest time an outcome waits in a buffer.
const FLUSH_EVERY: Duration = Duration::from_millis(20);

/// A buffer this full is written at once.
const BUFFER_FULL: usize = 64 * 1024;

/// What a buffer may hold while nothing can be written; past it outcomes are counted and lost.
const BUFFER_MAX: usize = 4 * 1024 * 1024;

/// The records of the whole process.
#[derive(Debug)]
pub struct Recorder {
    settings: Settings,
    spool: Spool,
    metrics: RecordMetrics,
    catalogue: arc_swap::ArcSwap<Catalogue>,
    workers: Mutex<Vec<Arc<WorkerRecorder>>>,
    available: AtomicBool,
    counts_uses: AtomicBool,
    sequence: AtomicU64,
    lost: AtomicU64,
    clock: Arc<dyn Clock>,
}

/// The records of one worker.
#[derive(Debug)]
pub struct WorkerRecorder {
    recorder: Arc<Recorder>,
    prefix: Arc<str>,
    next: AtomicU64,
    buffer: Mutex<Buffer>,
}

/// Lines that wait to be written.
#[derive(Debug)]
struct Buffer {
    lines: Lines,
    /// Bytes of this worker that were written so far.
    written: u64,
    uses: Uses,
}

impl Buffer {
    /// How many bytes are written once all of it is.
    fn end(&self) -> u64 {
        self.written + self.lines.len() as u64
    }
}

impl Recorder {
    /// Opens the folder, and goes on after the last record in it.
    ///
    /// # Errors
    /// [`RecordError`] when nothing could be recorded.
    pub fn open(
        settings: Settings,
        catalogue: Catalogue,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, RecordError> {
        let path = settings.directory.display().to_string();
        let spool = Spool::open(&settings.directory, settings.segment_bytes, settings.bytes_max)
            .map_err(|error| RecordError::Directory { path, error })?;
        let metrics = RecordMetrics::new(registry, &catalogue)?;
        Ok(Arc::new(Self {
            settings,
            spool,
            metrics,
            catalogue: arc_swap::ArcSwap::from_pointee(catalogue),
            workers: Mutex::default(),
            available: AtomicBool::new(true),
            counts_uses: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            clock,
        }))
    }

    /// The records of one more worker.
    pub fn worker(self: &Arc<Self>) -> Arc<WorkerRecorder> {
        let mut random = [0u8; 8];
        aws_lc_rs::rand::fill(&mut random).expect("the system's random source answers, or nothing here is safe to do");
        let worker = Arc::new(WorkerRecorder {
            recorder: Arc::clone(self),
            prefix: format!("{:016x}", u64::from_le_bytes(random)).into(),
            next: AtomicU64::new(0),
            buffer: Mutex::new(Buffer {
                lines: Lines::with_capacity(BUFFER_FULL + 4096),
                written: 0,
                uses: Uses::default(),
            }),
        });
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&worker));
        worker
    }

    /// Takes over the names of a changed configuration. Backends keep their places; the series of names that went stay.
    pub fn recatalogue(&self, catalogue: Catalogue) {
        self.metrics.extend(&catalogue);
        self.catalogue.store(Arc::new(catalogue));
    }

    /// Begins to note which grants are used; [`Recorder::take_uses`] then tells.
    pub fn count_uses(&self) {
        self.counts_uses.store(true, Ordering::Relaxed);
    }

    /// The uses of each grant since this was asked last, worker by worker.
    pub fn take_uses(&self) -> Vec<Used> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        workers.iter().flat_map(|worker| worker.buffer().uses.take()).collect()
    }

    /// Whether calls can be recorded.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn health(&self) -> Result<(), &'static str> {
        if !self.available.load(Ordering::SeqCst) {
            Err("records cannot be written")
        } else if self.spool.is_full() {
            Err("the audit directory is full: ship and remove its older files, or raise audit.bytes_max")
        } else {
            Ok(())
        }
    }

    /// How many bytes of records there are, and how many outcomes were lost because nothing could be written.
    pub fn totals(&self) -> (u64, u64) {
        (self.spool.bytes(), self.lost.load(Ordering::Relaxed))
    }

    /// Writes what waits, notices files that were taken away, and tries again after a failure; until `stop`.
    pub async fn maintain(self: Arc<Self>, stop: CancellationToken) {
        let mut round: u32 = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(FLUSH_EVERY) => {}
            }
            round = round.wrapping_add(1);
            let _ = self.flush_buffers();
            if round.is_multiple_of(50) {
                self.spool.recount();
                if !self.available.load(Ordering::SeqCst) && self.spool.probe() {
                    tracing::info!("records can be written again");
                    self.available.store(true, Ordering::SeqCst);
                }
                self.metrics.spool(self.spool.bytes(), self.health().is_ok());
            }
        }
    }

    /// Writes everything that waits, to the disk.
    ///
    /// # Errors
    /// When something could not be written.
    pub fn flush_all(&self) -> Result<(), RecordError> {
        let fail = |error| RecordError::Directory { path: self.settings.directory.display().to_string(), error };
        self.flush_buffers().map_err(|AuditUnavailable| fail(std::io::Error::other("records are left unwritten")))?;
        self.spool.sync().map_err(fail)
    }

    fn flush_buffers(&self) -> Result<(), AuditUnavailable> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut result = Ok(());
        for worker in workers {
            let mut buffer = worker.buffer();
            result = result.and(self.write(&mut buffer));
        }
        result
    }

    /// Writes the buffer and empties it; leaves it as it is when that fails.
    fn write(&self, buffer: &mut Buffer) -> Result<(), AuditUnavailable> {
        if buffer.lines.is_empty() {
            return Ok(());
        }
        match self.spool.append(buffer.lines.as_bytes()) {
            Ok(()) => {
                if self.settings.access_log == AccessLog::Stdout {
                    // A log that nobody reads stops nothing.
                    let _ = std::io::stdout().lock().write_all(buffer.lines.as_bytes());
                }
                buffer.written = buffer.end();
                buffer.lines.clear();
                Ok(())
            }
            Err(error) => {
                self.metrics.failure();
                if self.available.swap(false, Ordering::SeqCst) {
                    tracing::error!(%error, "records cannot be written; every call is denied until they can");
                }
                Err(AuditUnavailable)
            }
        }
    }
}

impl WorkerRecorder {
    fn buffer(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An id for a call that begins now.
    pub fn next_id(&self) -> CallId {
        CallId { prefix: Arc::clone(&self.prefix), number: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Records that a call is about to leave. After `Ok` the record survives this process.
    ///
    /// Dropping the future leaves an intent that the call's outcome says nothing came of.
    ///
    /// # Errors
    /// [`AuditUnavailable`]: the call must not leave. Its intent may still be written later, with its outcome.
    pub async fn intend(&self, intent: &Intent<'_>) -> Result<(), AuditUnavailable> {
        let recorder = &*self.recorder;
        recorder.health().map_err(|_| AuditUnavailable)?;
        if let Some(grant) = intent.grant.filter(|_| recorder.counts_uses.load(Ordering::Relaxed)) {
            self.buffer().uses.note(grant, intent.at, 1);
        }
        if recorder.settings.intent == IntentMode::Batched {
            return Ok(());
        }
        let end = {
            let mut buffer = self.buffer();
            buffer.lines.intent(recorder.sequence.fetch_add(1, Ordering::Relaxed), intent);
            buffer.end()
        };
        // Whatever else is ready in this turn puts its line beside ours; the first to come back writes them all.
        tokio::task::yield_now().await;
        let mut buffer = self.buffer();
        if buffer.written < end {
            recorder.write(&mut buffer)?;
        }
        recorder.metrics.intent();
        Ok(())
    }

    /// Records how a call ended.
    pub fn outcome(&self, outcome: &Outcome<'_>) {
        let recorder = &*self.recorder;
        recorder.metrics.outcome(outcome);
        let catalogue = recorder.catalogue.load();
        let mut buffer = self.buffer();
        if buffer.lines.len() > BUFFER_MAX {
            recorder.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Now { wall, uptime } = recorder.clock.now();
        if let Some(grant) = outcome.grant
            && outcome.decision == Decision::Permit
            && recorder.counts_uses.load(Ordering::Relaxed)
        {
            buffer.uses.note(grant, wall, 0);
        }
        buffer.lines.call(recorder.sequence.fetch_add(1, Ordering::Relaxed), uptime, &catalogue, outcome);
        if buffer.lines.len() >= BUFFER_FULL {
            let _ = recorder.write(&mut buffer);
        }
    }
}
