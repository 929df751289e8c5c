//! Who may name whom. One crate cannot say this in a manifest, so a test reads the sources.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A module, and the modules it may name besides itself.
type Table = &'static [(&'static str, &'static [&'static str])];

/// The folders of `src/`. What is not listed is refused.
const TOP: Table = &[
    ("domain", &[]),
    ("action_map", &["domain"]),
    ("guardrail", &["domain"]),
    ("telemetry", &[]),
    ("identity", &["domain"]),
    ("wire", &["domain"]),
    ("sync", &["domain", "telemetry", "wire"]),
    ("sidecar", &["action_map", "domain", "guardrail", "identity", "sync", "telemetry"]),
    ("control", &["action_map", "domain", "guardrail", "identity", "sync", "telemetry"]),
    ("config", &["domain", "identity", "sidecar", "sync", "telemetry"]),
    (
        "app",
        &["action_map", "config", "control", "domain", "guardrail", "identity", "sidecar", "sync", "telemetry", "wire"],
    ),
    ("cli", &["app", "config", "domain", "telemetry"]),
];

/// The steps of a call. `call` strings them together; a step names only what its own work needs, so that nothing that
/// reads a request (accept, identify, canonical, resolve, decide) can reach what holds a credential.
const SIDECAR: Table = &[
    ("reason", &[]),
    ("fields", &[]),
    ("accept", &[]),
    ("identify", &["accept", "reason"]),
    ("canonical", &["fields", "reason"]),
    ("inflow", &["canonical", "reason"]),
    ("resolve", &["canonical", "reason"]),
    ("decide", &["reason", "resolve"]),
    ("consume", &["decide", "reason"]),
    ("credential", &["decide"]),
    ("inject", &["credential", "fields"]),
    // An answer's body carries the permit that can end it and the record of its end.
    ("forward", &["accept", "credential", "decide", "inject", "reason", "record"]),
    ("record", &["credential", "decide", "forward", "reason"]),
    ("respond", &["decide", "forward", "reason"]),
    ("sync", &["decide", "plane"]),
    ("plane", &["accept", "canonical", "credential", "decide", "forward", "record", "resolve"]),
    (
        "call",
        &[
            "accept",
            "canonical",
            "consume",
            "credential",
            "decide",
            "forward",
            "identify",
            "fields",
            "inflow",
            "inject",
            "plane",
            "reason",
            "record",
            "resolve",
            "respond",
        ],
    ),
    ("worker", &["accept", "call", "forward", "plane", "reason", "record"]),
];

/// The steps of an elevation. A command names rows and rules; nothing that decides knows of HTTP.
const CONTROL: Table = &[
    ("refusal", &[]),
    ("authority", &[]),
    ("document", &[]),
    ("route", &["document"]),
    ("catalogue", &["document", "route"]),
    ("store", &["document", "route"]),
    ("command", &["catalogue", "document", "refusal", "route", "store"]),
    ("engine", &["catalogue", "command", "refusal", "store"]),
    ("publish", &["authority", "command", "engine", "refusal", "store"]),
    ("doctor", &["catalogue", "store"]),
    ("api", &["catalogue", "command", "doctor", "document", "engine", "publish", "refusal", "route", "store"]),
];

/// Where a table applies.
const LEVELS: &[(&[&str], Table)] = &[(&[], TOP), (&["sidecar"], SIDECAR), (&["control"], CONTROL)];

#[test]
fn modules_name_only_whom_they_may() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut violations = Vec::new();
    for file in files(&source) {
        let text = std::fs::read_to_string(&file).expect("a readable source file");
        let relative = file.strip_prefix(&source).expect("a file below src");
        violations.extend(check(relative, &text));
    }
    assert!(violations.is_empty(), "modules name others they may not:\n{}", violations.join("\n"));
}

#[test]
fn every_folder_is_in_its_table() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (level, table) in LEVELS {
        let folder = level.iter().fold(source.clone(), |path, name| path.join(name));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_module = path.is_dir() || path.extension().is_some_and(|e| e == "rs");
            if is_module && !["mod", "lib", "main", "tests"].contains(&name.as_str()) {
                assert!(table.iter().any(|(known, _)| *known == name), "`{}` is not in its table", path.display());
                found.push(name);
            }
        }
        for (name, may) in *table {
            assert!(found.iter().any(|f| f == name), "`{name}` is in a table and not in {}", folder.display());
            for other in *may {
                assert!(table.iter().any(|(known, _)| known == other), "`{name}` may name `{other}`, which is nothing");
            }
        }
    }
}

