//! What holds for any set of policies.

use leasehold::control::catalogue::Catalogue;
use leasehold::control::document::{Document, read_yaml};
use leasehold::control::route::Verdict;
use proptest::prelude::*;

use crate::{AGENT, BOB, BOT, Question, base, incident, noon, policy, rule};

/// Policies of all shapes; each is a document of its own.
const POOL: [&str; 12] = [
    r#"forbid(principal, action == Leasehold::Action::"elevation:request", resource) when { context.ttl_s > 600 };"#,
    r#"forbid(principal, action, resource in Leasehold::Backend::"db") when { principal.kind == "agent" };"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:auto_approve", resource) when { context.emergency };"#,
    r#"forbid(principal in Leasehold::Group::"dba", action, resource) unless { principal.kind == "workload" };"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:request", resource) when { context.ttl_s * 9223372036854775807 > 0 };"#,
    r#"forbid(principal, action == Leasehold::Action::"elevation:auto_approve", resource == Leasehold::Entitlement::"maint") unless { context has task };"#,
    r#"permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource) when { context has task && context.task.verified };"#,
    r#"@max_ttl("5m") permit(principal, action == Leasehold::Action::"elevation:auto_approve", resource in Leasehold::Backend::"db") when { context.ttl_s < 900 };"#,
    r#"@max_ttl("10m") @max_uses("3") permit(principal, action == Leasehold::Action::"elevation:request", resource) when { principal.kind == "agent" };"#,
    r#"@require_approvers("board") @quorum("2") permit(principal, action == Leasehold::Action::"elevation:request", resource) when { context.emergency };"#,
    r#"@quorum("3") permit(principal, action, resource in Leasehold::Backend::"mq") when { principal.kind == "workload" };"#,
    r#"permit(principal in Leasehold::Group::"oncall", action, resource);"#,
];

/// The first so many are forbids.
const FORBIDS: usize = 6;

fn documents(chosen: &[usize]) -> Vec<Document> {
    let own = chosen.iter().map(|n| policy(&format!("p{n}"), "elevation", &format!("@id(\"p{n}\") {}", POOL[*n])));
    base().into_iter().chain(own).collect()
}

fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    for principal in [BOT, AGENT, BOB] {
        for entitlement in ["maint", "purge"] {
            for seconds in [60, 800, 1_800] {
                for (emergency, task) in [(false, None), (false, incident()), (true, None), (true, incident())] {
                    all.push(Question {
                        principal,
                        entitlement,
                        seconds,
                        emergency,
                        task,
                        uses: None,
                        arguments: None,
                        now: noon(),
                    });
                }
            }
        }
    }
    all
}

const fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Deny => 0,
        Verdict::Ask => 1,
        Verdict::Approve => 2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A forbid more never lets more through, and never loosens what was tightened by others that still count.
    #[test]
    fn a_forbid_more_never_permits_more(
        chosen in prop::sample::subsequence((0..POOL.len()).collect::<Vec<_>>(), 0..POOL.len()),
        forbid in 0..FORBIDS,
    ) {
        let with: Vec<usize> = chosen.iter().copied().filter(|n| *n != forbid).chain([forbid]).collect();
        let without: Vec<usize> = chosen.iter().copied().filter(|n| *n != forbid).collect();
        let before = Catalogue::read(&documents(&without), 0).unwrap();
        let after = Catalogue::read(&documents(&with), 0).unwrap();
        for question in questions() {
            let (before, after) = (rule(&before, &question), rule(&after, &question));
            prop_assert!(
                rank(after.verdict) <= rank(before.verdict),
                "p{forbid} made {:?} of {:?} for {question:?}", after.verdict, before.verdict
            );
        }
    }

    /// Documents are a set: in whatever order they come, the ruling is the same, word for word.
    #[test]
    fn the_order_of_documents_means_nothing(
        chosen in prop::sample::subsequence((0..POOL.len()).collect::<Vec<_>>(), 1..POOL.len()),
        seed in any::<prop::sample::Index>(),
        reverse in any::<bool>(),
    ) {
        let documents = documents(&chosen);
        let mut others = documents.clone();
        others.rotate_left(seed.index(documents.len()));
        if reverse {
            others.reverse();
        }
        let (one, other) = (Catalogue::read(&documents, 0).unwrap(), Catalogue::read(&others, 0).unwrap());
        prop_assert_eq!(one.policies.digest(), other.policies.digest());
        for question in questions() {
            prop_assert_eq!(rule(&one, &question), rule(&other, &question));
        }
    }
}

/// The documents of an example, as a text that can be damaged.
fn example() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/control/ci-deploy/documents.yaml");
    std::fs::read_to_string(path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is done to a text, it is read or refused, and what is read makes a catalogue or is refused.
    #[test]
    fn a_damaged_text_is_refused_and_nothing_worse(
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(PIECES.to_vec()), 0usize..40), 1..6),
    ) {
        let mut text = example();
        for (place, piece, cut) in edits {
            let mut from = place.index(text.len());
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            let mut to = (from + cut).min(text.len());
            while !text.is_char_boundary(to) {
                to -= 1;
            }
            text.replace_range(from..to.max(from), piece);
        }
        if let Ok(documents) = read_yaml(&text) {
            drop(Catalogue::read(&documents, 0));
        }
    }
}

/// What is put in: pieces of both languages, and what is in neither.
const PIECES: [&str; 24] = [
    "",
    "\n",
    "---\n",
    "  ",
    "\t",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "|",
    ">",
    "&a ",
    "*a",
    "\\",
    "\u{0}",
    "é\u{202e}",
    "when { true }",
    "::",
    "99999999999999999999",
    "if then else",
];
