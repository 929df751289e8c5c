//! Step `canonical`: one reading of the request, or a refusal.
//!
//! What is decided on is what is sent: the target in its one canonical spelling, one authority, one framing. Whatever a
//! backend could read differently is refused here, whether or not hyper let it through. A request that is canonical
//! already costs no allocation.
//!
//! Deliberately absent: repair. Nothing is guessed, joined or reordered.

pub mod host;
mod path;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use percent_encoding::percent_decode_str;

use crate::sidecar::fields::{is_grpc, passes};
use crate::sidecar::reason::Reason;

pub use host::Hosts;
pub use path::Segments;

/// What is let through although it is not canonical, because a backend needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relaxations {
    /// `%2F` in a segment is data (RabbitMQ's default vhost).
    pub encoded_slash_keep: bool,
    /// `;` in a segment is data.
    pub path_params_keep: bool,
    /// Fields that name another method are passed on unread.
    pub method_override_allow: bool,
}

/// How the requests for one backend on one listener are read.
#[derive(Debug, Clone)]
pub struct Rules {
    relaxations: Relaxations,
    target_bytes_max: usize,
    hosts: Hosts,
}

/// Most parameters of a query.
pub const QUERY_PAIRS_MAX: usize = 1_000;

/// Most fields of a head; hyper holds it for HTTP/1.1, and here it is held for HTTP/2.
pub const HEADERS_MAX: usize = 100;

/// Longest method, in bytes.
const METHOD_BYTES_MAX: usize = 32;

impl Rules {
    /// Rules for a backend that is known under `hosts`.
    pub fn new(relaxations: Relaxations, target_bytes_max: usize, hosts: Hosts) -> Self {
        Self { relaxations, target_bytes_max, hosts }
    }

    /// What is let through although it is not canonical.
    pub fn relaxations(&self) -> Relaxations {
        self.relaxations
    }

    /// Whether the authority is one of the backend's.
    pub fn names(&self, authority: &str) -> bool {
        self.hosts.has(authority)
    }

    /// One of the names the backend is known under, for whoever asks without a caller's request.
    pub fn a_name(&self) -> String {
        self.hosts.first()
    }
}

/// Why a request has no single reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says what it is")]
pub enum Malformed {
    #[error("the version is neither 1.0, 1.1 nor 2")]
    Version,
    #[error("the method is never forwarded")]
    MethodRefused,
    #[error("the method is too long")]
    MethodTooLong,
    #[error("a field names another method")]
    MethodOverride,
    #[error("the target is not in origin form")]
    TargetForm,
    #[error("the target is too long")]
    TargetTooLong,
    #[error("the path is not canonical")]
    PathNotCanonical,
    #[error("the query is not canonical")]
    QueryNotCanonical,
    #[error("the authority is missing, repeated or not well formed")]
    Host,
    #[error("the authority is none of the backend's")]
    Misdirected,
    #[error("the length of the body has more than one reading")]
    Framing,
    #[error("a field that stands once is there twice")]
    DuplicateField,
    #[error("a field has a spelling of another's name")]
    AliasedField,
    #[error("`Connection` names a field that is not hop-by-hop")]
    ConnectionNames,
    #[error("there are too many fields")]
    TooManyFields,
    #[error("the expectation is not `100-continue`")]
    Expectation,
}

impl Malformed {
    /// The name of the defect, from a closed list.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::MethodRefused => "method_refused",
            Self::MethodTooLong => "method_too_long",
            Self::MethodOverride => "method_override",
            Self::TargetForm => "target_form",
            Self::TargetTooLong => "target_too_long",
            Self::PathNotCanonical => "path_not_canonical",
            Self::QueryNotCanonical => "query_not_canonical",
            Self::Host => "host",
            Self::Misdirected => "misdirected",
            Self::Framing => "framing",
            Self::DuplicateField => "duplicate_field",
            Self::AliasedField => "aliased_field",
            Self::ConnectionNames => "connection_names",
            Self::TooManyFields => "too_many_fields",
            Self::Expectation => "expectation",
        }
    }

    /// The reason as it is answered and counted.
    pub const fn as_reason(self) -> Reason {
        match self {
            Self::MethodRefused => Reason::MethodRefused,
            Self::TargetTooLong => Reason::TargetTooLong,
            Self::Misdirected => Reason::Misdirected,
            Self::TooManyFields => Reason::HeadTooLarge,
            Self::Expectation => Reason::ExpectationRefused,
            _ => Reason::Malformed,
        }
    }

    /// The status it is answered with.
    pub const fn status(self) -> StatusCode {
        self.as_reason().status()
    }

    /// Whether what follows on the connection cannot be trusted to be the next request.
    pub const fn closes(self) -> bool {
        !matches!(self, Self::PathNotCanonical | Self::QueryNotCanonical | Self::Misdirected | Self::TargetTooLong)
    }
}

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// So many bytes.
    Exact(u64),
    /// It says when it ends.
    Chunked,
}

