//! Where server and token come from: flag over environment over file over what lies here.

use crate::issuer::Issuer;
use crate::world::{Person, World};

#[test]
fn flag_over_environment_over_file() {
    let world = World::new();
    let home = world.folder().join("home");
    std::fs::create_dir_all(home.join(".config/leasehold")).unwrap();
    let me =
        |person: &Person, words: &[&str]| person.ok(&[&["whoami"], words].concat()).lines().next().unwrap().to_owned();
    let token = |name: &str| {
        let person = world.person(name);
        let text = person.variables.iter().find(|(variable, _)| *variable == "LEASEHOLD_TOKEN").unwrap().1.clone();
        std::fs::write(home.join(name), text + "\n").unwrap();
        home.join(name).display().to_string()
    };
    let file = format!("server: {}\ntoken_file: {}\n", world.url, token("alice"));
    std::fs::write(home.join(".config/leasehold/cli.yaml"), file).unwrap();
    let person = Person::at(&home);
    assert_eq!(me(&person, &[]), "https://idp.test#alice");
    let person = person.with("LEASEHOLD_TOKEN_FILE", &token("bob"));
    assert_eq!(me(&person, &[]), "https://idp.test#bob");
    assert_eq!(me(&person, &["--token-file", &token("carol")]), "https://idp.test#carol");
    // Before the command they mean the same.
    let before = person.ok(&["--token-file", &token("carol"), "--server", &world.url, "whoami"]);
    assert!(before.starts_with("https://idp.test#carol\n"), "{before}");
    let admin = world.folder().join("leasehold.data/admin.token").display().to_string();
    let nested = person.ok(&["--token-file", &admin, "audit", "verify"]);
    assert!(nested.starts_with("entries 1 to "), "{nested}");
    for words in [["--server", "x", "check", "x"], ["check", "--server", "x", "x"]] {
        person.fails(2, &words, "are for commands that ask a control plane");
    }
    person.with("LEASEHOLD_TOKEN", "x").fails(2, &["whoami"], "unset one of them");
}

#[test]
fn the_local_admins_token_is_found_where_up_was_started() {
    let world = World::empty();
    assert!(world.folder().join("leasehold.data/admin.token").exists());
    assert!(world.admin().ok(&["whoami"]).starts_with("urn:leasehold:local#admin\n"));
    let elsewhere = world.folder().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let person = Person::at(&elsewhere).with("LEASEHOLD_SERVER", &world.url);
    person.fails(1, &["whoami"], "leasehold login");
}

#[test]
fn what_is_wrong_with_the_settings_is_two() {
    let folder = tempfile::tempdir().unwrap();
    let person = Person::at(folder.path());
    person.fails(2, &["whoami", "--token-file", "nothing"], "there is no such file");
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    person.fails(2, &["whoami", "--token-file", "empty"], "this is no token");
    std::fs::create_dir_all(folder.path().join(".config/leasehold")).unwrap();
    std::fs::write(folder.path().join(".config/leasehold/cli.yaml"), "sever: x\n").unwrap();
    person.fails(2, &["whoami"], "cli.yaml:1:1: sever: there is no such key here");
}

#[test]
fn who_logs_in_must_be_believed() {
    let folder = tempfile::tempdir().unwrap();
    let person = Person::at(folder.path());
    std::fs::write(folder.path().join("keys.json"), Issuer::new("idp").jwks()).unwrap();
    let write = |issuer: &str| {
        let text = format!(
            "control:\n  address: 127.0.0.1:0\n  login:\n    issuer: https://idp.test\n    client_id: cli\nadmin: {{address: 127.0.0.1:0}}\nidentity: {{issuers: [{{name: idp, issuer: '{issuer}', audience: [cli], algorithm: EdDSA, keys: {{file: keys.json}}}}]}}\n"
        );
        std::fs::write(folder.path().join("leasehold.yaml"), text).unwrap();
    };
    for other in ["https://idp.test/", "https://elsewhere.test"] {
        write(other);
        for words in [&["check", "leasehold.yaml"][..], &["control", "-c", "leasehold.yaml"]] {
            let said =
                person.fails(2, words, "leasehold.yaml:4:13: control.login.issuer: `https://idp.test` is no issuer");
            assert!(said.err.contains("issuer: https://idp.test, audience: [cli]"), "what to write: {said:?}");
        }
    }
    write("https://idp.test");
    person.ok(&["check", "leasehold.yaml"]);
}