#[test]
fn a_violation_is_found() {
    let bad = [
        ("domain/id.rs", "use crate::config::Config;"),
        ("domain/id.rs", "use super::super::config::Config;"),
        ("domain/id.rs", "use crate::{domain::grant, telemetry};"),
        ("domain/id.rs", "use crate::{self as root};"),
        ("domain/id.rs", "use crate::*;"),
        ("domain/id.rs", "use crate as root;"),
        ("domain/mod.rs", "fn f() { super::sidecar::serve() }"),
        ("domain/id.rs", "mod tests { use super::super::super::app; }"),
        ("domain/id.rs", "fn f() -> r#crate::x { crate :: app :: run() }"),
        ("domain/id.rs", "/* /* nested */ */ use crate::app;"),
        ("domain/id.rs", "const A: char = '\"'; use crate::app; const B: char = '\"';"),
        ("domain/id.rs", "macro_rules! m { () => { $crate::app::run() } }"),
        ("sidecar/mod.rs", "use crate::config;"),
        ("sidecar/resolve/mod.rs", "use super::forward;"),
        ("sidecar/resolve/routes.rs", "use super::super::{canonical, credential};"),
        ("sidecar/canonical/mod.rs", "use crate::sidecar::{decide::Permit};"),
        ("cli/mod.rs", "use crate::sidecar::reason::Reason;"),
    ];
    for (file, text) in bad {
        assert_eq!(check(Path::new(file), text).len(), 1, "`{text}` in {file} was not found");
    }
    let good = [
        ("domain/id.rs", "use super::principal; use crate::domain::grant; // use crate::app;"),
        ("domain/id.rs", "const A: &str = \"crate::app\"; const B: &str = r#\"super::super::app \" crate::app\"#;"),
        ("domain/id.rs", "/// See [`crate::app`].\nfn f<'a>(x: &'a str) { self::g() }"),
        ("domain/id.rs", "mod tests { use super::*; mod deeper { use super::super::*; } }"),
        ("sidecar/mod.rs", "use self::forward::x; use crate::identity::{Verified, Method};"),
        ("app/mod.rs", "use crate::{config, sidecar::{decide, forward}};"),
        ("main.rs", "fn main() { leasehold::cli::run() }"),
    ];
    for (file, text) in good {
        assert_eq!(check(Path::new(file), text), Vec::<String>::new(), "`{text}` in {file}");
    }
}

/// What a file names and may not.
fn check(file: &Path, text: &str) -> Vec<String> {
    let module = module_of(file);
    let mut violations = Vec::new();
    if module.is_empty() {
        return violations;
    }
    for path in paths(&tokens(text), &module) {
        let refuse = |what: &str| format!("  src/{} names `{what}`", file.display());
        if path.is_empty() {
            violations.push(refuse("crate"));
            continue;
        }
        for (level, table) in LEVELS {
            let depth = level.len();
            let inside = |p: &[String]| p.len() > depth && p.iter().zip(*level).all(|(a, b)| a == b);
            if !inside(&module) || !inside(&path) || module[depth] == path[depth] {
                continue;
            }
            let allowed: BTreeMap<_, _> = table.iter().copied().collect();
            // An item of the parent itself (`super::serve`) is no module of the table.
            let known = allowed.contains_key(path[depth].as_str());
            if known && !allowed.get(module[depth].as_str()).is_some_and(|may| may.contains(&path[depth].as_str())) {
                violations.push(refuse(&path[..=depth].join("::")));
            }
        }
    }
    violations
}

/// `sidecar/resolve/routes.rs` is `[sidecar, resolve, routes]`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] || module == ["main"] {
        module.pop();
    }
    module
}

/// Every path that starts at `crate`, `super` or `self`, from the root of the crate; groups are unfolded.
fn paths(tokens: &[String], file: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut module = file.to_vec();
    let mut braces: Vec<bool> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let next = |n: usize| tokens.get(at + n).map(String::as_str);
        match tokens[at].as_str() {
            "{" => {
                let is_module = at >= 2 && tokens[at - 2] == "mod";
                if is_module {
                    module.push(tokens[at - 1].clone());
                }
                braces.push(is_module);
            }
            "}" if braces.pop() == Some(true) => drop(module.pop()),
            start @ ("crate" | "super" | "self") if at == 0 || tokens[at - 1] != "::" => {
                let base = match start {
                    "crate" => Vec::new(),
                    "self" => module.clone(),
                    _ => module[..module.len().saturating_sub(1)].to_vec(),
                };
                if next(1) == Some("::") {
                    at = tree(tokens, at + 2, base, &mut found);
                    continue;
                }
                if start == "crate" && next(1) == Some("as") {
                    found.push(Vec::new());
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads what follows a `::`, and returns where it ends.
fn tree(tokens: &[String], mut at: usize, mut base: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while let Some(token) = tokens.get(at) {
                    match token.as_str() {
                        "}" => return at + 1,
                        "," => at += 1,
                        _ => at = tree(tokens, at, base.clone(), found).max(at + 1),
                    }
                }
                return at;
            }
            Some("super") => drop(base.pop()),
            Some("self" | "*") => {
                found.push(base);
                return at + 1;
            }
            Some(name) if name.starts_with(|c: char| c.is_alphabetic() || c == '_') => base.push(name.to_owned()),
            _ => {
                found.push(base);
                return at;
            }
        }
        at += 1;
        if tokens.get(at).map(String::as_str) == Some("::") {
            at += 1;
            continue;
        }
        if tokens.get(at).map(String::as_str) == Some("as") {
            at += 2;
        }
        found.push(base);
        return at;
    }
}

/// Words, `::` and single characters; without comments and the insides of literals.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        match rest {
            ['/', '/', ..] => at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => at += block_comment(rest),
            ['r', '"', ..] | ['r', '#', '"' | '#', ..] => at += raw_string(rest),
            ['"', ..] => at += string(rest),
            // A character literal, and not a lifetime.
            ['\'', '\\', ..] => {
                at += 2 + rest[2..].iter().skip(1).position(|c| *c == '\'').map_or(rest.len(), |p| p + 2)
            }
            ['\'', _, '\'', ..] => at += 3,
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                at += 2;
            }
            ['r', '#', ..] => at += 2,
            [c, ..] if is_word(*c) => {
                let word: String = rest.iter().take_while(|c| is_word(**c)).collect();
                at += word.chars().count();
                tokens.push(word);
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                at += 1;
            }
            [] => {}
        }
    }
    tokens
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    let mut at = 2 + hashes;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
