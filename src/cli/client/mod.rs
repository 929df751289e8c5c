//! Asks a control plane, and waits for its answers.
//!
//! What is asked once is done once: a call that may be repeated (it only looks, or it has an `Idempotency-Key`) is said
//! again where a connection is lost or the control plane cannot answer now, and no other is. A token leaves only over TLS or to loopback, and is in no message.

mod problem;
mod transport;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::runtime::Runtime;

pub(super) use problem::Problem;
pub(super) use transport::{Answer, Fault, Origin, Transport};

use super::{Failure, login};
use crate::config::client::{self as settings, ClientFlags, LOCAL_ADMIN_TOKEN};

/// How long an answer may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// How often a call that may be repeated is said again where the connection is lost.
const REPEATS_MAX: u32 = 4;

const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Most entries on a page.
const PAGE_MAX: usize = 500;

/// What stands for itself in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How to reach the control plane.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Control plane")]
pub(super) struct ServerArgs {
    /// Where it is [env: LEASEHOLD_SERVER; default: http://127.0.0.1:9902]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// A file with the token that says who you are [env: LEASEHOLD_TOKEN_FILE, or LEASEHOLD_TOKEN for the token itself]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authorities that vouch for it, in PEM [env: LEASEHOLD_CA; default: the system's]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A certificate that says who you are, in PEM, where you have no token [env: LEASEHOLD_CERTIFICATE]
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Its key, in PEM [env: LEASEHOLD_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// The same before the command: clap hands them on to it.
#[derive(Debug, Args)]
pub(super) struct ServerArgsBefore {
    #[arg(long, global = true, hide = true)]
    server: Option<String>,
    #[arg(long, global = true, hide = true)]
    token_file: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    ca: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    certificate: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    key: Option<PathBuf>,
}

impl ServerArgsBefore {
    pub(super) fn is_given(&self) -> bool {
        let files = [&self.token_file, &self.ca, &self.certificate, &self.key];
        self.server.is_some() || files.into_iter().any(Option::is_some)
    }
}

impl ServerArgs {
    pub(super) fn settings(&self) -> Result<settings::Client, Failure> {
        let Self { server, token_file, ca, certificate, key } = self.clone();
        Ok(settings::client(ClientFlags { server, token_file, ca, certificate, key })?)
    }

    pub(super) fn is_given(&self) -> bool {
        let files = [&self.token_file, &self.ca, &self.certificate, &self.key];
        self.server.is_some() || files.into_iter().any(Option::is_some)
    }
}

/// The server that the settings name.
pub(super) fn origin(settings: &settings::Client) -> Result<Origin, Failure> {
    let origin: Result<Origin, String> = settings.server.parse();
    origin.map_err(|error| Failure::Usage(anyhow!("server `{}`: {error}", settings.server.escape_debug())))
}

/// A runtime for one command.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(built.context("no runtime")?)
}

/// A control plane, and who asks it.
#[derive(Debug)]
pub(super) struct Client {
    origin: Origin,
    transport: Transport,
    token: RefCell<Option<SecretString>>,
    runtime: Runtime,
    /// How to find the token again; none for one that says nothing of who asks.
    args: Option<ServerArgs>,
}

/// One call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    method: Method,
    target: String,
    body: Option<Value>,
    if_match: Option<String>,
    key: Option<String>,
    deadline: Duration,
}

impl Call {
    /// A call to a path of these segments.
    pub(super) fn new(method: Method, segments: &[&str]) -> Self {
        let target: String = segments.iter().map(|part| format!("/{}", utf8_percent_encode(part, SEGMENT))).collect();
        Self { method, target, body: None, if_match: None, key: None, deadline: DEADLINE }
    }

    pub(super) fn get(segments: &[&str]) -> Self {
        Self::new(Method::GET, segments)
    }

