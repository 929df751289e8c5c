//! Why a call ended as it did: the closed list that answers, metrics and records share.

use http::StatusCode;

/// What was decided about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// A grant or a baseline permits it.
    Permit,
    /// It was refused.
    Deny,
    /// It would have been refused; the backend is only observed, so it was let pass.
    WouldDeny,
    /// It could not be decided or carried out, and nothing was allowed because of that.
    Error,
}

impl Decision {
    /// All decisions, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Permit, Self::Deny, Self::WouldDeny, Self::Error];

    /// The decision as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Deny => "deny",
            Self::WouldDeny => "would_deny",
            Self::Error => "error",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:ident;)*) => {
        /// Why a call ended as it did. The text is stable: agents and dashboards depend on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason as it is written in answers, metrics and records.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The status that a caller refused for this reason gets.
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)*
                }
            }
        }
    };
}

reasons! {
    /// A grant covers the call.
    Granted = "granted", OK;
    /// The backend's baseline covers the call; no grant was needed.
    Baseline = "baseline", OK;

    /// The request has more than one reading, or none.
    Malformed = "malformed", BAD_REQUEST;
    /// The method is never forwarded (TRACE, CONNECT).
    MethodRefused = "method_refused", METHOD_NOT_ALLOWED;
    /// The head, or one of its parts, is over the limit.
    HeadTooLarge = "head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE;
    /// The target is over the limit.
    TargetTooLong = "target_too_long", URI_TOO_LONG;
    /// The authority is none of the backend's.
    Misdirected = "misdirected", MISDIRECTED_REQUEST;
    /// An expectation other than `100-continue`.
    ExpectationRefused = "expectation_refused", EXPECTATION_FAILED;
    /// The body is over the limit.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    /// The body came too slowly, or not at all.
    BodyTimeout = "body_timeout", REQUEST_TIMEOUT;
    /// The body must be read to decide, and its encoding, its type or the kind of the call forbids that.
    BodyUnreadable = "body_unreadable", UNSUPPORTED_MEDIA_TYPE;

    /// No identity, or none that could be verified.
    Unauthenticated = "unauthenticated", UNAUTHORIZED;
    /// The keys that would verify the identity are missing or too old.
    KeysUnavailable = "keys_unavailable", SERVICE_UNAVAILABLE;

    /// No rule of the action map names what this call does.
    UnmappedAction = "unmapped_action", FORBIDDEN;
    /// The principal has no grant on this backend.
    NoGrant = "no_grant", FORBIDDEN;
    /// A grant covers the call and has not begun.
    NotYet = "not_yet", FORBIDDEN;
    /// The grant that covers the call is over.
    Expired = "expired", FORBIDDEN;
    /// The grant that covers the call has no use left.
    Exhausted = "exhausted", FORBIDDEN;
    /// The grant that covers the call was given back.
    Released = "released", FORBIDDEN;
    /// The grant that covers the call was taken away.
    Revoked = "revoked", FORBIDDEN;
    /// The principal has live grants on this backend, and none covers this call.
    OutOfScope = "out_of_scope", FORBIDDEN;
    /// The grant that covers the call is bound to one with other arguments.
    ArgumentsDiffer = "arguments_differ", FORBIDDEN;
    /// A lock stops the call.
    Lock = "lock", FORBIDDEN;
    /// A guardrail forbids the call, although a grant or a baseline covers it.
    Guardrail = "guardrail", FORBIDDEN;
    /// The view of the grants cannot be proved recent enough.
    StaleSource = "stale_source", SERVICE_UNAVAILABLE;
    /// Nobody confirmed that a use of the counted grant is taken for this call.
    UseUnconfirmed = "use_unconfirmed", SERVICE_UNAVAILABLE;
    /// The caller's own proof of identity ran out during the call.
    IdentityExpired = "identity_expired", UNAUTHORIZED;
    /// The record of the call cannot be written.
    AuditUnavailable = "audit_unavailable", SERVICE_UNAVAILABLE;
    /// This process is stopping.
    Draining = "draining", SERVICE_UNAVAILABLE;

    /// The credential for the backend cannot be had.
    CredentialUnavailable = "credential_unavailable", BAD_GATEWAY;
    /// The backend cannot be reached.
    UpstreamUnreachable = "upstream_unreachable", BAD_GATEWAY;
    /// The backend did not answer in time.
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT;
    /// The backend's answer breaks the protocol.
    UpstreamInvalid = "upstream_invalid", BAD_GATEWAY;
    /// The backend refused the injected credential.
    UpstreamAuthFailed = "upstream_auth_failed", BAD_GATEWAY;
    /// The backend's answer ended before it was whole.
    UpstreamTruncated = "upstream_truncated", BAD_GATEWAY;
    /// The backend's answer holds the injected credential.
    LeakGuard = "leak_guard", BAD_GATEWAY;
    /// The caller went away.
    CallerGone = "caller_gone", BAD_REQUEST;
    /// A fault of ours.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
