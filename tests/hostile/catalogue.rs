//! Which inputs of the catalogue are run, and why the others are not.

use std::collections::BTreeSet;
use std::path::Path;

/// How many there are of each kind.
const KINDS: &[(&str, usize)] = &[
    ("H1F", 33),
    ("CHK", 18),
    ("H1S", 26),
    ("PTH", 37),
    ("HST", 10),
    ("MTH", 7),
    ("HDR", 18),
    ("UPG", 7),
    ("PIP", 6),
    ("H2F", 18),
    ("TLS", 18),
    ("JWT", 38),
    ("JWK", 7),
    ("OAU", 7),
    ("UPR", 15),
    ("GRT", 20),
    ("API", 19),
    ("AUD", 9),
    ("CFG", 8),
    ("RES", 12),
];

/// The ids in a text; `BI-UPR-006, -007` are two.
fn ids(text: &str, found: &mut BTreeSet<String>) {
    for piece in text.split("BI-").skip(1) {
        let kind: String = piece.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        let mut rest = &piece[kind.len()..];
        while let Some(number) = rest.strip_prefix('-').and_then(|rest| rest.get(..3)) {
            if !number.bytes().all(|b| b.is_ascii_digit()) {
                break;
            }
            found.insert(format!("{kind}-{number}"));
            rest = rest[4..].strip_prefix(", ").unwrap_or_default();
            rest = rest.strip_prefix("and ").unwrap_or(rest);
        }
    }
}

fn read(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "jsonl") {
            ids(&std::fs::read_to_string(path).unwrap(), found);
        }
    }
}

#[test]
fn every_input_is_run_or_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run = BTreeSet::new();
    read(&root.join("tests"), &mut run);
    read(&root.join("src"), &mut run);
    let text = std::fs::read_to_string(root.join("tests/hostile/excluded.txt")).unwrap();
    let mut excluded = BTreeSet::new();
    for line in text.lines() {
        let (id, why) = line.split_once(": ").unwrap_or_else(|| panic!("`{line}` gives no reason"));
        assert!(why.len() > 10 && excluded.insert(id.trim_start_matches("BI-").to_owned()), "{line}");
    }
    let both: Vec<_> = run.intersection(&excluded).collect();
    assert!(both.is_empty(), "run, and excluded too: {both:?}");
    for (kind, all) in KINDS {
        let of = |set: &BTreeSet<String>| set.iter().filter(|id| id.starts_with(&format!("{kind}-"))).count();
        assert_eq!(of(&run) + of(&excluded), *all, "{kind}: {} run, {} excluded", of(&run), of(&excluded));
    }
}