    pub(super) fn post(segments: &[&str], body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::POST, segments) }
    }

    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        let separator = if self.target.contains('?') { '&' } else { '?' };
        self.target.push_str(&format!("{separator}{name}={}", utf8_percent_encode(value, SEGMENT)));
        self
    }

    /// Adds a parameter where there is a value.
    pub(super) fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Asks what would come of it, if `dry`.
    pub(super) fn dry_run(self, dry: bool) -> Self {
        self.maybe("dry_run", dry.then_some("true"))
    }

    /// Only if it is what the caller saw.
    pub(super) fn if_match(self, version: String) -> Self {
        Self { if_match: Some(version), ..self }
    }

    /// Said again under this key, it is the same call.
    pub(super) fn key(self, key: String) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Waits up to `time` for a change.
    pub(super) fn wait(self, time: Duration) -> Self {
        let deadline = self.deadline + time;
        Self { deadline, ..self.query("wait", &format!("{}s", time.as_secs().max(1))) }
    }

    fn is_repeatable(&self) -> bool {
        self.method == Method::GET || self.key.is_some()
    }

    fn request(&self, token: Option<&SecretString>) -> anyhow::Result<Request<Bytes>> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(self.target.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("leasehold/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(version) = &self.if_match {
            request = request.header(header::IF_MATCH, version);
        }
        if let Some(key) = &self.key {
            request = request.header("idempotency-key", key);
        }
        let body = match &self.body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        Ok(request.body(body)?)
    }
}

/// What came of a call.
#[derive(Debug)]
pub(super) struct Reply {
    /// The version of what was read, as `If-Match` wants it.
    pub(super) version: Option<String>,
    /// The document; `null` where there is none.
    pub(super) body: Value,
}

impl Client {
    pub(super) fn open(args: &ServerArgs) -> Result<Self, Failure> {
        let settings = args.settings()?;
        let client = Self { args: Some(args.clone()), ..Self::anonymous(&settings)? };
        if settings.certificate.is_some() && !client.origin.is_https() {
            let message = "a certificate is shown over TLS only: write `https://…` for the server";
            return Err(Failure::Usage(anyhow!(message)));
        }
        let transport = Transport::new(settings.ca).showing(settings.certificate);
        let client = Self { transport, ..client };
        let token = client.find_token(args)?;
        Ok(Self { token: RefCell::new(token), ..client })
    }

    /// One that says nothing of who asks.
    pub(super) fn anonymous(settings: &settings::Client) -> Result<Self, Failure> {
        let (origin, transport) = (origin(settings)?, Transport::new(settings.ca.clone()));
        Ok(Self { origin, transport, token: RefCell::new(None), runtime: runtime()?, args: None })
    }

    /// The token that is named, else that of the saved login, else the local admin's.
    fn find_token(&self, args: &ServerArgs) -> Result<Option<SecretString>, Failure> {
        let settings = args.settings()?;
        if let Some(token) = settings.token {
            return Ok(Some(token.secret));
        }
        if settings.certificate.is_some() {
            return Ok(None);
        }
        match login::saved_token(&settings, &self.origin, &self.transport, &self.runtime)? {
            Some(token) => Ok(Some(token)),
            None => local_admin(&self.origin),
        }
    }

