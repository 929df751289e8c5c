//! What the shop's calls do, said by the control plane.

use crate::tools::{curl, wait_for};
use crate::world::{DOCUMENTS, World};

fn mapped(read: &str) -> String {
    format!(
        "apiVersion: leasehold/v1
kind: ActionMap
metadata: {{name: orders}}
spec:
  rules:
    - {{action: {read}, class: read, method: GET, path: '/orders/{{id}}', resource: 'orders/{{id}}'}}
    - {{action: order.delete, class: write, method: DELETE, path: '/orders/{{id}}', resource: 'orders/{{id}}'}}
---
apiVersion: leasehold/v1
kind: Backend
metadata: {{name: shop}}
spec: {{action_map: orders}}
"
    )
}

const LISTED: &str = "apiVersion: leasehold/v1
kind: Backend
metadata: {name: shop}
spec: {actions: [{name: order.delete, class: write}]}
";

#[test]
fn the_next_call_is_resolved_by_the_map_that_was_applied() {
    let world = World::mapped_by("control");
    let call = |method: &str, status: u16| {
        let name = format!("{method} to give {status}");
        wait_for(&name, || (world.call("bot", method, "/orders/1") == status).then_some(()));
    };
    let ready = || curl(&[&format!("{}/readyz", world.admin)]);
    call("GET", 503);
    assert!(ready().body.contains("the control plane has not said the action map of `shop`"));

    let admin = world.admin();
    world.write("documents.yaml", &format!("{}---{DOCUMENTS}", mapped("order.read")));
    admin.ok(&["apply", "-f", "documents.yaml"]);
    call("GET", 403);
    wait_for("readiness", || (ready().status == 200).then_some(()));
    let request = world.person("bot").asks(&["clean-up"]);
    world.person("bob").ok(&["approve", &request, "--yes"]);
    call("GET", 200);
    call("DELETE", 200);

    // The grant is on `order.*`: what reads an order is another action from now on.
    world.write("changed.yaml", &mapped("audit.read"));
    admin.ok(&["apply", "-f", "changed.yaml"]);
    call("GET", 403);
    call("DELETE", 200);

    // What no sidecar could use is refused before any of them hears of it.
    let twice = mapped("order.read").replace("method: DELETE", "method: GET");
    world.write("bad.yaml", &twice);
    admin.fails(1, &["apply", "-f", "bad.yaml"], "ActionMap `orders`: spec: rules[1]: it never matches");
    call("DELETE", 200);

    // Whoever declares it by its actions alone leaves the sidecar without a map.
    world.write("listed.yaml", LISTED);
    admin.ok(&["apply", "-f", "listed.yaml"]);
    call("DELETE", 503);
    wait_for("unreadiness", || ready().body.contains("the Backend `shop` names no action map").then_some(()));
    admin.ok(&["apply", "-f", "changed.yaml"]);
    call("DELETE", 200);
}
