//! Who a call is made by, and on whose behalf.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::id::{Name, NameError, REFERENCE_BYTES_MAX};

/// An authenticated identity, written one way only.
///
/// Either a SPIFFE id (`spiffe://prod.example/ns/pay/sa/db-maint`) or an issuer and a subject joined by `#`
/// (`https://idp.example#ci-bot`); an issuer never contains `#`, so the two parts are unambiguous. The text is compared
/// byte for byte: no case folding, no Unicode normalisation, no pattern.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

super::as_text!(Principal, Principal::parse);

impl Name for Principal {
    fn check(text: &str) -> Result<(), NameError> {
        if text.starts_with("spiffe://") {
            return check_spiffe(text);
        }
        match text.find('#') {
            Some(hash) => check_joined(text, hash),
            None => Err(NameError::new(KIND, text, "write `spiffe://…` or `issuer#subject`")),
        }
    }

    fn text(&self) -> &str {
        &self.0
    }

    fn of_valid(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

const KIND: &str = "principal";

impl Principal {
    /// Reads a principal as it is written in grants, locks and logs.
    ///
    /// # Errors
    /// [`NameError`] when it is neither form, too long, or has a control character.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        Self::check(text)?;
        Ok(Self(Arc::from(text)))
    }

    /// The principal of a SPIFFE id (SPIFFE-ID section 2): lower-case trust domain, plain path segments.
    ///
    /// # Errors
    /// [`NameError`] naming the first rule that is broken.
    pub fn spiffe(text: &str) -> Result<Self, NameError> {
        check_spiffe(text)?;
        Ok(Self(Arc::from(text)))
    }

    /// The principal of a token: who issued it and for whom.
    ///
    /// # Errors
    /// [`NameError`] when either part is empty, the issuer has a `#`, it is too long, or there is a control character.
    pub fn token(issuer: &str, subject: &str) -> Result<Self, NameError> {
        let text = format!("{issuer}#{subject}");
        check_joined(&text, issuer.len())?;
        Ok(Self(Arc::from(text)))
    }

    /// The principal as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether it is a SPIFFE id as [`Principal::spiffe`] has it.
fn check_spiffe(text: &str) -> Result<(), NameError> {
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
    Ok(())
}

/// Whether it is the principal of a token, whose issuer ends at `hash`.
fn check_joined(text: &str, hash: usize) -> Result<(), NameError> {
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
    Ok(())
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

/// What a principal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// A service.
    Workload,
    /// A pipeline.
    Ci,
    /// An AI agent.
    Agent,
    /// A person.
    User,
}

impl PrincipalKind {
    /// The kind as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Ci => "ci",
            Self::Agent => "agent",
            Self::User => "user",
        }
    }
}

/// Groups are lower-case ASCII, so that no two look alike.
///
/// # Errors
/// A sentence saying what a group is called.
pub fn group_name(text: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(plain) {
        let shown: String = text.chars().take(80).collect();
        return Err(format!("group `{}`: use a-z, 0-9, `.`, `_` and `-`", shown.escape_debug()));
    }
    Ok(())
}

/// Whether a name with a `*` at its end stands for this text; the `*` stands for one character or more.
pub fn stands_for(pattern: &str, text: &str) -> bool {
    pattern.strip_suffix('*').is_some_and(|prefix| text.len() > prefix.len() && text.starts_with(prefix))
}

/// Something for each principal, under its exact name or a name with a `*` at its end. The exact name is meant before any
/// pattern, and a longer pattern before a shorter one.
#[derive(Debug, Clone)]
pub struct PrincipalMap<T> {
    exact: HashMap<Box<str>, T>,
    /// The longest first.
    patterns: Vec<(Box<str>, T)>,
}

impl<T> Default for PrincipalMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), patterns: Vec::new() }
    }
}

impl<T> PrincipalMap<T> {
    /// What there is for somebody.
    pub fn get(&self, principal: &Principal) -> Option<&T> {
        self.get_text(principal.as_str())
    }

    /// As [`PrincipalMap::get`], for a name that may be nobody's.
    pub fn get_text(&self, text: &str) -> Option<&T> {
        let within = || self.patterns.iter().find(|(pattern, _)| stands_for(pattern, text)).map(|(_, value)| value);
        self.exact.get(text).or_else(within)
    }

    /// Puts something under an exact name, whatever that looks like.
    pub fn insert_exact(&mut self, name: &str, value: T) {
        self.exact.insert(name.into(), value);
    }

    /// Everything there is.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.patterns.iter().map(|(_, value)| value))
    }
}

impl<T> FromIterator<(Box<str>, T)> for PrincipalMap<T> {
    fn from_iter<I: IntoIterator<Item = (Box<str>, T)>>(all: I) -> Self {
        let (mut patterns, exact): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| name.ends_with('*'));
        patterns.sort_by_key(|(name, _)| Reverse(name.len()));
        Self { exact: exact.into_iter().collect(), patterns }
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

    #[test]
    fn the_exact_name_comes_first_and_then_the_longest_pattern() {
        let names = ["https://i#a*", "https://i#ab*", "https://i#ab", "https://i#*"];
        let map: PrincipalMap<&str> = names.into_iter().map(|name| (name.into(), name)).collect();
        for (text, found) in [
            ("https://i#ab", Some("https://i#ab")),
            ("https://i#abc", Some("https://i#ab*")),
            ("https://i#ac", Some("https://i#a*")),
            // The `*` stands for something.
            ("https://i#a", Some("https://i#*")),
            ("https://j#a", None),
        ] {
            assert_eq!(map.get(&Principal::parse(text).unwrap()).copied(), found, "{text}");
        }
        assert_eq!(map.values().count(), 4);
    }
}
