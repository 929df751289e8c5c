//! The one spelling of a target.

use std::ops::Range;

use http::uri::PathAndQuery;
use smallvec::SmallVec;

use super::{Malformed, QUERY_PAIRS_MAX, Relaxations};

/// Where the segments of a path lie in its text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments(SmallVec<[(u32, u32); 12]>);

impl Segments {
    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + Clone + '_ {
        self.0.iter().map(|(from, to)| *from as usize..*to as usize)
    }

    /// Adds one; none where it lies further than any target reaches.
    fn push(&mut self, from: usize, to: usize) -> Option<()> {
        self.0.push((u32::try_from(from).ok()?, u32::try_from(to).ok()?));
        Some(())
    }
}

/// The canonical spelling of a target and where its segments lie. Borrows what is canonical already.
pub(super) fn canonical(given: PathAndQuery, relaxations: Relaxations) -> Result<(PathAndQuery, Segments), Malformed> {
    check_query(given.query())?;
    let path = given.path();
    if path == "*" {
        return Ok((given, Segments::default()));
    }
    if !path.starts_with('/') {
        return Err(Malformed::TargetForm);
    }
    if path == "/" {
        return Ok((given, Segments::default()));
    }
    if let Some(segments) = plain(path) {
        return Ok((given, segments));
    }
    let rewritten = rewrite(path, relaxations)?;
    let target = match rewritten {
        None => given,
        Some(mut text) => {
            if let Some(query) = given.query() {
                text.push('?');
                text.push_str(query);
            }
            PathAndQuery::try_from(text).map_err(|_| Malformed::PathNotCanonical)?
        }
    };
    let segments = check_segments(target.path(), relaxations)?;
    Ok((target, segments))
}

/// Where the segments of a path lie, if nothing in it could have another spelling or meaning.
fn plain(path: &str) -> Option<Segments> {
    let mut segments = Segments::default();
    let mut from = 1;
    let bytes = path.as_bytes();
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        match PLAIN[usize::from(*byte)] {
            Plain::Stays => {}
            Plain::Ends if at > from => {
                segments.push(from, at)?;
                from = at + 1;
            }
            Plain::Ends | Plain::Not => return None,
        }
    }
    if bytes.len() == from {
        return None;
    }
    segments.push(from, bytes.len())?;
    Some(segments)
}

/// What a byte is in a path that is plain.
#[derive(Clone, Copy)]
enum Plain {
    /// One of a segment.
    Stays,
    /// The end of a segment.
    Ends,
    /// Nothing that a plain path has: escapes, parameters, what is refused; and dots, which may be a segment of their own.
    Not,
}

const PLAIN: [Plain; 256] = {
    let mut table = [Plain::Not; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b':' | b'@') {
            table[byte as usize] = Plain::Stays;
        }
        byte += 1;
    }
    table[b'/' as usize] = Plain::Ends;
    table
};

