//! `leasehold policy` as it is typed.

use std::path::Path;
use std::process::{Command, Output};

fn leasehold(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .expect("the program runs")
}

#[track_caller]
fn check(arguments: &[&str], code: i32, in_stdout: &[&str], in_stderr: &[&str]) {
    let output = leasehold(arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\nstdout: {out}\nstderr: {err}");
    for text in in_stdout {
        assert!(out.contains(text), "{arguments:?}: `{text}` is not in stdout: {out}");
    }
    for text in in_stderr {
        assert!(err.contains(text), "{arguments:?}: `{text}` is not in stderr: {err}");
    }
}

const INCIDENT: &str = "config/control/incident-maintenance";

#[test]
fn check_says_what_the_documents_amount_to() {
    check(&["policy", "--help"], 0, &["check", "test", "explain"], &[]);
    for command in ["check", "test", "explain"] {
        check(&["policy", command, "--help"], 0, &["Exit codes:"], &[]);
    }
    check(
        &["policy", "check", INCIDENT],
        0,
        &["ok: 1 files", "1 Backend", "at most 1 a call"],
        &["no entitlement covers"],
    );
    check(&["policy", "check", "--strict", INCIDENT], 1, &[], &["deserve a look"]);
    check(&["policy", "check", "config/control", "-o", "json"], 0, &["\"digest\"", "\"files\": 4"], &[]);
    check(&["policy", "check"], 2, &[], &["PATH"]);
    check(&["policy", "check", "config/nowhere"], 2, &[], &["config/nowhere: it cannot be read"]);
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

const WRONG: &str = "\
apiVersion: leasehold/v1
kind: Backend
metadata: {name: b}
spec: {action_map: m}
---
apiVersion: leasehold/v1
kind: ActionMap
metadata: {name: m}
spec: {rules: [{action: x, class: read, method: GET, path: '/{', resource: x}]}
";

#[test]
fn check_names_the_file_and_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let bad = write(folder.path(), "bad.yaml", &WRONG.replace("action_map: m", "action_mop: m"));
    check(&["policy", "check", &bad], 2, &[], &["bad.yaml:1: Backend `b`: spec", "unknown field `action_mop`"]);
    // What only the sidecar knows of a rule is looked at too.
    let map = write(folder.path(), "map.yaml", WRONG);
    check(&["policy", "check", &map], 2, &[], &["map.yaml: ActionMap `m`:"]);
    let empty = write(folder.path(), "empty.yaml", "# nothing\n");
    check(&["policy", "check", &empty], 2, &[], &["there are no documents"]);
    // The same documents by two names are not declared twice.
    let twice = format!("{INCIDENT}/documents.yaml");
    check(&["policy", "check", INCIDENT, &twice], 0, &["ok: 1 files"], &[]);
}

#[test]
fn test_prints_each_case_that_failed_with_what_it_was() {
    check(&["policy", "test", "config/control"], 0, &["cases in 4 files are as expected"], &[]);
    check(&["policy", "test", &format!("{INCIDENT}/documents.yaml")], 0, &["12 of 12 cases in 1 files"], &[]);
    let folder = tempfile::tempdir().unwrap();
    let documents = format!("{INCIDENT}/documents.yaml");
    let cases = "\
tests:
  - name: it is asked for
    given: {principal: 'spiffe://prod.example/ns/db/sa/maintenance', entitlement: orders-db-maintenance, task: {ref: 'a:b'}}
    expect: {verdict: approve, max_ttl: 5m, determining: [x], reason: never, steps: [{approvers: [nobody], quorum: 1}]}
  - name: it is well
    given: {principal: 'spiffe://prod.example/ns/db/sa/maintenance', entitlement: orders-db-maintenance, task: {ref: 'a:b'}}
    expect: {verdict: ask}
";
    let failing = write(folder.path(), "failing_test.yaml", cases);
    check(
        &["policy", "test", &documents, &failing],
        1,
        &["13 of 14 cases in 2 files"],
        &[
            "failing_test.yaml:2: it is asked for",
            "verdict: expected approve, and it was ask",
            "max_ttl: expected 5m, and it was 30m",
            "steps: expected 1 of nobody, and it was 1 of dba-oncall",
            "determining: expected [x], and it was [leasehold.eligible]",
            "reason: expected `never` in it",
            "it was: ask, max_ttl 30m",
        ],
    );
    for (name, text, line, word) in [
        ("field_test.yaml", cases.replace("reason: never", "reasons: never"), 4, "reasons"),
        ("time_test.yaml", cases.replace("task: {ref", "time: noon, task: {ref"), 3, "RFC 3339"),
        ("span_test.yaml", cases.replace("max_ttl: 5m", "max_ttl: 5"), 2, "not a duration"),
        ("list_test.yaml", "- a\n".to_owned(), 1, ""),
    ] {
        let path = write(folder.path(), name, &text);
        check(&["policy", "test", &documents, &path], 2, &[], &[&format!("{name}:{line}:"), word]);
    }
    let none = write(folder.path(), "none.yaml", &std::fs::read_to_string(&documents).unwrap());
    check(&["policy", "test", &none], 2, &[], &["there are no cases"]);
}

#[test]
fn explain_prints_the_ruling_its_policies_and_what_would_change_it() {
    let ask = |more: &[&str]| {
        let always = [
            "policy",
            "explain",
            "--documents",
            INCIDENT,
            "--principal",
            "spiffe://prod.example/ns/db/sa/maintenance",
            "--entitlement",
            "orders-db-maintenance",
        ];
        always.iter().chain(more).map(|word| (*word).to_owned()).collect::<Vec<String>>()
    };
    let run = |more: &[&str], code: i32, out: &[&str]| {
        let words = ask(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        check(&words, code, out, &[]);
    };
    run(
        &["--task", "pagerduty:P1", "--task-kind", "incident", "--task-verified"],
        0,
        &[
            "verdict  approve",
            "max_ttl  30m",
            "determined by: orders-db.auto-on-incident (Policy `orders-db-incidents`)",
            "context.task.kind == \"incident\"",
        ],
    );
    run(
        &["--task", "pagerduty:P1"],
        0,
        &["verdict  ask", "1 of dba-oncall", "with an open task of kind `incident`", "approved at once"],
    );
    run(&[], 0, &["verdict  deny", "with an open task: approvers would decide", "approved at once"]);
    run(&["--duration", "2h", "--task", "a:b"], 0, &["verdict  deny", "with `30m` at most: approvers would decide"]);
    run(&["--task", "pagerduty:P1", "-o", "json"], 0, &["\"verdict\": \"ask\"", "\"policy_digest\""]);
    let stranger = [
        "policy",
        "explain",
        "--documents",
        INCIDENT,
        "--principal",
        "https://idp.example#bob",
        "--entitlement",
        "orders-db-maintenance",
        "--task",
        "a:b",
    ];
    check(&stranger, 0, &["verdict  deny", "leasehold.not_eligible", "membership in db-maintenance"], &[]);
    check(
        &["policy", "explain", "--documents", INCIDENT, "--principal", "bob", "--entitlement", "x"],
        2,
        &[],
        &["issuer#subject"],
    );
    check(&["policy", "explain", "--principal", "https://i#s", "--entitlement", "x"], 2, &[], &["--documents"]);
}