/// A request in its one reading.
#[derive(Debug)]
pub struct Canonical {
    method: Method,
    target: PathAndQuery,
    segments: Segments,
    headers: HeaderMap,
    body: BodyLength,
    upgrade: bool,
    grpc: bool,
}

impl Canonical {
    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The target as it is decided on and sent.
    pub fn path_and_query(&self) -> &PathAndQuery {
        &self.target
    }

    /// The path.
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// The segments of the path, as they stand in it.
    pub fn segments(&self) -> impl Iterator<Item = &str> + Clone {
        self.segments.iter().map(|range| &self.target.path()[range])
    }

    /// The parameters of the query, decoded; every occurrence, in order. `+` stands for itself.
    pub fn query(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.target.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode_str(name).decode_utf8_lossy(), percent_decode_str(value).decode_utf8_lossy())
        })
    }

    /// The header fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// `websocket`, where the request is a well-formed upgrade to it. No other upgrade exists.
    pub fn upgrade(&self) -> Option<&'static str> {
        self.upgrade.then_some("websocket")
    }

    /// How long the body is.
    pub fn body(&self) -> BodyLength {
        self.body
    }

    /// Whether the call is gRPC.
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// The parts that are sent on.
    pub fn into_parts(self) -> (Method, PathAndQuery, HeaderMap) {
        (self.method, self.target, self.headers)
    }
}

/// Reads a request in its one way.
///
/// # Errors
/// [`Malformed`] naming the first rule that is broken.
pub fn canonicalise(head: Parts, rules: &Rules) -> Result<Canonical, Malformed> {
    let Parts { method, uri, version, headers, .. } = head;
    if !matches!(version, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2) {
        return Err(Malformed::Version);
    }
    check_method(&method)?;
    let fields = Fields::read(&headers, rules)?;
    let connection = fields.check(&headers, version)?;
    let body = fields.body_length(version)?;
    host::check(&uri, fields.host, version, &rules.hosts)?;
    let given = uri.into_parts().path_and_query.ok_or(Malformed::TargetForm)?;
    if given.as_str().len() > rules.target_bytes_max {
        return Err(Malformed::TargetTooLong);
    }
    if given.path() == "*" && method != Method::OPTIONS {
        return Err(Malformed::TargetForm);
    }
    let (target, segments) = path::canonical(given, rules.relaxations)?;
    let upgrade = connection.upgrade && is_websocket(&method, version, &headers);
    let grpc = fields.kind.value.is_some_and(is_grpc);
    Ok(Canonical { method, target, segments, headers, body, upgrade, grpc })
}

fn check_method(method: &Method) -> Result<(), Malformed> {
    match method.as_str() {
        "GET" | "POST" | "PUT" | "DELETE" | "HEAD" | "PATCH" | "OPTIONS" => Ok(()),
        "TRACE" | "TRACK" | "CONNECT" => Err(Malformed::MethodRefused),
        other if other.len() > METHOD_BYTES_MAX => Err(Malformed::MethodTooLong),
        _ => Ok(()),
    }
}

/// What `Connection` asks for.
#[derive(Debug, Default)]
struct ConnectionAsks {
    upgrade: bool,
}

/// The fields that the one reading depends on, found in one look over all of them.
#[derive(Debug, Default)]
struct Fields<'h> {
    host: Once<'h>,
    authorization: Once<'h>,
    kind: Once<'h>,
    coding: Once<'h>,
    expectation: Once<'h>,
    length: Once<'h>,
    transfer: Once<'h>,
    connection: Once<'h>,
}

/// A field, and whether it stands there more than once.
#[derive(Debug, Clone, Copy, Default)]
struct Once<'h> {
    value: Option<&'h HeaderValue>,
    again: bool,
}

impl<'h> Once<'h> {
    fn see(&mut self, value: &'h HeaderValue) {
        self.again |= self.value.is_some();
        self.value = Some(value);
    }
}

impl<'h> Fields<'h> {
    fn read(headers: &'h HeaderMap, rules: &Rules) -> Result<Self, Malformed> {
        if headers.len() > HEADERS_MAX {
            return Err(Malformed::TooManyFields);
        }
        let mut fields = Self::default();
        for (name, value) in headers {
            let field = match *name {
                header::HOST => &mut fields.host,
                header::AUTHORIZATION => &mut fields.authorization,
                header::CONTENT_TYPE => &mut fields.kind,
                header::CONTENT_ENCODING => &mut fields.coding,
                header::EXPECT => &mut fields.expectation,
                header::CONTENT_LENGTH => &mut fields.length,
                header::TRANSFER_ENCODING => &mut fields.transfer,
                header::CONNECTION => &mut fields.connection,
                header::ACCEPT | header::ACCEPT_ENCODING | header::USER_AGENT => continue,
                _ => {
                    check_name(name, rules.relaxations)?;
                    continue;
                }
            };
            field.see(value);
        }
        Ok(fields)
    }