fn check_query(query: Option<&str>) -> Result<(), Malformed> {
    let Some(query) = query else { return Ok(()) };
    if query.bytes().filter(|b| *b == b'&').count() >= QUERY_PAIRS_MAX {
        return Err(Malformed::QueryNotCanonical);
    }
    let bytes = query.as_bytes();
    for (place, byte) in bytes.iter().enumerate() {
        let good = match byte {
            b'%' => bytes.get(place + 1..place + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
            b'#' | b'\\' => false,
            byte => byte.is_ascii_graphic(),
        };
        if !good {
            return Err(Malformed::QueryNotCanonical);
        }
    }
    Ok(())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The path with unreserved characters decoded and other escapes in upper case; none where it is so already.
fn rewrite(path: &str, relaxations: Relaxations) -> Result<Option<String>, Malformed> {
    let bytes = path.as_bytes();
    let mut text: Option<String> = None;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte != b'%' {
            let good = is_unreserved(byte)
                || matches!(
                    byte,
                    b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@'
                )
                || (byte == b';' && relaxations.path_params_keep);
            if !good {
                return Err(Malformed::PathNotCanonical);
            }
            if let Some(text) = &mut text {
                text.push(char::from(byte));
            }
            at += 1;
            continue;
        }
        let value = escaped(bytes, at).ok_or(Malformed::PathNotCanonical)?;
        let refused = match value {
            0 | b'\\' => true,
            b'/' => !relaxations.encoded_slash_keep,
            // Decoded once more somewhere, this would be another escape; so would it be once what follows is decoded.
            b'%' => {
                bytes.get(at + 3..at + 5).is_some_and(|next| next.iter().all(|b| b.is_ascii_hexdigit() || *b == b'%'))
            }
            _ => false,
        };
        if refused {
            return Err(Malformed::PathNotCanonical);
        }
        let given = &path[at..at + 3];
        if is_unreserved(value) {
            text.get_or_insert_with(|| path[..at].to_owned()).push(char::from(value));
        } else if given.bytes().any(|b| b.is_ascii_lowercase()) {
            text.get_or_insert_with(|| path[..at].to_owned()).push_str(&given.to_ascii_uppercase());
        } else if let Some(text) = &mut text {
            text.push_str(given);
        }
        at += 3;
    }
    Ok(text)
}

fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(bytes.get(at + 1)?)? << 4 | digit(bytes.get(at + 2)?)?)
}

fn check_segments(path: &str, relaxations: Relaxations) -> Result<Segments, Malformed> {
    let mut segments = Segments::default();
    let mut from = 1;
    for segment in path[1..].split('/') {
        let name = if relaxations.path_params_keep { segment.split(';').next().unwrap_or_default() } else { segment };
        if segment.is_empty() || name == "." || name == ".." {
            return Err(Malformed::PathNotCanonical);
        }
        if segment.contains('%') {
            check_escapes(segment)?;
        }
        let to = from + segment.len();
        segments.push(from, to).ok_or(Malformed::TargetTooLong)?;
        from = to + 1;
    }
    Ok(segments)
}

/// What the escapes of a segment stand for is UTF-8, and no slash makes a dot segment of it.
fn check_escapes(segment: &str) -> Result<(), Malformed> {
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(segment).collect();
    let text = std::str::from_utf8(&decoded).map_err(|_| Malformed::PathNotCanonical)?;
    if text.contains('/') && text.split('/').any(|part| part == "." || part == "..") {
        return Err(Malformed::PathNotCanonical);
    }
    if text.chars().any(is_folded) { Err(Malformed::PathNotCanonical) } else { Ok(()) }
}

/// Characters that some servers fold into ASCII: into a slash, a dot or a backslash (BestFit, NFKC), or into a letter when
/// they ignore case (long s, Kelvin sign, the Turkish i's).
fn is_folded(c: char) -> bool {
    matches!(
        c,
        '\u{ff0e}' | '\u{ff0f}' | '\u{ff3c}' | '\u{2024}'
            ..='\u{2026}' | '\u{2215}' | '\u{2044}' | '\u{29f8}' | '\u{17f}' | '\u{212a}' | '\u{130}' | '\u{131}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The quick look at a path sees what the thorough one does, or nothing.
        #[test]
        fn what_is_plain_is_canonical(path in "/[aZ0:@~_/.%;é-]{0,20}|(/[aZ0:@~_-]{0,3}){1,5}") {
            for encoded_slash_keep in [false, true] {
                let relaxations = Relaxations { encoded_slash_keep, path_params_keep: encoded_slash_keep, ..Relaxations::default() };
                if let Some(segments) = plain(&path) {
                    prop_assert_eq!(rewrite(&path, relaxations), Ok(None));
                    prop_assert_eq!(check_segments(&path, relaxations), Ok(segments));
                }
            }
        }
    }

    #[test]
    fn most_paths_are_plain() {
        assert_eq!(plain("/api/queues/orders").unwrap().iter().count(), 3);
        for other in ["/", "/a/", "/a//b", "/a/..", "/a%2Fb", "/a;b", "/a/b.json"] {
            assert_eq!(plain(other), None, "{other}");
        }
    }
}
