//! The digest of one exact call: what a grant can be bound to besides actions and resources.
//!
//! An action on a resource names a kind of call; with its arguments it is one call: this target with this query, this
//! body, read as this type. Whoever agrees to a digest agrees to that call and to no other.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

use super::id::NameError;

/// The SHA-256 of a call with its arguments, written `sha256:` and 64 digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArgumentDigest([u8; 32]);

/// A call as it leaves for the backend, but for what is put into it on the way: no host, no credential.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The method.
    pub method: &'a str,
    /// The path and the query in their canonical spelling.
    pub target: &'a str,
    /// The value of `Content-Type`; empty where there is none.
    pub content_type: &'a [u8],
    /// The bytes of the body; none where there is no body.
    pub body: &'a [u8],
}

const PREFIX: &str = "sha256:";

impl ArgumentDigest {
    /// The digest of a call: of its method, a space, its target, a line feed, the value of its `Content-Type`, a line
    /// feed, and its body.
    ///
    /// No two calls make the same bytes: a method has no space, a target and a field's value no line feed. The type is
    /// part of it because the same bytes say one thing as JSON and another as a form; the method and the path are, because
    /// a scope may reach many of both.
    pub fn of(call: Call<'_>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in [call.method.as_bytes(), b" ", call.target.as_bytes(), b"\n", call.content_type, b"\n", call.body] {
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }

    /// Reads `sha256:` and 64 digits in lower case.
    ///
    /// # Errors
    /// [`NameError`] when it is anything else; there is one spelling.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let wrong = |reason| NameError::new("digest of arguments", text, reason);
        let digits = text.strip_prefix(PREFIX).ok_or_else(|| wrong("write `sha256:` and 64 digits"))?;
        let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
        if digits.len() != 64 || !digits.bytes().all(|byte| digit(byte).is_some()) {
            return Err(wrong("after `sha256:` come 64 hexadecimal digits in lower case"));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let value = pair.iter().fold(0, |sum, one| sum * 16 + digit(*one).unwrap_or(0));
            *byte = u8::try_from(value).unwrap_or(0);
        }
        Ok(Self(bytes))
    }

    /// The digest of these 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ArgumentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ArgumentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ArgumentDigest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

super::as_text!(ArgumentDigest, ArgumentDigest::parse);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALL: Call<'_> =
        Call { method: "POST", target: "/search?limit=1", content_type: b"application/json", body: br#"{"q":"4711"}"# };

    #[test]
    fn it_is_what_a_shell_makes_of_the_same_bytes() {
        // printf '%s\n%s\n%s' 'POST /search?limit=1' application/json '{"q":"4711"}' | sha256sum
        let made = "sha256:d73bf96e80c465783752891121671931fd6d6a6d3ec8222c032d7316a8674e82";
        assert_eq!(ArgumentDigest::of(CALL).to_string(), made);
        // printf 'DELETE /a\n\n' | sha256sum
        let bare = Call { method: "DELETE", target: "/a", content_type: b"", body: b"" };
        assert_eq!(
            ArgumentDigest::of(bare).to_string(),
            "sha256:fb7c289ee4167c679500f56fcdc9c457b04cb3c1d2c75237b7d96d9735b5627e"
        );
    }

    #[test]
    fn every_part_counts_and_none_runs_into_the_next() {
        let calls = [
            CALL,
            Call { method: "PUT", ..CALL },
            Call { target: "/search?limit=2", ..CALL },
            Call { target: "/search", ..CALL },
            Call { content_type: b"", ..CALL },
            Call { content_type: b"application/x-www-form-urlencoded", ..CALL },
            Call { body: b"", ..CALL },
            Call { body: b"{\"q\":\"4711\"}\n", ..CALL },
            Call { content_type: b"", body: b"application/json\n{\"q\":\"4711\"}", ..CALL },
        ];
        let digests: std::collections::HashSet<_> = calls.into_iter().map(ArgumentDigest::of).collect();
        assert_eq!(digests.len(), calls.len());
    }

    #[test]
    fn there_is_one_spelling() {
        let good = ArgumentDigest::of(CALL).to_string();
        for bad in [
            "",
            "sha256:",
            &good[7..],
            &good.to_uppercase(),
            &good.replace("sha256", "sha512"),
            &good[..good.len() - 1],
            &format!("{good}0"),
            &format!(" {good}"),
            &good.replace(&good[8..10], "+1"),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(ArgumentDigest::parse(bad).is_err(), "`{bad}` was accepted");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes: [u8; 32]) {
            let digest = ArgumentDigest::from_bytes(bytes);
            prop_assert_eq!(ArgumentDigest::parse(&digest.to_string()), Ok(digest));
            prop_assert_eq!(serde_json::from_value::<ArgumentDigest>(serde_json::json!(digest)).unwrap(), digest);
        }
    }
}
