//! A sidecar on another machine, as README shows it.

use serde_json::Value;

use crate::tools::wait_for;
use crate::world::{Control, serve};

const DOCUMENTS: &str = r#"
apiVersion: leasehold/v1
kind: Backend
metadata: {name: shop}
spec: {actions: [{name: order.read, class: read}], sidecars: ["spiffe://prod.example/sidecar/shop-*"]}
"#;

const ACTIONS: &str =
    "rules:\n  - {action: order.read, class: read, method: GET, path: '/orders/{id}', resource: 'orders/{id}'}\n";

/// What README shows after its mark: each command, and what it prints.
fn shown() -> Vec<(String, Vec<String>)> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let block = readme.split("<!-- sidecars -->\n```\n").nth(1).unwrap().split("```").next().unwrap();
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => all.push((command.to_owned(), Vec::new())),
            None => all.last_mut().unwrap().1.push(line.to_owned()),
        }
    }
    all
}

/// Without what differs from run to run: ids, numbers, and the width of columns.
fn settled(line: &str) -> String {
    let words = line.split_whitespace().map(|word| match word {
        word if word.starts_with("lck_") => "ID".to_owned(),
        word if word.ends_with('s') && word.trim_end_matches('s').parse::<u32>().is_ok() => "SECONDS".to_owned(),
        word if word.parse::<u32>().is_ok() => "NUMBER".to_owned(),
        word => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_sidecar_joins_follows_and_enforces_as_readme_shows() {
    let sync =
        ", documents: [documents.yaml], sync: {address: 127.0.0.1:0, trust_domain: prod.example, names: [127.0.0.1]}";
    let control = Control::start_on(3, &[("documents.yaml", DOCUMENTS)], "", sync);
    let follows = wait_for("where sidecars follow", || {
        let log = std::fs::read_to_string(control.folder().join("log")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = lines
            .map(|said| said.get("fields").unwrap_or(&said).clone())
            .find(|f| f["message"] == "listening for sidecars");
        found.map(|fields| fields["address"].as_str().unwrap().to_owned())
    });
    let admin = control.admin();
    let all = shown();
    let commands: Vec<&str> = all.iter().map(|(command, _)| command.as_str()).collect();
    assert_eq!(commands[0], "leasehold sidecar join-token shop-1 > token");
    let token = admin.ok(&["sidecar", "join-token", "shop-1"]);
    let there = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(there.path().join(name), text).unwrap();
    write("token", &token);
    write("actions.yaml", ACTIONS);
    write("secret", "s");
    let authority = std::fs::read_to_string(control.folder().join("leasehold.data/authority/ca.pem")).unwrap();
    write("ca.pem", &authority);
    write(
        "leasehold.yaml",
        &format!(
            "listeners: [{{name: shop, address: 127.0.0.1:0, backends: [shop]}}]\nadmin: {{address: 127.0.0.1:0}}\nidentity: {{spiffe: [{{trust_domain: prod.example, bundle: ca.pem}}]}}\nbackends: [{{name: shop, upstream: 'http://127.0.0.1:1', action_map: actions.yaml, credential: shop}}]\ncredentials: [{{name: shop, source: {{file: secret}}, inject: {{bearer: true}}}}]\naudit: {{directory: audit}}\ngrants: {{control: {{addresses: ['https://{follows}'], join: {{token: {{file: token}}, folder: identity}}}}}}\n"
        ),
    );
    assert_eq!(commands[1], "leasehold proxy -c sidecar.yaml &");
    let (_sidecar, _) = serve("proxy", there.path(), 2);
    assert_eq!(commands[2], "leasehold sidecars");
    let expected: Vec<String> = all[2].1.iter().map(|line| settled(line)).collect();
    wait_for("a sidecar that follows", || {
        let printed = admin.ok(&["sidecars"]);
        let printed: Vec<String> = printed.lines().map(settled).collect();
        (printed == expected).then_some(())
    });
    assert_eq!(commands[3], "leasehold lock --backend shop --message \"see OPS-9\" --wait");
    let printed = admin.ok(&["lock", "--backend", "shop", "--message", "see OPS-9", "--wait"]);
    let printed: Vec<String> = printed.lines().map(settled).collect();
    assert_eq!(printed, all[3].1.iter().map(|line| settled(line)).collect::<Vec<_>>());
}
