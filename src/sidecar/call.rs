//! A call's path, from its head to its record: each step takes what the last one made.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tracing::Instrument;

use crate::domain::resource::Resource;
use crate::domain::time::Now;
use crate::identity::Verified;
use crate::sidecar::accept::{Connection, ResetSwitch};
use crate::sidecar::canonical::{BodyLength, Canonical};
use crate::sidecar::consume::Counting;
use crate::sidecar::credential::Lease;
use crate::sidecar::decide::live::Watcher;
use crate::sidecar::decide::{self, Arguments, Decider, Denial, Mode, Permit, Question};
use crate::sidecar::fields::{is_grpc, is_text};
use crate::sidecar::forward::body::{BodyProgress, UpstreamBody};
use crate::sidecar::forward::pool::Pool;
use crate::sidecar::forward::response::{
    DownstreamBody, Keep, LEAK_BYTES, LeakScan, Manner, PassingParts, filter_head,
};
use crate::sidecar::forward::tunnel;
use crate::sidecar::forward::upstream::Answer;
use crate::sidecar::identify::identify;
use crate::sidecar::inflow::{self, Inflow};
use crate::sidecar::inject::{Passage, inject};
use crate::sidecar::plane::{Backend, Offer, Plane};
use crate::sidecar::reason::Reason;
use crate::sidecar::record::WorkerRecorder;
use crate::sidecar::record::call::{CallRecord, Origin};
use crate::sidecar::resolve::{ActionSpec, Match, Resolved};
use crate::sidecar::respond::{self, Context};

/// What the calls of one worker share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub plane: Arc<ArcSwap<Plane>>,
    /// The grants.
    pub decider: Arc<Decider>,
    /// Where uses of counted grants are taken.
    pub counting: Counting,
    /// The running calls of this worker.
    pub running: decide::Worker,
    /// The records of this worker.
    pub recorder: Arc<WorkerRecorder>,
    /// The kept connections of this worker.
    pub pool: Arc<Pool>,
}

/// What the calls of one connection share.
#[derive(Debug)]
pub struct Caller {
    /// What its worker shares.
    pub shared: Arc<Shared>,
    /// The place of the listener in the configuration.
    pub offer: usize,
    /// The connection.
    pub connection: Connection,
    /// The same, for the record.
    pub origin: Arc<Origin>,
    /// How the connection is made to end by a reset.
    pub reset: ResetSwitch,
}

/// A call that is refused, and what is said about it.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    detail: Option<&'static str>,
    denial: Option<Denial>,
    close: bool,
}

impl Refusal {
    fn of(reason: Reason) -> Self {
        Self { reason, detail: None, denial: None, close: false }
    }

    fn detailed(reason: Reason, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..Self::of(reason) }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::of(reason)
    }
}

/// A call once it is known what it does.
struct Known {
    backend: Arc<Backend>,
    canonical: Box<Canonical>,
    action: Option<Arc<ActionSpec>>,
    resource: Resource,
    body: Inflow,
    arguments: Arguments,
    upgrade: Option<OnUpgrade>,
}

/// The detail of a refusal: what the backend's calls do is for the control plane to say, and it has not.
pub const NO_ACTION_MAP: &str = "no_action_map";

/// Handles one call. Always answers; dropping the future ends the call and writes its record.
pub async fn handle(caller: &Caller, request: Request<Incoming>) -> Response<DownstreamBody> {
    let shared = &*caller.shared;
    let now = shared.decider.clock().now();
    let recorder = Arc::clone(&shared.recorder);
    let mut record = CallRecord::begin(recorder, Arc::clone(&caller.origin), now.wall, request.method().clone());
    let grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc);
    let plane = shared.plane.load_full();
    let mut told = Told::default();
    let span = tracing::debug_span!("call", id = %record.id());
    match carry(caller, &plane, request, now, &mut record, &mut told).instrument(span).await {
        Ok(carried) => match finish(caller, carried, record).await {
            Ok(response) => response,
            Err((refusal, record)) => answer_refusal(caller, *refusal, record, &told, grpc),
        },
        Err(refusal) => answer_refusal(caller, refusal, record, &told, grpc),
    }
}

/// What a refusal may tell of the call, as far as it is known.
#[derive(Default)]
struct Told {
    backend: Option<Arc<Backend>>,
    action: Option<Arc<ActionSpec>>,
    resource: Option<Resource>,
}

