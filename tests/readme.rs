//! What README shows is what the program prints.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The block of code after a mark.
fn block(mark: &str) -> String {
    let text = readme();
    let after =
        text.split(&format!("<!-- {mark} -->\n```\n")).nth(1).unwrap_or_else(|| panic!("no `{mark}` in README"));
    after.split("```").next().unwrap().to_owned()
}

/// Without what differs from run to run: ports, and how many events came before the cut.
fn settled(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let mut pieces = line.split("127.0.0.1:");
            let mut settled = pieces.next().unwrap().to_owned();
            for piece in pieces {
                settled += "127.0.0.1:PORT";
                settled += piece.trim_start_matches(|c: char| c.is_ascii_digit());
            }
            settled.trim_end_matches(|c: char| c.is_ascii_digit() && line.contains("data: event")).trim_end().to_owned()
        })
        .collect();
    lines.dedup();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

#[test]
fn the_demo_prints_what_readme_shows() {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold")).args(["demo", "--once"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(settled(&String::from_utf8(output.stdout).unwrap()), settled(&block("demo")));
}

#[test]
fn check_prints_what_readme_shows() {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RABBIT_PASSWORD", "x")
        .args(["check", "config/rabbitmq.yaml"])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    let shown = block("check");
    let (command, shown) = shown.split_once('\n').unwrap();
    assert_eq!(command, "$ RABBIT_PASSWORD=... leasehold check config/rabbitmq.yaml");
    assert_eq!(printed, shown);
}

/// What a heading of Markdown is pointed to by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars();
    let kept = kept.filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn what_readme_points_to_is_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = readme();
    for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        let (file, place) = link.split_once('#').map_or((link, None), |(file, place)| (file, Some(place)));
        assert!(folder.join(file).exists(), "{link}");
        if let Some(place) = place {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            let headings = text.lines().filter(|line| line.starts_with('#'));
            assert!(headings.map(anchor).any(|anchor| anchor == place), "{link}");
        }
    }
    assert!(text.contains("\nscripts/test "));
    assert!(std::fs::read_to_string(folder.join(".ci/run")).unwrap().contains("scripts/test"));
    let model = std::fs::read_to_string(folder.join("docs/threat-model.md")).unwrap();
    for file in
        ["tests/hostile/raw_h1.jsonl", "tests/hostile/frames.rs", "tests/hostile/answers.rs", "tests/real/process.rs"]
    {
        assert!(folder.join(file).exists() && model.contains(file.rsplit('/').next().unwrap()), "{file}");
    }
}
