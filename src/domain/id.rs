//! One type for each kind of name, so that a grant's id can never stand where a backend's name belongs.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Why a text is not a valid name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{}` is not valid: {reason}", .text.escape_debug())]
pub struct NameError {
    kind: &'static str,
    text: String,
    reason: &'static str,
}

impl NameError {
    pub(crate) fn new(kind: &'static str, text: &str, reason: &'static str) -> Self {
        // A hostile text may be megabytes long; an error message is not.
        let text = text.chars().take(80).collect();
        Self { kind, text, reason }
    }
}

/// Longest accepted name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest accepted task reference or principal, in bytes (SPIFFE-ID section 2.3 allows 2048).
pub const REFERENCE_BYTES_MAX: usize = 2048;

fn check_name(kind: &'static str, text: &str, allowed: fn(u8) -> bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::new(kind, text, "it is empty"));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::new(kind, text, "it is longer than 128 bytes"));
    }
    if !text.bytes().all(allowed) {
        return Err(NameError::new(kind, text, "use ASCII letters, digits, `.`, `_` and `-`"));
    }
    Ok(())
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// A name of kind `T` whose text somebody else holds, such as an entry of a table beside other texts.
pub struct Borrowed<'a, T> {
    text: &'a str,
    kind: PhantomData<T>,
}

/// A kind of name that can be [`Borrowed`].
pub trait Name: Clone {
    /// Whether a text is a name of this kind.
    ///
    /// # Errors
    /// [`NameError`] naming the first rule that is broken.
    fn check(text: &str) -> Result<(), NameError>;

    /// The name as text.
    fn text(&self) -> &str;

    /// A name of its own of a text that was one.
    fn of_valid(text: &str) -> Self;
}

impl<'a, T: Name> Borrowed<'a, T> {
    /// Reads a name of this kind where it is.
    ///
    /// # Errors
    /// [`NameError`] naming the first rule that is broken.
    pub fn new(text: &'a str) -> Result<Self, NameError> {
        T::check(text)?;
        Ok(Self::of_valid(text))
    }

    /// The name whose text this is. The text was that of a `T` once; who keeps it elsewhere answers for that.
    pub(crate) fn of_valid(text: &'a str) -> Self {
        Self { text, kind: PhantomData }
    }

    /// The name as text.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// A name that stands alone.
    pub fn to_owned(self) -> T {
        T::of_valid(self.text)
    }
}

impl<'a, T: Name> From<&'a T> for Borrowed<'a, T> {
    fn from(name: &'a T) -> Self {
        Self { text: name.text(), kind: PhantomData }
    }
}

impl<T> Clone for Borrowed<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Borrowed<'_, T> {}

impl<T> PartialEq for Borrowed<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<T> Eq for Borrowed<'_, T> {}

impl<T: Name> PartialEq<T> for Borrowed<'_, T> {
    fn eq(&self, other: &T) -> bool {
        self.text == other.text()
    }
}

impl<T> PartialOrd for Borrowed<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Borrowed<'_, T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(other.text)
    }
}

impl<T> fmt::Display for Borrowed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl<T> fmt::Debug for Borrowed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.text, f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Reads a name of this kind.
            ///
            /// # Errors
            /// [`NameError`] when the text is empty, longer than 128 bytes, or has a character outside `[A-Za-z0-9._-]`.
            pub fn new(text: &str) -> Result<Self, NameError> {
                Self::check(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Name for $type {
            fn check(text: &str) -> Result<(), NameError> {
                check_name($kind, text, plain)
            }

            fn text(&self) -> &str {
                &self.0
            }

            fn of_valid(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        super::as_text!($type, $type::new);

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
    };
}

name!(
    /// Names a protected upstream API, as configured.
    BackendName, "backend name"
);
name!(
    /// Names an operation of a backend, such as `queue.delete`.
    ActionName, "action name"
);
name!(
    /// Identifies one grant.
    GrantId, "grant id"
);
name!(
    /// Identifies one lock.
    LockId, "lock id"
);
name!(
    /// Names a credential source, as configured.
    CredentialName, "credential name"
);

name!(
    /// Names what may be asked for.
    EntitlementName, "entitlement name"
);
name!(
    /// Identifies one elevation request.
    RequestId, "request id"
);

super::as_text!(TaskRef, TaskRef::new);

impl Name for TaskRef {
    fn check(text: &str) -> Result<(), NameError> {
        let kind = "task";
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(NameError::new(kind, text, "it is longer than 2048 bytes"));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(NameError::new(kind, text, "it has a space or a control character"));
        }
        match text.split_once(':') {
            Some((source, reference)) if !reference.is_empty() && !source.is_empty() && source.bytes().all(plain) => {
                Ok(())
            }
            _ => Err(NameError::new(kind, text, "write `source:reference`, such as `jira:OPS-17`")),
        }
    }

    fn text(&self) -> &str {
        &self.0
    }

    fn of_valid(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

/// The ticket, incident, pipeline run or agent job that justifies a grant, written `source:reference`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskRef(Arc<str>);

impl TaskRef {
    /// Reads `source:reference`, such as `github:org/repo:run:289782451`.
    ///
    /// # Errors
    /// [`NameError`] when there is no `source:`, it is too long, or it has a control character or a space.
    pub fn new(text: &str) -> Result<Self, NameError> {
        Self::check(text)?;
        Ok(Self(Arc::from(text)))
    }

    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The number of a state of the grant table; it only moves forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_plain_ascii() {
        for good in ["rabbitmq", "queue.delete", "grt_01JD-x", "A"] {
            assert_eq!(BackendName::new(good).map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "а", "a/b", "a\n", "*", &"x".repeat(129)] {
            assert!(BackendName::new(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn a_task_names_its_source() {
        assert!(TaskRef::new("github:org/repo:run:1").is_ok());
        for bad in ["", "OPS-17", ":x", "jira:", "ji ra:x", "jira:a\nb", "jira:a b"] {
            assert!(TaskRef::new(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn an_error_about_a_long_text_is_short() {
        let error = TaskRef::new(&"x".repeat(1 << 20)).expect_err("too long");
        assert!(error.to_string().len() < 200);
    }
}
