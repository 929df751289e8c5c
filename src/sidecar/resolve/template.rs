//! Path templates and resource templates.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use crate::domain::resource::{Resource, encode_path, encode_segment};

/// The segments of a path.
pub(super) type Path<'c> = SmallVec<[&'c str; 12]>;

/// The values that a match gave to names.
pub(super) type Values<'c> = SmallVec<[(&'c str, Cow<'c, [u8]>); 4]>;

/// Which texts a `{name:type}` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any.
    Any,
    /// Digits.
    Int,
    /// A UUID in its hyphened form (RFC 9562 section 4).
    Uuid,
    /// Letters, digits, `.`, `_` and `-`.
    Name,
}

impl Kind {
    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "int" => Self::Int,
            "uuid" => Self::Uuid,
            "name" => Self::Name,
            _ => return None,
        })
    }

    fn holds(self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Int => text.bytes().all(|b| b.is_ascii_digit()),
            Self::Name => text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')),
            Self::Uuid => {
                text.len() == 36
                    && text.bytes().enumerate().all(|(place, b)| match place {
                        8 | 13 | 18 | 23 => b == b'-',
                        _ => b.is_ascii_hexdigit(),
                    })
            }
        }
    }
}

/// One piece of a path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// This text.
    Literal(String),
    /// One segment.
    One { name: Box<str>, kind: Kind },
    /// One or more segments, to the end.
    Tail { name: Box<str> },
}

impl Piece {
    /// What both match, of pieces that stand for one segment.
    fn meet(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Literal(ours), Self::Literal(theirs)) => (ours == theirs).then(|| self.clone()),
            (Self::Literal(text), Self::One { kind, .. }) => kind.holds(text).then(|| self.clone()),
            (Self::One { kind, .. }, Self::Literal(text)) => kind.holds(text).then(|| other.clone()),
            (Self::One { kind: Kind::Any, .. }, _) => Some(other.clone()),
            _ => Some(self.clone()),
        }
    }
}

/// A path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathTemplate {
    pub(super) pieces: Vec<Piece>,
}

impl PathTemplate {
    /// What both match; none where no path is matched by both.
    pub(super) fn meet(&self, other: &Self) -> Option<Self> {
        let fixed = |template: &Self| match template.pieces.split_last() {
            Some((Piece::Tail { .. }, fixed)) => (fixed.len(), true),
            _ => (template.pieces.len(), false),
        };
        let ((ours, tail), (theirs, other_tail)) = (fixed(self), fixed(other));
        let (longer, shorter, shared) = if ours >= theirs { (self, other, theirs) } else { (other, self, ours) };
        let (long, long_tail, short_tail) =
            if ours >= theirs { (ours, tail, other_tail) } else { (theirs, other_tail, tail) };
        // A tail stands for one segment or more.
        if (!short_tail && (long != shared || long_tail)) || (short_tail && long == shared && !long_tail) {
            return None;
        }
        let mut pieces = Vec::new();
        for (ours, theirs) in longer.pieces[..shared].iter().zip(&shorter.pieces[..shared]) {
            pieces.push(ours.meet(theirs)?);
        }
        pieces.extend_from_slice(&longer.pieces[shared..]);
        Some(Self { pieces })
    }

    /// Reads `/api/queues/{vhost}/{queue}`.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or_else(|| format!("path `{text}` must begin with `/`"))?;
        let mut pieces = Vec::new();
        if rest.is_empty() {
            return Ok(Self { pieces });
        }
        for segment in rest.split('/') {
            if matches!(pieces.last(), Some(Piece::Tail { .. })) {
                return Err(format!("path `{text}`: `{{name...}}` is the last segment"));
            }
            pieces.push(piece(segment).map_err(|error| format!("path `{text}`: {error}"))?);
        }
        Ok(Self { pieces })
    }

    /// The values of its names, if the path is one that it stands for.
    pub(super) fn matches<'c>(&'c self, path: &Path<'c>) -> Option<Values<'c>> {
        let mut values = Values::new();
        for (place, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(text) => {
                    if path.get(place)? != text {
                        return None;
                    }
                }
                Piece::One { name, kind } => {
                    let segment = path.get(place)?;
                    if !kind.holds(segment) {
                        return None;
                    }
                    values.push((name, decode(segment)));
                }
                Piece::Tail { name } => {
                    let rest = path.get(place..).filter(|rest| !rest.is_empty())?;
                    // Segment by segment, so that an encoded slash inside one stays inside it.
                    let encoded: SmallVec<[_; 8]> = rest.iter().map(|segment| decode(segment)).collect();
                    let texts: SmallVec<[_; 8]> = encoded.iter().map(|bytes| encode_segment(bytes)).collect();
                    values.push((name, Cow::Owned(texts.join("/").into_bytes())));
                    return Some(values);
                }
            }
        }
        (path.len() == self.pieces.len()).then_some(values)
    }

    /// The names it gives values to, and whether each is a tail.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::One { name, .. } => Some((&**name, false)),
            Piece::Tail { name } => Some((&**name, true)),
        })
    }

    /// Whether every path this one stands for is one that `other` stands for too.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        for (place, theirs) in other.pieces.iter().enumerate() {
            let Some(ours) = self.pieces.get(place) else { return false };
            match (ours, theirs) {
                (_, Piece::Tail { .. }) => return true,
                (Piece::Tail { .. }, _) => return false,
                (Piece::Literal(ours), Piece::Literal(theirs)) if ours == theirs => {}
                (Piece::Literal(ours), Piece::One { kind, .. }) if kind.holds(ours) => {}
                (Piece::One { kind: ours, .. }, Piece::One { kind: theirs, .. })
                    if *theirs == Kind::Any || ours == theirs => {}
                _ => return false,
            }
        }
        self.pieces.len() == other.pieces.len()
    }
}

