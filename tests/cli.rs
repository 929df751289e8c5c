//! The program as it is typed: what it prints where, and its exit codes.

#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

fn leasehold(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(arguments).env("RABBIT_PASSWORD", "guest").output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[track_caller]
fn check(arguments: &[&str], code: i32, in_stdout: &str, in_stderr: &str) {
    let output = leasehold(arguments);
    let (out, err) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\nstdout: {out}\nstderr: {err}");
    assert!(out.contains(in_stdout), "{arguments:?}: `{in_stdout}` is not in stdout: {out}");
    assert!(err.contains(in_stderr), "{arguments:?}: `{in_stderr}` is not in stderr: {err}");
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "{arguments:?}: colours without a terminal");
}

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name).display().to_string()
}

#[test]
fn help_and_version_are_no_failures() {
    check(&["--help"], 0, "Exit codes:", "");
    check(&["--version"], 0, concat!("leasehold ", env!("CARGO_PKG_VERSION")), "");
    for command in ["proxy", "check", "grants", "explain", "status", "demo"] {
        check(&[command, "--help"], 0, "Exit codes:", "");
    }
    check(&["completions", "bash"], 0, "leasehold", "");
    check(&["completions", "zsh"], 0, "#compdef leasehold", "");
    check(&["completions", "fish"], 0, "complete -c leasehold", "");
}

#[test]
fn a_wrong_command_line_is_two() {
    check(&[], 2, "", "Usage:");
    check(&["proxi"], 2, "", "proxy");
    check(&["proxy"], 2, "", "--config <FILE>");
    check(&["check", "--strikt", "x"], 2, "", "--strict");
    check(&["grants", "--admin", "https://x"], 2, "", "speaks plain HTTP");
    check(&["explain", "--principal", "nobody", "GET", "/"], 2, "", "issuer#subject");
    check(&["explain", "--principal", "https://i#s", "GET", "api"], 2, "", "begins with `/`");
}

#[test]
fn a_wrong_file_is_two_and_names_the_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("leasehold.yaml");
    std::fs::write(&file, "listeners: []\nbackend: []\n").expect("written");
    let file = file.display().to_string();
    let message = format!("error: {file}:2:1: backend: there is no such key here; did you mean `backends`?");
    check(&["check", &file], 2, "", &message);
    check(&["proxy", "-c", &file], 2, "", &message);
    check(&["check", "/nonexistent.yaml"], 2, "", "there is no such file");
}

#[test]
fn a_valid_file_is_summed_up() {
    check(
        &["check", &example("rabbitmq.yaml")],
        0,
        ": ok: 1 listener, 1 backend",
        "relaxed: backends[rabbitmq].canonical.encoded_slash",
    );
    check(&["check", "--strict", &example("rabbitmq.yaml")], 2, "", "--strict was asked for");
    check(&["check", &example("rabbitmq.yaml")], 0, "", "long-lived");
}

#[test]
fn nobody_there_is_one_and_says_what_to_do() {
    // Bound and not listened to for longer than it takes to learn the number.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let url = format!("http://127.0.0.1:{port}");
    check(&["grants", "--admin", &url], 1, "", "is `leasehold proxy` running");
    check(&["status", "--admin", &url], 1, "", "connection refused");
    check(&["explain", "--admin", &url, "--principal", "https://i#s", "GET", "/"], 1, "", "cannot be reached");
}

/// Answers one request, and returns its first line.
fn answer_once(status: &'static str, body: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a head") == 1 {
            head.push(byte[0]);
        }
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).expect("an answer");
        String::from_utf8(head).expect("text").lines().next().unwrap_or_default().to_owned()
    });
    (url, thread)
}

#[test]
fn grants_are_shown() {
    let body = r#"{"grants":[{"id":"grt_1","state":"active","principal":"https://i#s"}]}"#;
    let (url, thread) = answer_once("200 OK", body);
    check(&["grants", "--admin", &url], 0, "grt_1  active  https://i#s", "");
    assert_eq!(thread.join().expect("an answer"), "GET /grants HTTP/1.1");
    let (url, _thread) = answer_once("200 OK", body);
    check(&["grants", "--admin", &url, "-o", "json"], 0, "\"id\": \"grt_1\"", "");
    let (url, _thread) = answer_once("200 OK", r#"{"grants":[]}"#);
    check(&["grants", "--admin", &url], 0, "no grants", "");
}

#[test]
fn a_call_is_explained() {
    let (url, thread) = answer_once("200 OK", r#"{"decision":"deny","reasons":["no_grant"]}"#);
    let arguments = ["explain", "--admin", &url, "--principal", "https://i#s", "-H", "a: b", "DELETE", "/q/%2F/o?x=1"];
    check(&arguments, 0, "decision  deny", "");
    assert_eq!(
        thread.join().expect("an answer"),
        "GET /explain?principal=https%3A%2F%2Fi%23s&method=DELETE&target=%2Fq%2F%252F%2Fo%3Fx%3D1&header=a%3A%20b HTTP/1.1"
    );
}

#[test]
fn an_answer_that_is_none_says_so() {
    let (url, _thread) = answer_once("200 OK", "<html>");
    check(&["status", "--admin", &url], 1, "", "is that the admin listener");
    let (url, _thread) = answer_once("404 Not Found", "");
    check(&["status", "--admin", &url], 1, "", "knows no `/status`");
    let (url, _thread) = answer_once("400 Bad Request", r#"{"detail":"there is no backend `x`"}"#);
    check(&["status", "--admin", &url], 1, "", "400 Bad Request: there is no backend `x`");
}
