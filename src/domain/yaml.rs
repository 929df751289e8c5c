//! YAML with one reading: no key twice, no merge keys, no tags that nobody understands, no other word for `true`; depth,
//! aliases and size bounded, so that a small text cannot become a large one.

use serde::Deserialize;
use serde_saphyr::{Error, Options};

/// How much one text may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// What people write: 100,000 keys and values.
    Small,
    /// What programs write too: ten times as much.
    Large,
}

/// Reads one document.
///
/// # Errors
/// What is wrong with it, a second document included.
pub fn read<'t, T: Deserialize<'t>>(text: &'t str, size: Size) -> Result<T, Error> {
    // Two, so that a second one is told rather than the limit.
    serde_saphyr::from_str_with_options(text, options(size, 2))
}

/// What any text is read with: at most so many documents.
pub fn options(size: Size, documents_max: usize) -> Options {
    let nodes = match size {
        Size::Small => 100_000,
        Size::Large => 1_000_000,
    };
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * nodes,
            max_nodes: nodes,
            max_depth: 32,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: documents_max,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 1_000,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_reading_or_none() {
        let reads = |text: &str| read::<serde_json::Value>(text, Size::Small).is_ok();
        assert!(reads("{a: 1, b: [true]}"));
        for text in ["{a: 1, a: 2}", "a: &x {b: 1}\nc: {<<: *x}", "a: 1\n---\nb: 2", "a: !thing x", "!x {a: 1}"] {
            assert!(!reads(text), "{text}");
        }
        assert!(read::<bool>("true", Size::Small).is_ok());
        assert!(read::<bool>("yes", Size::Small).is_err());
    }

    #[test]
    fn a_small_text_does_not_become_a_large_one() {
        let reads = |text: &str| read::<serde_json::Value>(text, Size::Large).is_ok();
        let nine = |name: char| format!("[{}]", vec![format!("*{name}"); 9].join(","));
        let mut laughs = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (name, of) in ('b'..='i').zip('a'..='h') {
            laughs.push_str(&format!("{name}: &{name} {}\n", nine(of)));
        }
        assert!(!reads(&laughs));
        assert!(!reads(&"[".repeat(10_000)));
        assert!(reads(&format!("[{}]", vec!["1"; 200_000].join(","))));
        assert!(read::<Vec<u8>>(&format!("[{}]", vec!["1"; 200_000].join(",")), Size::Small).is_err());
    }
}