/// Whether a segment looks like a literal and is not: in another case, with a dot or a space at its end, or in characters
/// that some server folds into others. Such a segment is no value of a parameter: a backend may take it for the literal.
pub(super) fn looks_like(segment: &str, literal: &str) -> bool {
    segment != literal && fold(segment) == fold(literal)
}

/// Whether no folding could change the text.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn fold(text: &str) -> String {
    let decoded = decode(text);
    let text = String::from_utf8_lossy(&decoded);
    let folded: String = text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    folded.trim_matches(|c: char| c == '.' || c.is_whitespace() || c.is_control()).to_owned()
}

fn decode(segment: &str) -> Cow<'_, [u8]> {
    percent_decode_str(segment).into()
}

fn piece(segment: &str) -> Result<Piece, String> {
    let Some(inside) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        let good = !segment.is_empty()
            && segment.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'{' | b'}' | b'*' | b'?' | b'#' | b'\\'));
        return if good {
            if segment == "." || segment == ".." {
                return Err(format!("`{segment}` is in no path that is decided: such requests are refused"));
            }
            Ok(Piece::Literal(segment.to_owned()))
        } else {
            Err(format!("segment `{segment}` is not valid"))
        };
    };
    if let Some(name) = inside.strip_suffix("...") {
        return Ok(Piece::Tail { name: check_name(name)?.into() });
    }
    let (name, kind) = match inside.split_once(':') {
        None => (inside, Kind::Any),
        Some((name, kind)) => {
            (name, Kind::read(kind).ok_or_else(|| format!("`{kind}` is no type; write `int`, `uuid` or `name`"))?)
        }
    };
    Ok(Piece::One { name: check_name(name)?.into(), kind })
}

fn check_name(name: &str) -> Result<&str, String> {
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if good { Ok(name) } else { Err(format!("`{name}` is no parameter name; use a-z, 0-9 and `_`")) }
}

/// One piece of a resource template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Segment(Box<str>),
    /// A value that keeps its slashes.
    Path(Box<str>),
    /// The tail of a path, encoded already.
    Tail(Box<str>),
}

/// A resource template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResourceTemplate {
    parts: Vec<Part>,
    /// Whether everything under the filled text is meant.
    under: bool,
}

impl ResourceTemplate {
    /// Reads `vhosts/{vhost}/queues/{queue}`; a last `**` means everything under what stands before it.
    pub(super) fn read(text: &str, known: &[(&str, bool)]) -> Result<Self, String> {
        let (mut rest, under) = match text.strip_suffix("**") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let Some(open) = rest.find('{') else {
                parts.push(literal(rest)?);
                break;
            };
            if open > 0 {
                parts.push(literal(&rest[..open])?);
            }
            let close =
                rest[open..].find('}').ok_or_else(|| format!("resource `{text}`: a `{{` is not closed"))? + open;
            let inside = &rest[open + 1..close];
            let (name, path) = inside.strip_suffix("...").map_or((inside, false), |name| (name, true));
            let Some((name, tail)) = known.iter().find(|(known, _)| *known == name) else {
                return Err(format!("resource `{text}`: nothing gives `{name}` a value"));
            };
            parts.push(match (*tail, path) {
                (true, _) => Part::Tail((*name).into()),
                (false, true) => Part::Path((*name).into()),
                (false, false) => Part::Segment((*name).into()),
            });
            rest = &rest[close + 1..];
        }
        if parts.is_empty() && !under {
            return Err("resource is empty".to_owned());
        }
        Ok(Self { parts, under })
    }

    /// The text with every value encoded into it.
    pub(super) fn text(&self, values: &Values<'_>) -> SmallVec<[u8; 128]> {
        let mut text = SmallVec::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.extend_from_slice(literal.as_bytes()),
                Part::Segment(name) => text.extend_from_slice(encode_segment(value(values, name)).as_bytes()),
                Part::Path(name) => text.extend_from_slice(encode_path(value(values, name)).as_bytes()),
                Part::Tail(name) => text.extend_from_slice(String::from_utf8_lossy(value(values, name)).as_bytes()),
            }
        }
        text
    }

    /// The resource.
    pub(super) fn fill(&self, values: &Values<'_>) -> Resource {
        let text = self.text(values);
        let text = String::from_utf8_lossy(&text);
        if self.under { Resource::under(&*text) } else { Resource::exact(&*text) }
    }

    /// Whether `name` is its last part and keeps its slashes, so that what follows it can be cut off.
    pub(super) fn ends_with_path(&self, name: &str) -> bool {
        !self.under && matches!(self.parts.last(), Some(Part::Path(last)) if **last == *name)
    }
}

/// The value of a name.
pub(super) fn value<'v>(values: &'v Values<'_>, name: &str) -> &'v [u8] {
    values.iter().rev().find(|(known, _)| *known == name).map_or(&[], |(_, value)| value)
}

fn literal(text: &str) -> Result<Part, String> {
    let good = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'*' | b'{' | b'}' | b'\\' | b'"'));
    if good { Ok(Part::Literal(text.to_owned())) } else { Err(format!("resource: `{text}` is not valid")) }
}
