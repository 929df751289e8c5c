//! What an action is done to, and the patterns that cover it.
//!
//! A resource is a path-like text made by an action map (`vhosts/%2F/queues/orders`). Every value a caller can choose is
//! percent-encoded into it by [`encode_segment`] or [`encode_path`], so a `*` or `/` in a value is data and never syntax.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::id::NameError;

/// Bytes that stand for themselves in a resource: RFC 3986 unreserved and the sub-delimiters and signs that have no
/// meaning in a pattern.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'@')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'+')
    .remove(b',')
    .remove(b'=');

const PATH: &AsciiSet = &SEGMENT.remove(b'/');

/// Encodes one value so that it is one segment of a resource.
pub fn encode_segment(value: &[u8]) -> Cow<'_, str> {
    percent_encode(value, SEGMENT).into()
}

/// Encodes one value that is itself path-like (an etcd key), keeping its slashes.
pub fn encode_path(value: &[u8]) -> Cow<'_, str> {
    percent_encode(value, PATH).into()
}

/// How much a call reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// The named resource and nothing else.
    Exact,
    /// Every resource whose text begins with the named text (an etcd range, a recursive delete).
    Under,
}

/// What one call is done to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    text: Arc<str>,
    extent: Extent,
}

impl Resource {
    /// One resource. `text` is made of encoded values and literals of an action map.
    pub fn exact(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), extent: Extent::Exact }
    }

    /// Everything whose text begins with `text`.
    pub fn under(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), extent: Extent::Under }
    }

    /// The text without the mark of its extent.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How much is reached.
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

impl fmt::Display for Resource {
    /// The text, followed by `**` when everything under it is meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match self.extent {
            Extent::Exact => Ok(()),
            Extent::Under => f.write_str("**"),
        }
    }
}

/// Longest accepted pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// Which resources a grant, a baseline or a lock is about: segments joined by `/`, where `*` inside a segment stands for
/// any characters of that segment, and a last segment `**` for any one or more segments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourcePattern {
    text: Arc<str>,
    kind: PatternKind,
}

/// What the text amounts to; the common forms need no walk over segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum PatternKind {
    /// No `*` at all.
    Literal,
    /// A literal of this many bytes, its last a `/` (or none), then `**`.
    LiteralTail { prefix: usize },
    /// `*` inside segments; the first of these segments begins after so many bytes.
    Segments { tail: bool, literal: usize },
}

