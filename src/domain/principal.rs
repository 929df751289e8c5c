//! Who a call is made by, and on whose behalf.

use std::fmt;
use std::sync::Arc;

use super::id::{NameError, REFERENCE_BYTES_MAX};

/// An authenticated identity, written one way only.
///
/// Either a SPIFFE id (`spiffe://prod.example/ns/pay/sa/db-maint`) or an issuer and a subject joined by `#`
/// (`https://idp.example#ci-bot`); an issuer never contains `#`, so the two parts are unambiguous. The text is compared
/// byte for byte: no case folding, no Unicode normalisation, no pattern.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

super::as_text!(Principal, Principal::parse);

const KIND: &str = "principal";

impl Principal {
    /// Reads a principal as it is written in grants, locks and logs.
    ///
    /// # Errors
    /// [`NameError`] when it is neither form, too long, or has a control character.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.starts_with("spiffe://") {
            return Self::spiffe(text);
        }
        match text.find('#') {
            Some(hash) => Self::joined(text, hash),
            None => Err(NameError::new(KIND, text, "write `spiffe://…` or `issuer#subject`")),
        }
    }

    /// The principal of a SPIFFE id (SPIFFE-ID section 2): lower-case trust domain, plain path segments.
    ///
    /// # Errors
    /// [`NameError`] naming the first rule that is broken.
    pub fn spiffe(text: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::new(KIND, text, reason));
        let Some(rest) = text.strip_prefix("spiffe://") else { return refuse("it does not begin with `spiffe://`") };
        if text.len() > REFERENCE_BYTES_MAX {
            return refuse("it is longer than 2048 bytes");
        }
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(d, p)| (d, Some(p)));
        if domain.is_empty() || domain.len() > 255 {
            return refuse("its trust domain is empty or longer than 255 bytes");
        }
        if !domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')) {
            return refuse("its trust domain may only have a-z, 0-9, `.`, `-` and `_`");
        }
        let Some(path) = path else { return refuse("it names a trust domain and no workload") };
        for segment in path.split('/') {
            if segment.is_empty() || segment == "." || segment == ".." {
                return refuse("its path has an empty or a dot segment");
            }
            if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
                return refuse("its path may only have letters, digits, `.`, `-` and `_`");
            }
        }
        Ok(Self(Arc::from(text)))
    }

    /// The principal of a token: who issued it and for whom.
    ///
    /// # Errors
    /// [`NameError`] when either part is empty, the issuer has a `#`, it is too long, or there is a control character.
    pub fn token(issuer: &str, subject: &str) -> Result<Self, NameError> {
        Self::joined(&format!("{issuer}#{subject}"), issuer.len())
    }

    /// The principal of a token from its text, in which the issuer ends at `hash`.
    fn joined(text: &str, hash: usize) -> Result<Self, NameError> {
        let (issuer, subject) = (&text[..hash], &text[hash + 1..]);
        let refuse = |reason| Err(NameError::new(KIND, text, reason));
        if issuer.is_empty() || subject.is_empty() {
            return refuse("its issuer or its subject is empty");
        }
        if issuer.contains('#') || issuer.starts_with("spiffe://") {
            return refuse("an issuer has no `#` and is not a SPIFFE id");
        }
        if text.len() > REFERENCE_BYTES_MAX {
            return refuse("it is longer than 2048 bytes");
        }
        let strange = |c: char| c.is_control() || is_invisible(c);
        if text.bytes().any(|b| !(b' '..=b'~').contains(&b)) && text.chars().any(strange) {
            return refuse("it has a control or an invisible formatting character");
        }
        Ok(Self(Arc::from(text)))
    }

    /// The principal as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Characters that change how a name looks and not what it is: direction overrides, zero-width and byte-order marks.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_read_back_as_written() {
        for good in ["spiffe://prod.example/ns/pay/sa/db-maint", "https://idp.test#ci-bot", "https://idp.test#a#b"] {
            assert_eq!(Principal::parse(good).map(|p| p.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn what_is_not_a_spiffe_id_is_refused() {
        for bad in [
            "spiffe://",
            "spiffe:///a",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://TD/a",
            "spiffe://td/a//b",
            "spiffe://td/a/../b",
            "spiffe://td/a?x=1",
            "spiffe://td/a#b",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td/%61",
            "Spiffe://td/a",
        ] {
            assert!(Principal::parse(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn a_subject_cannot_hide_characters() {
        for bad in ["", "a\nb", "a\u{202e}b", "a\u{200b}", "a\u{0}"] {
            assert!(Principal::token("https://idp.test", bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Principal::token("https://idp.test#x", "a").is_err());
        assert!(Principal::token("spiffe://td", "a").is_err());
    }
}