fn answer_refusal(
    caller: &Caller,
    refusal: Refusal,
    mut record: Box<CallRecord>,
    told: &Told,
    grpc: bool,
) -> Response<DownstreamBody> {
    let Refusal { reason, detail, denial, close } = refusal;
    let id = record.id().to_string();
    let response = respond::refuse(
        reason,
        Context {
            evaluation: &id,
            detail: detail.filter(|_| reason != Reason::Unauthenticated),
            backend: told.backend.as_ref().map(|backend| &backend.rules.name),
            action: told.action.as_ref().map(|action| &action.name),
            resource: told.resource.as_ref(),
            denial: denial.as_ref(),
            grpc,
            close: close && !caller.connection.http2,
        },
    );
    record.answering(response.status());
    record.denied(reason, detail, denial);
    response
}

/// A call that was sent, and the head of its answer.
struct Carried {
    backend: Arc<Backend>,
    permit: Permit,
    lease: Option<Arc<Lease>>,
    answer: Answer,
    progress: Option<Arc<BodyProgress>>,
    upgrade: Option<OnUpgrade>,
    streaming: bool,
}

/// identify → canonicalise → resolve → decide → consume → credential → inject → forward.
async fn carry(
    caller: &Caller,
    plane: &Plane,
    request: Request<Incoming>,
    now: Now,
    record: &mut CallRecord,
    told: &mut Told,
) -> Result<Carried, Refusal> {
    let shared = &*caller.shared;
    let (mut head, body) = request.into_parts();
    let upgrade = head.extensions.remove::<OnUpgrade>();

    let verified = identify(&plane.verifier, &caller.connection, &head.headers, now)
        .await
        .map_err(|error| Refusal::detailed(error.reason, error.detail))?;
    record.identified(verified.principal(), verified.method().as_str());

    let offer = &plane.offers[caller.offer];
    let (backend, canonical) = read(offer, head)?;
    record.canonical(backend.index, canonical.path_and_query(), canonical.headers());
    told.backend = Some(Arc::clone(&backend));

    let mut known = resolve(backend, canonical, body, upgrade).await?;
    told.action = known.action.clone();
    if let Some(action) = &known.action {
        record.resolved(action.index, &action.name, &known.resource);
        told.resource = Some(known.resource.clone());
    }

    let mut permit = decide(shared, &verified, &mut known).await?;
    record.permitted(&permit);
    if !shared.counting.is_done(&permit) {
        permit = Box::pin(consume(shared, &verified, &mut known, permit, record)).await?;
    }

    let lease = obtain(plane, &permit).await?;
    let action = known.action.as_ref().map(|action| &action.name);
    record
        .intend(&permit, &known.backend.rules.name, action, lease.as_deref())
        .await
        .map_err(|_| Refusal::of(Reason::AuditUnavailable))?;
    send(caller, known, permit, lease, record).await
}

fn read(offer: &Offer, head: http::request::Parts) -> Result<(Arc<Backend>, Box<Canonical>), Refusal> {
    match offer.canonicalise(head) {
        Ok((backend, canonical)) => match canonical.body() {
            BodyLength::Exact(length) if length > backend.body.bytes_max => {
                Err(Refusal { close: true, ..Refusal::of(Reason::BodyTooLarge) })
            }
            // It is handed on many times.
            _ => Ok((Arc::clone(backend), Box::new(canonical))),
        },
        Err(malformed) => {
            Err(Refusal { close: malformed.closes(), ..Refusal::detailed(malformed.as_reason(), malformed.reason()) })
        }
    }
}

