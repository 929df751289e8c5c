//! One exact call, as it is typed: digested, asked for, compared, agreed to and made.

use crate::tools::wait_for;
use crate::world::World;

/// What the shell of whoever reads the documentation makes of it: the same bytes, hashed by another program.
fn by_hand(line: &str) -> String {
    let script = format!("printf '{line}' | sha256sum | cut -d' ' -f1");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    format!("sha256:{}", String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_call_is_digested_asked_for_and_agreed_to() {
    let world = World::new();
    let (bot, bob) = (world.person("bot"), world.person("bob"));
    let call = bot.ok(&["digest", "DELETE", "/orders/17"]);
    assert_eq!(call, by_hand(r"DELETE /orders/17\n\n"));
    let call = call.trim();
    let id = bot.asks(&["clean-up", "--uses", "1", "--arguments", call]);
    let lets = format!("of backend shop, in the one call {call}, for 30m from when it is approved, once, for no task.");
    assert!(bob.ok(&["show", &id]).contains(call));
    let said = bob.says(&["approve", &id, "--yes"]);
    assert!(said.code == Some(0) && said.err.contains(&lets), "{said:?}");
    wait_for("the grant at the sidecar", || (world.call("bot", "DELETE", "/orders/17") == 200).then_some(()));
    assert_eq!(world.call("bot", "DELETE", "/orders/17"), 403);

    let id = bot.asks(&["clean-up"]);
    let grant = bob.json(&["approve", &id, "--yes"])["grant_id"].as_str().unwrap().to_owned();
    let said = bot.says(&["reduce", &grant, "--arguments", call]);
    assert!(said.out.contains(call) && said.err.contains("took the place of"), "{said:?}");
    let listed = bot.ok(&["grants", "--mine", "--state", "active"]);
    assert!(listed.contains("orders/** (one call)"), "{listed}");
    wait_for("the narrower grant", || (world.call("bot", "DELETE", "/orders/18") == 403).then_some(()));
    let known = world.admin().ok(&["grants", "--admin", &world.admin]);
    assert!(known.contains("orders/** (one call)"), "{known}");
    let words = ["explain", "--admin", &world.admin, "--principal", "https://idp.test#bot", "DELETE", "/orders/18"];
    let explained = bot.ok(&words);
    assert!(explained.contains("arguments_differ") && explained.contains("depends_on"), "{explained}");
}

#[test]
fn a_digest_is_that_of_the_bytes_and_a_mistake_is_told() {
    let world = World::empty();
    let bot = world.person("bot");
    world.write("query.json", "{\"q\":1}\n");
    let words = ["digest", "POST", "/search?%6C=1", "--content-type", "application/json", "--body", "query.json"];
    assert_eq!(bot.ok(&words), by_hand(r#"POST /search?%%6C=1\napplication/json\n{"q":1}\n"#));
    bot.fails(2, &["digest", "POST", "search"], "the path begins with `/`");
    bot.fails(2, &["digest", "POST", "/a/../b"], "no sidecar lets this call through");
    bot.fails(2, &["digest", "POST", "/a", "--body", "missing.json"], "--body missing.json");
    bot.fails(2, &["request", "clean-up", "--arguments", "4711"], "write `sha256:` and 64 digits");
}