    /// Whether there is another token by now: files are replaced and logins renewed while a command waits.
    fn has_another_token(&self) -> Result<bool, Failure> {
        let Some(args) = &self.args else { return Ok(false) };
        let found = self.find_token(args)?;
        let text = |token: &Option<SecretString>| token.as_ref().map(|token| token.expose_secret().to_owned());
        let is_another = text(&found) != text(&self.token.borrow());
        self.token.replace(found);
        Ok(is_another)
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn get(&self, segments: &[&str]) -> Result<Value, Failure> {
        Ok(self.send(&Call::get(segments))?.body)
    }

    /// Does nothing for a while.
    pub(super) fn pause(&self, time: Duration) {
        // A timer is made inside of the runtime that drives it.
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// The answer to a call; a refusal is a failure.
    pub(super) fn send(&self, call: &Call) -> Result<Reply, Failure> {
        let mut pause = PAUSE_FIRST;
        let mut repeats = 0;
        loop {
            let request = call.request(self.token.borrow().as_ref()).map_err(Failure::Usage)?;
            match self.runtime.block_on(self.transport.send(&self.origin, request, call.deadline)) {
                Ok(answer) if answer.status == StatusCode::UNAUTHORIZED && self.has_another_token()? => continue,
                Ok(answer) => {
                    let is_away = answer.status == StatusCode::SERVICE_UNAVAILABLE;
                    if !is_away || !call.is_repeatable() || repeats == REPEATS_MAX {
                        return self.read(answer);
                    }
                }
                Err(Fault::Unreachable(reason)) if repeats == 0 => return Err(self.unreachable(&reason)),
                Err(fault) if !call.is_repeatable() => {
                    let look = "what was asked may have been done: look before you say it again";
                    return Err(Failure::Unreachable(anyhow!("{fault}; {look}")));
                }
                Err(fault) if repeats == REPEATS_MAX => return Err(self.unreachable(&fault.to_string())),
                Err(_) => {}
            }
            repeats += 1;
            self.pause(pause);
            pause *= 2;
        }
    }

    fn unreachable(&self, reason: &str) -> Failure {
        let hint = if self.origin.is_loopback() {
            "is `leasehold up` running, and is this its address? Name another with `--server URL` or LEASEHOLD_SERVER"
        } else {
            "name another with `--server URL` or LEASEHOLD_SERVER"
        };
        Failure::Unreachable(anyhow!("{reason}\n  {hint}"))
    }

    fn read(&self, answer: Answer) -> Result<Reply, Failure> {
        let Answer { status, headers, body } = answer;
        if !status.is_success() {
            return Err(match Problem::read(status, &body) {
                Some(problem) => Failure::Refused(Box::new(problem)),
                None => self.stranger(&format!("it answers {status} and gives no reason")),
            });
        }
        let version = headers.get(header::ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if body.is_empty() {
            return Ok(Reply { version, body: Value::Null });
        }
        let body = serde_json::from_slice(&body).map_err(|_| self.stranger("it sends no JSON"))?;
        Ok(Reply { version, body })
    }

    fn stranger(&self, what: &str) -> Failure {
        let hint = "is that the control plane, and not something in front of it or a listener for calls?";
        Failure::Unreachable(anyhow!("what answers at {} is no control plane: {what}\n  {hint}", self.origin))
    }

    /// The entries of a list, page after page, until there are `limit`; and whether there are more.
    pub(super) fn list(&self, call: &Call, limit: usize) -> Result<(Vec<Value>, bool), Failure> {
        let mut items = Vec::new();
        let mut page: Option<String> = None;
        loop {
            let size = (limit - items.len()).clamp(1, PAGE_MAX).to_string();
            let call = call.clone().query("page_size", &size).maybe("page_token", page.as_deref());
            let mut body = self.send(&call)?.body;
            let Some(Value::Array(found)) = body.get_mut("items").map(Value::take) else {
                return Err(self.stranger("its list has no `items`"));
            };
            items.extend(found);
            page = body.get("next_page_token").and_then(Value::as_str).map(str::to_owned);
            if page.is_none() || items.len() >= limit {
                items.truncate(limit);
                return Ok((items, page.is_some()));
            }
        }
    }
}

/// The local admin's token, where it lies in this folder and the control plane is on this machine.
fn local_admin(origin: &Origin) -> Result<Option<SecretString>, Failure> {
    let path = Path::new(LOCAL_ADMIN_TOKEN);
    if !origin.is_loopback() || !path.exists() {
        return Ok(None);
    }
    Ok(Some(settings::read_token(path)?.secret))
}

/// A key that nobody else makes, for one call that may have to be said again.
pub(super) fn fresh_key() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("the system gives no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_without_ambiguity() {
        let call = Call::get(&["v1", "tasks", "github:org/repo run#1"]).query("a", "b&c").maybe("d", None);
        assert_eq!(call.target, "/v1/tasks/github%3Aorg%2Frepo%20run%231?a=b%26c");
        assert_eq!(call.dry_run(true).target, "/v1/tasks/github%3Aorg%2Frepo%20run%231?a=b%26c&dry_run=true");
    }

    #[test]
    fn only_what_may_be_repeated_is() {
        assert!(Call::get(&["v1"]).is_repeatable());
        assert!(!Call::post(&["v1"], Value::Null).is_repeatable());
        assert!(Call::post(&["v1"], Value::Null).key("k".into()).is_repeatable());
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = SecretString::from("s3cret");
        let request = Call::get(&["v1"]).request(Some(&token)).expect("a request");
        assert!(!format!("{request:?}").contains("s3cret"));
        assert_eq!(request.headers()["authorization"], "Bearer s3cret");
    }
}
