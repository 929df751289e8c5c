//! The digest of a call that is not made, as a sidecar would compute it.

use anyhow::{Context, bail};
use http::{Request, header};

use crate::domain::arguments::ArgumentDigest;
use crate::sidecar::canonical::{Canonical, Hosts, Relaxations, Rules, canonicalise};
use crate::sidecar::inflow;

/// Longest target that any listener takes.
const TARGET_BYTES_MAX: usize = 64 * 1024;

/// The digest of a call: a grant that is bound to it covers this call and no other.
///
/// The target may be written as a caller would write it: it is brought into the spelling in which it leaves.
///
/// # Errors
/// What of the call no sidecar would let through, whatever its backend allows.
pub fn digest(method: &str, target: &str, content_type: Option<&str>, body: &[u8]) -> anyhow::Result<ArgumentDigest> {
    Ok(inflow::digest(&canonical(method, target, content_type)?, body))
}

fn canonical(method: &str, target: &str, content_type: Option<&str>) -> anyhow::Result<Canonical> {
    if !target.starts_with('/') {
        bail!("the path begins with `/`; write `/search?limit=1`");
    }
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, "localhost");
    if let Some(kind) = content_type {
        request = request.header(header::CONTENT_TYPE, kind.trim());
    }
    let (head, ()) = request.body(()).context("this is no call")?.into_parts();
    // What one backend lets through and another refuses, both spell the same.
    let relaxations = Relaxations { encoded_slash_keep: true, path_params_keep: true, method_override_allow: true };
    let rules = Rules::new(relaxations, TARGET_BYTES_MAX, Hosts::new(&[], None).map_err(anyhow::Error::msg)?);
    let call = canonicalise(head, &rules).context("no sidecar lets this call through")?;
    if call.is_grpc() {
        bail!("a gRPC call is never bound to its arguments: its messages are not read");
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::arguments::Call;

    #[test]
    fn a_call_is_spelled_as_it_leaves() {
        let written = digest("GET", "/%61/b%2fc?x=%41", None, b"").expect("a digest");
        let leaves = Call { method: "GET", target: "/a/b%2Fc?x=%41", content_type: b"", body: b"" };
        assert_eq!(written, ArgumentDigest::of(leaves));
        let posted = digest("POST", "/", Some(" application/json "), b"{}").expect("a digest");
        let leaves = Call { method: "POST", target: "/", content_type: b"application/json", body: b"{}" };
        assert_eq!(posted, ArgumentDigest::of(leaves));
    }

    #[test]
    fn what_no_sidecar_lets_through_has_none() {
        for (method, target, kind) in [
            ("GET", "a", None),
            ("GET", "http://a/", None),
            ("TRACE", "/", None),
            ("GE T", "/", None),
            ("GET", "/a/../b", None),
            ("GET", "/a?\u{e9}", None),
            ("POST", "/", Some("a\nb")),
            ("POST", "/", Some("application/grpc")),
        ] {
            assert!(digest(method, target, kind, b"").is_err(), "{method} {target} {kind:?}");
        }
    }
}