    fn check(&self, headers: &HeaderMap, version: Version) -> Result<ConnectionAsks, Malformed> {
        if [&self.authorization, &self.kind, &self.expectation, &self.coding].iter().any(|field| field.again) {
            return Err(Malformed::DuplicateField);
        }
        let expectation = self.expectation.value;
        if expectation.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            return Err(Malformed::Expectation);
        }
        let mut asks = ConnectionAsks::default();
        if self.connection.value.is_some() {
            if version == Version::HTTP_2 {
                return Err(Malformed::Framing);
            }
            for value in headers.get_all(header::CONNECTION) {
                check_connection(value, &mut asks)?;
            }
        }
        Ok(asks)
    }

    /// RFC 9112 section 6, without its leniences.
    fn body_length(&self, version: Version) -> Result<BodyLength, Malformed> {
        if self.length.again || self.transfer.again {
            return Err(Malformed::Framing);
        }
        match (self.length.value, self.transfer.value) {
            (Some(_), Some(_)) => Err(Malformed::Framing),
            (None, Some(coding)) => {
                let chunked = version == Version::HTTP_11 && coding.as_bytes().eq_ignore_ascii_case(b"chunked");
                if chunked { Ok(BodyLength::Chunked) } else { Err(Malformed::Framing) }
            }
            (Some(length), None) => exact_length(length),
            (None, None) if version == Version::HTTP_2 => Ok(BodyLength::Chunked),
            (None, None) => Ok(BodyLength::None),
        }
    }
}

fn exact_length(length: &HeaderValue) -> Result<BodyLength, Malformed> {
    let digits = length.as_bytes();
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Framing);
    }
    let length = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    if i64::try_from(length).is_err() {
        return Err(Malformed::Framing);
    }
    Ok(if length == 0 { BodyLength::None } else { BodyLength::Exact(length) })
}

fn check_name(name: &HeaderName, relaxations: Relaxations) -> Result<(), Malformed> {
    let text = name.as_str();
    if !text.bytes().any(|b| b == b'_' || b == b'x') {
        return Ok(());
    }
    let dashed = if text.contains('_') { Cow::Owned(text.replace('_', "-")) } else { Cow::Borrowed(text) };
    let overrides = ["x-http-method-override", "x-http-method", "x-method-override"];
    if overrides.contains(&&*dashed) && !relaxations.method_override_allow {
        return Err(Malformed::MethodOverride);
    }
    let framing = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "upgrade",
    ];
    if text.contains('_') && framing.contains(&&*dashed) {
        return Err(Malformed::AliasedField);
    }
    Ok(())
}

fn check_connection(value: &HeaderValue, asks: &mut ConnectionAsks) -> Result<(), Malformed> {
    for token in value.as_bytes().split(|b| *b == b',') {
        let token = token.trim_ascii();
        if token.is_empty() {
            continue;
        }
        let name = HeaderName::from_bytes(token).map_err(|_| Malformed::ConnectionNames)?;
        match name.as_str() {
            "upgrade" => asks.upgrade = true,
            "close" | "keep-alive" | "te" | "trailer" | "proxy-connection" | "http2-settings" => {}
            _ if !passes(&name) => return Err(Malformed::ConnectionNames),
            "content-type" | "content-encoding" | "accept" | "range" | "if-match" | "if-none-match" => {
                return Err(Malformed::ConnectionNames);
            }
            _ => {}
        }
    }
    Ok(())
}

/// RFC 6455 section 4.1.
fn is_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    let once = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    *method == Method::GET
        && version == Version::HTTP_11
        && once(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && once(header::SEC_WEBSOCKET_KEY).is_some()
        && once(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

/// Reads arbitrary bytes as a target, for fuzzing: what is canonical stays what it is.
///
/// # Panics
/// When reading the canonical form again gives another.
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(target) = text.parse::<PathAndQuery>() else { return };
    for encoded_slash_keep in [false, true] {
        let relaxations = Relaxations { encoded_slash_keep, ..Relaxations::default() };
        let Ok((once, _)) = path::canonical(target.clone(), relaxations) else { continue };
        let (twice, segments) = path::canonical(once.clone(), relaxations).expect("what is canonical is accepted");
        assert_eq!(once, twice, "canonical twice is canonical once");
        for range in segments.iter() {
            let segment = &once.path()[range];
            assert!(!segment.contains('/') && segment != "." && segment != ".." && !segment.contains('\\'));
        }
    }
}

/// A call with an arbitrary target, if it is canonical; for fuzzing what comes after.
pub fn for_fuzzing(target: &str) -> Option<Canonical> {
    let head = http::Request::builder().method(Method::POST).uri(target).header(header::HOST, "localhost");
    let head = head.header(header::CONTENT_TYPE, "application/json").body(()).ok()?.into_parts().0;
    let hosts = Hosts::new(&[], None).ok()?;
    let relaxations = Relaxations { encoded_slash_keep: true, ..Relaxations::default() };
    canonicalise(head, &Rules::new(relaxations, 8 * 1024, hosts)).ok()
}
