//! What the control plane counts, as Prometheus reads it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::tools::{curl, program};
use crate::world::{Control, World};

/// The value of one series; 0 where it is not there.
fn value(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

fn read(admin: &str) -> String {
    let answer = curl(&[&format!("{admin}/metrics")]);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[test]
fn what_is_decided_is_counted_once_it_is_durable() {
    let world = World::new();
    let id = world.person("bot").asks(&["clean-up"]);
    world.person("bot").fails(1, &["approve", &id, "--yes"], "own request");
    world.person("bob").ok(&["approve", &id, "--yes"]);
    world.person("bot").fails(3, &["request", "clean-up", "--dry-run"], "");
    let metrics = read(&world.admin);
    let event = |event: &str| value(&metrics, &format!("leasehold_control_events_total{{event=\"{event}\"}}"));
    assert_eq!(
        ["request.pending", "request.approved", "grant.active", "request.denied"].map(event),
        [1, 1, 1, 0],
        "{metrics}"
    );
    let entries = world.admin().json(&["audit", "list"]).as_array().unwrap().len();
    let events = metrics.lines().filter(|line| line.starts_with("leasehold_control_events_total{"));
    let counted: usize = events.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(counted, entries, "as many as there are entries:\n{metrics}");
    assert!(value(&metrics, "leasehold_store_commit_batch_size_count") >= 3, "{metrics}");
    assert_eq!(
        value(&metrics, "leasehold_store_commit_seconds_count"),
        value(&metrics, "leasehold_store_commit_batch_size_count")
    );
    // The sidecar beside it is on the same page.
    assert!(metrics.contains("leasehold_view_age_seconds"), "{metrics}");
}

#[test]
fn calls_are_counted_by_route_and_never_by_what_was_written() {
    let control = Control::start("identity: {spiffe: []}\n", "");
    let call = |method: &str, path: &str| curl(&["-X", method, &format!("{}{path}", control.url)]).status;
    for n in 0..20 {
        assert_eq!(call("GET", &format!("/v1/grants/secret-{n}")), 401);
        assert_eq!(call("GET", &format!("/secret-{n}")), 404);
        assert_eq!(call(&format!("SECRET{n}"), "/v1/grants"), 405);
    }
    assert_eq!(call("GET", "/v1/openapi.json?secret=1"), 200);
    let metrics = read(&control.admin);
    let calls = |route: &str, method: &str, status: &str| {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        value(&metrics, &format!("leasehold_control_api_requests_total{{{labels}}}"))
    };
    assert_eq!(calls("/v1/grants/{id}", "GET", "401"), 20, "{metrics}");
    assert_eq!(calls("none", "GET", "404"), 20, "{metrics}");
    assert_eq!(calls("/v1/grants", "other", "405"), 20, "{metrics}");
    assert_eq!(calls("/v1/openapi.json", "GET", "200"), 1, "{metrics}");
    let seconds = "leasehold_control_api_request_seconds_count{route=\"/v1/grants/{id}\"}";
    assert_eq!(value(&metrics, seconds), 20, "{metrics}");
    assert!(!metrics.to_ascii_lowercase().contains("secret"), "{metrics}");
}

#[test]
fn a_caller_who_leaves_is_counted_too() {
    let world = World::new();
    let id = world.person("bot").asks(&["clean-up"]);
    let token = std::fs::read_to_string(world.folder().join("leasehold.data/admin.token")).unwrap();
    let mut stream = std::net::TcpStream::connect(world.url.trim_start_matches("http://")).unwrap();
    let head = format!("GET /v1/requests/{id}?wait=60s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let becomes = |series: &str, wanted: u64| {
        crate::tools::wait_for(series, || (value(&read(&world.admin), series) == wanted).then_some(()));
    };
    // One who leaves before the call was read has made none.
    let running = "leasehold_control_api_requests_running{route=\"/v1/requests/{id}\"}";
    becomes(running, 1);
    drop(stream);
    becomes("leasehold_control_api_requests_total{method=\"GET\",route=\"/v1/requests/{id}\",status=\"gone\"}", 1);
    becomes(running, 0);
}

#[test]
fn they_are_as_the_tools_want_them() {
    let world = World::new();
    world.person("bot").asks(&["clean-up"]);
    world.call("bot", "GET", "/orders/1");
    let control = Control::start("identity: {spiffe: []}\n", "");
    control.admin().ok(&["whoami"]);
    for metrics in [read(&world.admin), read(&control.admin)] {
        let mut check = Command::new(program("promtool"))
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
        let checked = check.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && said.trim().is_empty(), "{said}");
        assert!(metrics.contains("leasehold_control_events_total{event=\"login\"} 1"), "{metrics}");
    }
}
