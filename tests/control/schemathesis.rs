//! The API against its own description, called by schemathesis: what it says is what it does, whatever is sent.

use std::process::Command;

use crate::plane::Plane;

/// What an answer is held to. What is well-formed may still be refused, so that is not among them.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth,\
                      missing_required_header";

#[test]
fn the_api_is_as_it_is_described() {
    let program = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/schemathesis");
    assert!(program.exists(), "schemathesis is not installed: run `scripts/test --install`");
    let plane = Plane::start();
    let output = Command::new(program)
        .arg("run")
        .arg(format!("http://{}/v1/openapi.json", plane.api))
        .args(["--header", &format!("Authorization: Bearer {}", plane.local)])
        .args(["--checks", CHECKS, "--max-examples", "20", "--seed", "20261125"])
        // It has no end.
        .args(["--exclude-path", "/v1/watch"])
        .args(["--warnings", "off", "--no-color"])
        .current_dir(plane.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Fuzzing") && said.contains("Stateful"), "{said}");
    plane.record();
}