impl ResourcePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`NameError`] when it is empty, too long, has `**` elsewhere than as its last segment, or a byte that an encoded
    /// resource cannot have (so the pattern could never match).
    pub fn new(text: &str) -> Result<Self, NameError> {
        const KIND: &str = "resource pattern";
        if text.is_empty() {
            return Err(NameError::new(KIND, text, "it is empty"));
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err(NameError::new(KIND, text, "it is longer than 4096 bytes"));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b'"' | b'<' | b'>' | b'`' | b'{' | b'}'))
        {
            return Err(NameError::new(
                KIND,
                text,
                "write other bytes than visible ASCII percent-encoded, as in `%20`",
            ));
        }
        let (body, tail) = match text.strip_suffix("**") {
            Some("") => ("", true),
            Some(body) if body.ends_with('/') => (body, true),
            Some(_) => return Err(NameError::new(KIND, text, "`**` stands alone as the last segment")),
            None => (text, false),
        };
        if body.contains("**") {
            return Err(NameError::new(KIND, text, "`**` stands alone as the last segment"));
        }
        let kind = match (body.contains('*'), tail) {
            (false, false) => PatternKind::Literal,
            (false, true) => PatternKind::LiteralTail { prefix: body.len() },
            (true, tail) => {
                let star = body.find('*').unwrap_or_default();
                PatternKind::Segments { tail, literal: body[..star].rfind('/').map_or(0, |slash| slash + 1) }
            }
        };
        Ok(Self { text: Arc::from(text), kind })
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether everything that `resource` reaches is inside this pattern.
    pub fn covers(&self, resource: &Resource) -> bool {
        let text = resource.text();
        match (self.kind, resource.extent()) {
            (PatternKind::Literal, Extent::Exact) => *self.text == *text,
            // What lies under a text is without bound; a pattern without a tail never holds all of it.
            (PatternKind::Literal | PatternKind::Segments { tail: false, .. }, Extent::Under) => false,
            (PatternKind::LiteralTail { prefix }, Extent::Exact) => {
                text.len() > prefix && text.as_bytes().starts_with(&self.text.as_bytes()[..prefix])
            }
            (PatternKind::LiteralTail { prefix }, Extent::Under) => {
                text.as_bytes().starts_with(&self.text.as_bytes()[..prefix])
            }
            (PatternKind::Segments { tail, literal }, extent) => match text.strip_prefix(&self.text[..literal]) {
                Some(rest) => self.covers_by_segment(literal, rest, tail, extent),
                None => false,
            },
        }
    }

    /// Whether `text` is inside what stands after so many bytes of the pattern, where a segment begins.
    fn covers_by_segment(&self, from: usize, text: &str, tail: bool, extent: Extent) -> bool {
        let body = if tail { &self.text[from..self.text.len() - 3] } else { &self.text[from..] };
        let mut rest = Some(text);
        for pattern in body.split('/') {
            let Some(current) = rest else { return false };
            let (segment, after) = match current.split_once('/') {
                Some((segment, after)) => (segment, Some(after)),
                None => (current, None),
            };
            if pattern != "*" && !segment_matches(pattern.as_bytes(), segment.as_bytes()) {
                return false;
            }
            rest = after;
        }
        match (tail, rest, extent) {
            (false, rest, _) => rest.is_none(),
            // The tail stands for something: `a/**` is not `a` and not `a/`.
            (true, Some(rest), Extent::Exact) => !rest.is_empty(),
            (true, Some(_), Extent::Under) => true,
            (true, None, _) => false,
        }
    }

    /// Whether everything this pattern covers is covered by `other` too. Errs on the side of `false`.
    pub fn is_within(&self, other: &Self) -> bool {
        if self == other || &*other.text == "**" {
            return true;
        }
        match self.kind {
            PatternKind::Literal => other.covers(&Resource::exact(&*self.text)),
            PatternKind::LiteralTail { prefix } => other.covers(&Resource::under(&self.text[..prefix])),
            PatternKind::Segments { .. } => match other.kind {
                PatternKind::LiteralTail { prefix } => {
                    let fixed = self.text.find('*').unwrap_or(self.text.len());
                    fixed >= prefix && self.text[..prefix] == other.text[..prefix]
                }
                PatternKind::Literal | PatternKind::Segments { .. } => false,
            },
        }
    }
}

super::as_text!(ResourcePattern, ResourcePattern::new);

