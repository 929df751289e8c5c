//! What sidecars are told of the action maps of backends.

use leasehold::action_map::BackendBundle;
use leasehold::wire::v1;
use leasehold::wire::v1::client_frame::Frame as Said;
use leasehold::wire::v1::server_frame::Frame;
use serde_json::{Value, json};
use tonic::Code;

use crate::follower::{Follower, subscribe};
use crate::world::World;

fn map(action: &str) -> Value {
    json!({"rules": [{"action": action, "class": "read", "method": "GET", "path": "/x", "resource": "x"}]})
}

fn document(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "leasehold/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn backend(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["sidecars"] = json!(["spiffe://prod.test/sidecar/all", "spiffe://prod.test/sidecar/shop-*"]);
    document("Backend", "shop", &spec)
}

fn apply(world: &World, documents: &[Value]) {
    world.done("local", "POST", "/v1/apply", &json!({"documents": documents}));
}

/// Follows both backends, and takes the action maps of these from there.
fn wanting(backends: &[&str]) -> v1::Subscribe {
    let action_maps = backends.iter().map(|backend| (*backend).to_owned()).collect();
    v1::Subscribe { action_maps, ..subscribe(&["shop", "bank"]) }
}

/// What came of backends, in its order; all that was known before is said.
async fn heard(follower: &mut Follower) -> Vec<(String, Option<String>)> {
    follower.ping().await;
    let bundles = std::mem::take(&mut follower.bundles);
    let of_backends = bundles.into_iter().filter(|bundle| bundle.name.starts_with("backend/"));
    let said = of_backends.map(|bundle| {
        let map = BackendBundle::unpack(&bundle.digest, &bundle.content).unwrap().action_map;
        (bundle.name, map.map(|named| format!("{}: {}", named.name, named.map.rules[0].action)))
    });
    said.collect()
}

fn of_shop(said: &str) -> (String, Option<String>) {
    ("backend/shop".to_owned(), Some(said.to_owned()).filter(|said| !said.is_empty()))
}

#[test]
fn a_map_is_told_to_who_wants_it_when_it_changes_and_before_what_comes_after_it() {
    let world = World::start();
    apply(&world, &[document("ActionMap", "m", &map("read")), backend(&json!({"action_map": "m"}))]);
    let (mut one, mut other) = (world.sidecar("all"), world.sidecar("all"));
    world.runtime.block_on(async {
        one.follow(wanting(&["shop"])).await.unwrap();
        other.follow(wanting(&["bank"])).await.unwrap();
        one.snapshot().await;
        other.snapshot().await;
        assert_eq!(heard(&mut one).await, [of_shop("m: read")]);
        assert_eq!(heard(&mut other).await, [("backend/bank".to_owned(), None)], "it names no map");
    });
    // What nobody's map says changes nothing for them; the same again changes nothing at all.
    apply(&world, &[document("ActionMap", "other", &map("read")), document("ActionMap", "m", &map("read"))]);
    assert_eq!(world.runtime.block_on(heard(&mut one)), []);
    let mut changed = map("read");
    changed["rules"][0]["path"] = json!("/y");
    apply(&world, &[document("ActionMap", "m", &changed)]);
    let grant = world.grant("shop-read");
    world.runtime.block_on(async {
        loop {
            let Some(Frame::Delta(delta)) = one.next().await.unwrap() else { continue };
            let is_it =
                |change: &v1::Change| matches!(&change.change, Some(v1::change::Change::Grant(g)) if g.id == grant);
            if delta.changes.iter().any(is_it) {
                break;
            }
        }
        assert!(one.bundles.iter().any(|bundle| bundle.name == "backend/shop"), "the grant came before the map");
        assert_eq!(heard(&mut one).await, [of_shop("m: read")]);
        assert_eq!(heard(&mut other).await, []);
    });
    apply(&world, &[backend(&json!({"action_map": "other"}))]);
    assert_eq!(world.runtime.block_on(heard(&mut one)), [of_shop("other: read")]);
    apply(&world, &[backend(&json!({"actions": [{"name": "read", "class": "read"}]}))]);
    assert_eq!(world.runtime.block_on(heard(&mut one)), [of_shop("")]);
}

#[test]
fn who_holds_a_map_is_not_told_it_again_and_nobody_asks_for_more_than_they_follow() {
    let world = World::start();
    apply(&world, &[document("ActionMap", "m", &map("read")), backend(&json!({"action_map": "m"}))]);
    let mut first = world.sidecar("shop-1");
    let wanting = v1::Subscribe { action_maps: vec!["shop".to_owned()], ..subscribe(&["shop"]) };
    let held = world.runtime.block_on(async {
        first.follow(wanting.clone()).await.unwrap();
        first.snapshot().await;
        let held = first.bundles.iter().find(|bundle| bundle.name == "backend/shop").unwrap().clone();
        let nack = v1::Nack { name: held.name.clone(), digest: held.digest.clone(), error: "no".to_owned() };
        first.say(Said::Nack(nack)).await;
        first.ping().await;
        held
    });
    let mut second = world.sidecar("shop-1");
    let bundles = vec![v1::BundleRef { name: held.name, digest: held.digest }];
    world.runtime.block_on(async {
        second.follow(v1::Subscribe { bundles, ..wanting }).await.unwrap();
        second.snapshot().await;
        assert_eq!(heard(&mut second).await, []);
    });
    for wanted in ["bank", "", "no such"] {
        let mut greedy = world.sidecar("shop-1");
        let wanting = v1::Subscribe { action_maps: vec![wanted.to_owned()], ..subscribe(&["shop"]) };
        let refused = world.runtime.block_on(greedy.follow(wanting)).unwrap_err();
        assert_eq!((refused.code(), refused.message().contains("action_maps")), (Code::InvalidArgument, true));
    }
}
