//! Ranges of keys (etcd's `range_end`).

use crate::domain::resource::{Resource, encode_path};

use super::template::{ResourceTemplate, Values, value};

/// From which value to which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub(super) from: Box<str>,
    pub(super) to: Box<str>,
}

impl KeyRange {
    /// What `[from, to)` reaches: the one key, or everything under the longest text that all of its keys begin with. None
    /// where the range is empty or inverted.
    pub(super) fn resource(&self, template: &ResourceTemplate, values: &Values<'_>) -> Option<Resource> {
        let (from, to) = (value(values, &self.from), value(values, &self.to));
        if to.is_empty() {
            return Some(template.fill(values));
        }
        let everything_after = to == b"\0";
        if !everything_after && to <= from {
            return None;
        }
        let shared = if everything_after { 0 } else { shared_prefix(from, to) };
        let text = template.text(values);
        let text = String::from_utf8_lossy(&text);
        let whole = encode_path(from);
        // INVARIANT: the template ends with the encoded key (checked when the map is compiled).
        let before = text.len() - whole.len();
        let prefix = encode_path(&from[..shared]);
        Some(Resource::under(format!("{}{prefix}", &text[..before])))
    }
}

/// How many bytes every key in `[from, to)` begins with, taken from `from`.
fn shared_prefix(from: &[u8], to: &[u8]) -> usize {
    // Keys in the range begin with p iff p <= from and to <= the first key after all that begin with p.
    (0..=from.len())
        .rev()
        .find(|length| after_prefix(&from[..*length]).is_none_or(|after| to <= after.as_slice()))
        .unwrap_or(0)
}

/// The first key after all that begin with `prefix`; none where there is no such key.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shared_prefix_is_the_longest_that_holds_the_range() {
        for (from, to, expected) in [
            (&b"/app/"[..], &b"/app0"[..], 5),
            (b"/app/a", b"/app/b", 6),
            (b"/app/a", b"/app/c", 5),
            (b"/app/a", b"/app0", 5),
            (b"/app/a", b"/apq", 4),
            (b"a", b"z", 0),
            (b"a", b"a\0", 1),
            (b"\xff", b"\xff\xff", 1),
        ] {
            assert_eq!(shared_prefix(from, to), expected, "{from:?}..{to:?}");
        }
    }

    proptest! {
        /// Every key of the range begins with the prefix.
        #[test]
        fn no_key_of_the_range_lies_outside(from in proptest::collection::vec(0u8..4, 0..4), to in proptest::collection::vec(0u8..4, 1..4), key in proptest::collection::vec(0u8..4, 0..5)) {
            if from < to && key >= from && key < to {
                prop_assert!(key.starts_with(&from[..shared_prefix(&from, &to)]));
            }
        }
    }
}