async fn resolve(
    backend: Arc<Backend>,
    canonical: Box<Canonical>,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Result<Known, Refusal> {
    let mut inflow = Inflow::Unread(body);
    // Not even where the backend is only observed: which locks are about the call is not known either.
    let map = backend.actions.as_ref().ok_or_else(|| Refusal::detailed(Reason::StaleSource, NO_ACTION_MAP))?;
    let resolved = match map.resolve(&canonical) {
        Match::Action(resolved) => Some(resolved),
        Match::Unmapped => None,
        Match::NeedsBody(rules) => {
            let bytes = read_body(&mut inflow, rules.bytes_max(), &backend).await?;
            rules
                .resolve(&canonical, &bytes)
                .map_err(|refused| Refusal::detailed(refused.as_reason(), refused.reason()))?
        }
    };
    let asks_upgrade = canonical.upgrade().is_some();
    let (action, resource) = match resolved {
        // An upgrade is an action of its own: a rule that does not name it does not cover it.
        Some(Resolved { action, resource }) if action.upgrade.is_some() == asks_upgrade => (Some(action), resource),
        _ => (None, Resource::exact("unmapped")),
    };
    let upgrade = upgrade.filter(|_| asks_upgrade);
    Ok(Known { backend, canonical, action, resource, body: inflow, arguments: Arguments::Unread, upgrade })
}

/// Reads a body that something is decided by.
async fn read_body(body: &mut Inflow, bytes_max: usize, backend: &Backend) -> Result<Bytes, Refusal> {
    let read = body.read(bytes_max, backend.body.pause_max).await;
    read.map_err(|reason| Refusal { close: true, ..Refusal::of(reason) })
}

/// The arguments of a call: its body is read whole for them.
async fn arguments(known: &mut Known) -> Result<Arguments, Refusal> {
    let Known { backend, canonical, body, .. } = known;
    let bytes_max = backend.body.arguments_max;
    // Where denials are not carried out, a body is not begun that could not be passed on then.
    let surely = backend.rules.mode == Mode::Observe;
    if !inflow::is_whole(canonical) {
        return Ok(Arguments::Hidden(Reason::BodyUnreadable));
    }
    if !body.fits(canonical.body(), bytes_max, surely) {
        return Ok(Arguments::Hidden(Reason::BodyTooLarge));
    }
    let bytes = read_body(body, bytes_max, backend).await?;
    Ok(Arguments::Known(inflow::digest(canonical, &bytes)))
}

fn question<'q>(verified: &'q Verified, known: &'q Known) -> Question<'q> {
    Question {
        principal: verified.principal(),
        identity: verified.expires(),
        task: verified.task(),
        backend: &known.backend.rules,
        action: known.action.as_ref(),
        resource: &known.resource,
        arguments: &known.arguments,
    }
}

fn denied(denial: Denial) -> Refusal {
    Refusal { denial: Some(denial.clone()), ..Refusal::of(denial.reason) }
}

/// Decides; where that depends on the arguments of the call, once they are known.
async fn decide(shared: &Shared, verified: &Verified, known: &mut Known) -> Result<Permit, Refusal> {
    match shared.decider.decide(&shared.running, question(verified, known)) {
        Err(denial) if denial.is_open() => {}
        decided => return decided.map_err(denied),
    }
    known.arguments = Box::pin(arguments(known)).await?;
    shared.decider.decide(&shared.running, question(verified, known)).map_err(denied)
}

/// How many grants are asked for a use that turns out not to be there; the sidecar knows of each of them afterwards.
const COUNTED_TRIES: usize = 8;

/// Takes the use that a counted grant needs. A grant that has none left is over, and whatever else covers the call may
/// still carry it.
async fn consume(
    shared: &Shared,
    verified: &Verified,
    known: &mut Known,
    mut permit: Permit,
    record: &mut CallRecord,
) -> Result<Permit, Refusal> {
    let use_id = record.id().to_string();
    for _ in 0..COUNTED_TRIES {
        match shared.counting.take(&shared.decider, &permit, &use_id).await {
            Ok(()) => return Ok(permit),
            Err(Reason::UseUnconfirmed) => break,
            Err(_) => {}
        }
        permit = decide(shared, verified, known).await?;
        record.permitted(&permit);
        if shared.counting.is_done(&permit) {
            return Ok(permit);
        }
    }
    let grant = permit.grant().map(|entry| entry.id().to_owned());
    let permit = shared
        .decider
        .decide_without(&shared.running, question(verified, known), Reason::UseUnconfirmed, grant.as_ref())
        .map_err(denied)?;
    record.permitted(&permit);
    Ok(permit)
}

async fn obtain(plane: &Plane, permit: &Permit) -> Result<Option<Arc<Lease>>, Refusal> {
    let obtained = tokio::select! {
        biased;
        reason = permit.ended(Watcher::Head) => return Err(Refusal::of(reason)),
        obtained = plane.credentials.obtain(permit) => obtained,
    };
    obtained.map_err(|error| {
        tracing::warn!(%error, "no credential for a permitted call");
        Refusal::of(Reason::CredentialUnavailable)
    })
}

async fn send(
    caller: &Caller,
    known: Known,
    permit: Permit,
    lease: Option<Arc<Lease>>,
    record: &mut CallRecord,
) -> Result<Carried, Refusal> {
    let Known { backend, canonical, action, body, upgrade, .. } = known;
    let shared = &*caller.shared;
    let passage = Passage {
        authority: &backend.upstream.target().authority,
        upgrade: upgrade.is_some(),
        grpc: canonical.is_grpc(),
    };
    let length = canonical.body();
    let (method, target, headers): (_, PathAndQuery, HeaderMap) = canonical.into_parts();
    let injected = inject(method, target, headers, passage, lease.as_deref())
        .map_err(|_| Refusal::detailed(Reason::Malformed, "reserved_parameter"))?;
    let (body, progress) = match (body, length) {
        (Inflow::Read(bytes), _) => {
            record.received(bytes.len() as u64);
            (UpstreamBody::Whole(Some(bytes)), None)
        }
        (Inflow::Lost, _) => return Err(Refusal::of(Reason::Internal)),
        (Inflow::Unread(_), BodyLength::None) => (UpstreamBody::Empty, None),
        (Inflow::Unread(incoming), _) => {
            let progress = Arc::new(BodyProgress::default());
            let clock = Arc::clone(shared.decider.clock());
            let body = UpstreamBody::passing(incoming, permit.watch(), backend.body, Arc::clone(&progress), clock);
            (body, Some(progress))
        }
    };
    record.sending(lease.as_ref(), progress.clone());
    let answer = backend.upstream.send(&shared.pool, &permit, lease.as_deref(), injected, body).await;
    match answer {
        Ok(answer) => {
            permit.wait_for_ever();
            record.answered(Some(answer.status()));
            let streaming = action.is_some_and(|action| action.streaming);
            Ok(Carried { backend, permit, lease, answer, progress, upgrade, streaming })
        }
        Err(error) => {
            record.answered(None);
            let reason = error.reason();
            if reason.status().is_server_error() {
                tracing::warn!(backend = %backend.rules.name, %error, "a permitted call got no answer");
            }
            // What is left of a body that was being sent on is not read as another request.
            let close = progress.is_some_and(|progress| !progress.is_done());
            Err(Refusal { close, ..Refusal::of(reason) })
        }
    }
}

/// Passes the answer on, or refuses to.
async fn finish(
    caller: &Caller,
    carried: Carried,
    mut record: Box<CallRecord>,
) -> Result<Response<DownstreamBody>, (Box<Refusal>, Box<CallRecord>)> {
    let Carried { backend, permit, lease, mut answer, progress, upgrade, streaming } = carried;
    if let Err(reason) = filter_head(&mut answer, &backend.response, lease.as_deref(), upgrade.is_some()) {
        if reason == Reason::UpstreamAuthFailed
            && let Some(lease) = &lease
        {
            caller.shared.plane.load().credentials.refused(&permit, lease);
        }
        if reason == Reason::LeakGuard {
            tracing::warn!(backend = %backend.rules.name, "an answer held the injected credential and was stopped");
        }
        return Err((Box::new(Refusal::of(reason)), record));
    }
    let Answer { response, sender, key } = answer;
    let (head, incoming) = response.into_parts();
    record.answering(head.status);
    if let (Some(upgrade), http::StatusCode::SWITCHING_PROTOCOLS) = (upgrade, head.status) {
        let response = Response::from_parts(head, incoming);
        return Ok(switch(caller, upgrade, response, permit, record));
    }
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let manner = match content_type {
        Some(kind) if is_grpc(kind) => Manner::Grpc,
        Some(kind) if kind.as_bytes().starts_with(b"text/event-stream") => Manner::EventStream,
        _ => Manner::Reset,
    };
    let guarded = backend.response.leak_guard && !streaming && manner != Manner::Grpc && is_text(&head.headers);
    let leak = lease.filter(|_| guarded).map(LeakScan::new);
    let short = head
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .is_some_and(|length| length > 0 && length <= LEAK_BYTES);
    let look_first = leak.is_some() && short;
    let pool = Arc::clone(&caller.shared.pool);
    let keep = sender.map(|sender| Keep { pool, key, sender, request: progress });
    let trailers = backend.response.trailers.clone();
    let reset = caller.reset.clone();
    let parts = PassingParts { inner: incoming, permit, record, manner, reset, leak, trailers, keep };
    let mut body = DownstreamBody::passing(parts);
    if look_first {
        body = body.gather().await.map_err(|(reason, record)| (Box::new(Refusal::of(reason)), record))?;
    }
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(response)
}

/// Answers 101 and relays from then on, in a task of its own.
fn switch(
    caller: &Caller,
    from_caller: OnUpgrade,
    mut answer: Response<Incoming>,
    permit: Permit,
    record: Box<CallRecord>,
) -> Response<DownstreamBody> {
    let from_backend = hyper::upgrade::on(&mut answer);
    let mut response = Response::new(DownstreamBody::Whole(None));
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let reset = caller.reset.clone();
    tokio::spawn(async move {
        if let (Ok(caller), Ok(backend)) = tokio::join!(from_caller, from_backend) {
            tunnel::relay(caller, backend, permit, record, reset).await;
        }
    });
    response
}
