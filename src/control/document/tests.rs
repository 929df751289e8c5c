//! `docs/documents.md` has every field of every kind; what is refused is tested in `tests/policy`.

use std::collections::BTreeSet;

use super::*;
use crate::action_map::document::RuleDocument;

/// The fields of a struct, from what serde says to one that is not there.
fn fields<T: DeserializeOwned + fmt::Debug>() -> Vec<String> {
    let error = serde_json::from_str::<T>(r#"{"?": null}"#).expect_err("there is no such field").to_string();
    let expected = error.split("expected ").nth(1).expect("it names those that there are");
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn below(path: &str, fields: Vec<String>) -> Vec<String> {
    fields.into_iter().map(|field| format!("{path}{field}")).collect()
}

/// The first cell of each row in a section.
fn rows(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split('`').nth(1)).map(str::to_owned).collect()
}

#[test]
fn the_page_has_a_row_for_each_field() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/documents.md");
    let page = std::fs::read_to_string(path).expect("a readable page");
    for (heading, known) in [
        ("The envelope", [fields::<Document>(), below("metadata.", fields::<Metadata>())].concat()),
        ("ActionMap", [fields::<ActionMapDocument>(), below("rules[].", fields::<RuleDocument>())].concat()),
        ("Backend", [fields::<BackendSpec>(), below("actions[].", fields::<NamedAction>())].concat()),
        ("Principal", fields::<PrincipalSpec>()),
        (
            "Entitlement",
            [
                fields::<entitlement::EntitlementSpec>(),
                below("approval.", fields::<entitlement::ApprovalSpec>()),
                below("approval.steps[].", fields::<crate::domain::entitlement::Step>()),
            ]
            .concat(),
        ),
        ("Policy", fields::<PolicySpec>()),
    ] {
        assert_eq!(rows(&page, heading), known.into_iter().collect::<BTreeSet<_>>(), "{heading}");
    }
    for kind in Kind::ALL {
        assert!(page.contains(&format!("\n## {kind}\n")), "{kind} has no section");
    }
}

#[test]
fn a_rule_of_a_shipped_map_is_a_rule_here() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/backends");
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a readable map");
        let spec: serde_json::Value = parse_yaml(&text).expect("a map");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let metadata = Metadata { name, labels: BTreeMap::new(), generation: None };
        let document = Document { api_version: API_VERSION.to_owned(), kind: Kind::ActionMap, metadata, spec };
        assert!(matches!(document.read(), Ok(Spec::ActionMap(actions, _)) if actions.len() > 10), "{}", path.display());
    }
}
