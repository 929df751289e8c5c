//! What several steps know of fields: which of a caller may reach a backend, and what a `Content-Type` says of a body.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Whether a field of a caller may reach the backend.
pub fn passes(name: &HeaderName) -> bool {
    // What nearly every request has, first.
    if matches!(
        *name,
        header::USER_AGENT
            | header::ACCEPT
            | header::ACCEPT_ENCODING
            | header::ACCEPT_LANGUAGE
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::IF_MATCH
            | header::IF_NONE_MATCH
            | header::RANGE
    ) {
        return true;
    }
    if matches!(*name, header::HOST | header::AUTHORIZATION | header::CONTENT_LENGTH | header::CONNECTION) {
        return false;
    }
    let text = name.as_str();
    if text.contains('_') {
        return !is_reserved(&text.replace('_', "-"));
    }
    !is_reserved(text)
}

/// Fields that are hop-by-hop (RFC 9110 section 7.6.1), set by us, credentials of the caller, or believed by some backend
/// to come from a proxy it trusts.
fn is_reserved(name: &str) -> bool {
    EXACT.binary_search(&name).is_ok() || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whole names, sorted.
const EXACT: &[&str] = &[
    "authorization",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "job-token",
    "keep-alive",
    "kubectl-command",
    "private-token",
    "proxy",
    "remote-addr",
    "remote-groups",
    "remote-user",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "via",
    "x-api-key",
    "x-cluster-client-ip",
    "x-consul-token",
    "x-groups",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-ms-client-principal",
    "x-ms-client-principal-id",
    "x-ms-client-principal-name",
    "x-real-ip",
    "x-roles",
    "x-token",
    "x-user",
    "x-user-id",
    "x-username",
    "x-vault-token",
];

/// What a name begins with.
const PREFIXES: &[&str] = &[
    "cf-",
    "fastly-",
    "impersonate-",
    "proxy-",
    "ssl-client",
    "tls-client",
    "x-amzn-oidc-",
    "x-auth-",
    "x-authenticated-",
    "x-client-",
    "x-envoy-",
    "x-forwarded",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-leasehold-",
    "x-middleware-",
    "x-original-",
    "x-proxy-",
    "x-remote-",
    "x-rewrite-",
    "x-ssl-",
    "x-webauth-",
];

/// Whether a `Content-Type` is that of gRPC.
pub fn is_grpc(kind: &HeaderValue) -> bool {
    kind.as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether a body is text that a credential could be read from as it stands.
pub fn is_text(headers: &HeaderMap) -> bool {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return false;
    }
    headers.get(header::CONTENT_TYPE).is_none_or(|kind| {
        let kind = kind.as_bytes();
        if kind == b"application/octet-stream" {
            return false;
        }
        kind.starts_with(b"text/")
            || kind.starts_with(b"application/json")
            || [&b"json"[..], b"xml", b"yaml", b"x-www-form-urlencoded", b"javascript"]
                .iter()
                .any(|text| memchr::memmem::find(kind, text).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_as_its_search_needs() {
        assert!(EXACT.is_sorted());
        for name in EXACT {
            assert!(is_reserved(name), "{name}");
        }
    }
}
