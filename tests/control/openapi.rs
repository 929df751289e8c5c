//! The description of the API is what is served and what is checked in.

use leasehold::control::api::document;
use serde_json::Value;

use crate::plane::Plane;

#[test]
fn the_description_is_served_and_checked_in() {
    let described = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &described).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == described,
        "docs/openapi.json is not what the program says: run this test with UPDATE_OPENAPI=1"
    );
    let plane = Plane::start();
    let served = plane.send("GET", "/v1/openapi.json", "", b"").json();
    assert_eq!(served, serde_json::from_str::<Value>(&checked_in).unwrap());
    assert_eq!(served["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
}