impl fmt::Display for ResourcePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether `text` matches `pattern`, where `*` stands for any bytes, none included. Linear in practice: it goes back to
/// the last `*` only (Krauss, "Matching Wildcards", 2008).
pub(super) fn segment_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    p = after_star;
                    t = from + 1;
                    retry = Some((after_star, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> ResourcePattern {
        ResourcePattern::new(text).expect("a valid pattern")
    }

    #[test]
    fn a_pattern_covers_what_it_says() {
        let cases = [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "a/B", false),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/*", "a/", true),
            ("a/*", "a", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**", "a/", false),
            ("a/**", "ab/c", false),
            ("**", "a", true),
            ("a/orders-*", "a/orders-1", true),
            ("a/orders-*", "a/order", false),
            ("a/*/c/**", "a/b/c/d", true),
            ("a/*/c/**", "a/b/x/d", false),
            ("a/*/c/**", "a/b/c", false),
            ("*x*y*", "axbyc", true),
            ("keys//app/**", "keys//app/x", true),
            ("keys/app/**", "keys//app/x", false),
        ];
        for (p, r, expected) in cases {
            assert_eq!(pattern(p).covers(&Resource::exact(r)), expected, "{p} covers {r}");
        }
    }

    #[test]
    fn a_range_is_covered_only_by_a_tail_at_or_above_it() {
        let cases = [
            ("keys/app/**", "keys/app/", true),
            ("keys/app/**", "keys/app/con", true),
            ("keys/app/**", "keys/app", false),
            ("keys/app/**", "keys/", false),
            ("keys/app/x", "keys/app/x", false),
            ("keys/*/x/**", "keys/a/x/", true),
            ("keys/*/x/**", "keys/a/x", false),
            ("keys/*", "keys/a", false),
            ("**", "", true),
            ("keys/**", "keys/", true),
        ];
        for (p, r, expected) in cases {
            assert_eq!(pattern(p).covers(&Resource::under(r)), expected, "{p} covers everything under {r}");
        }
    }

    #[test]
    fn a_pattern_that_means_nothing_is_refused() {
        for bad in ["", "a**", "**/a", "a/**/b", "a/***", "a b", "ä", "a\n", "{x}"] {
            assert!(ResourcePattern::new(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn a_value_never_becomes_syntax() {
        assert_eq!(encode_segment(b"*"), "%2A");
        assert_eq!(encode_segment(b"/"), "%2F");
        assert_eq!(encode_segment(b"%2F"), "%252F");
        assert_eq!(encode_path(b"/a/*"), "/a/%2A");
    }

    #[test]
    fn within_is_cover_of_all() {
        let cases = [
            ("a/b", "a/*", true),
            ("a/**", "a/**", true),
            ("a/b/**", "a/**", true),
            ("a/**", "a/b/**", false),
            ("a/*", "a/**", true),
            ("a/*/c", "a/**", true),
            ("*/c", "a/**", false),
            ("a/*", "a/b", false),
            ("a", "**", true),
        ];
        for (inner, outer, expected) in cases {
            assert_eq!(pattern(inner).is_within(&pattern(outer)), expected, "{inner} within {outer}");
        }
    }

    proptest! {
        /// A pattern made of encoded data is a literal: it covers exactly itself.
        #[test]
        fn encoded_data_is_never_a_pattern(value in proptest::collection::vec(any::<u8>(), 1..20), other in proptest::collection::vec(any::<u8>(), 1..20)) {
            let p = pattern(&encode_segment(&value));
            prop_assert_eq!(p.covers(&Resource::exact(encode_segment(&other))), value == other);
        }

        /// If a pattern covers a whole range, it covers everything in it.
        #[test]
        fn a_covered_range_holds_no_stranger(p in "[a*]{0,2}/[ab*]{1,2}(/\\*\\*)?", base in "[ab/]{0,6}", more in "[ab/]{0,4}") {
            if let Ok(p) = ResourcePattern::new(&p) {
                let within = format!("{base}{more}");
                // `a/**` does not hold the empty name `a/`, which no action map makes.
                if p.covers(&Resource::under(base.as_str())) && !within.ends_with('/') && !within.is_empty() {
                    prop_assert!(p.covers(&Resource::exact(within.as_str())), "{p} holds {base}** and not {within}");
                }
            }
        }

        /// However a pattern is looked at, it covers what its segments one by one say.
        #[test]
        fn a_pattern_covers_what_its_segments_do(p in "[ab*]{1,2}(/[ab*]{1,3}){0,2}(/\\*\\*)?|\\*\\*", r in "[ab]{0,2}(/[ab]{0,2}){0,3}") {
            if let Ok(pattern) = ResourcePattern::new(&p) {
                let (body, tail) = match p.rsplit_once('/') {
                    _ if p == "**" => ("", true),
                    Some((body, "**")) => (body, true),
                    _ => (&*p, false),
                };
                let ours: Vec<&str> = if body.is_empty() { Vec::new() } else { body.split('/').collect() };
                let theirs: Vec<&str> = r.split('/').collect();
                let each = ours.iter().zip(&theirs).all(|(o, t)| segment_matches(o.as_bytes(), t.as_bytes()));
                let rest = theirs.get(ours.len()..).unwrap_or_default().join("/");
                let length = if tail { theirs.len() > ours.len() && !rest.is_empty() } else { theirs.len() == ours.len() };
                prop_assert_eq!(pattern.covers(&Resource::exact(&*r)), each && length, "{} covers {}", p, r);
            }
        }

        /// What is within covers no more.
        #[test]
        fn within_means_no_more(a in "[a*]{1,2}/[ab*]{1,2}(/\\*\\*)?", b in "[a*]{1,2}/[ab*]{1,2}(/\\*\\*)?", r in "[ab]{1,2}(/[ab]{1,2}){0,3}") {
            if let (Ok(a), Ok(b)) = (ResourcePattern::new(&a), ResourcePattern::new(&b))
                && a.is_within(&b) && a.covers(&Resource::exact(r.as_str())) {
                    prop_assert!(b.covers(&Resource::exact(r.as_str())), "{a} within {b} but not at {r}");
                }
        }
    }
}
