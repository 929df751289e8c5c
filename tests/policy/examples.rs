//! The worked examples of `config/control` load, alone and together, and rule as their matrices say.

use std::path::{Path, PathBuf};

use leasehold::app::policy;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/control")
}

fn examples() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

#[test]
fn each_example_rules_as_its_matrix_says() {
    let names: Vec<String> =
        examples().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["agent-retrieval", "ci-deploy", "incident-maintenance", "migration-window"]);
    for example in examples().into_iter().chain([folder()]) {
        let tested = policy::test(std::slice::from_ref(&example))
            .unwrap_or_else(|problems| panic!("{}: {problems:#?}", example.display()));
        assert_eq!(tested.failed, [], "{}", example.display());
        assert!(tested.passed >= 7, "{}: {} cases", example.display(), tested.passed);
    }
}

#[test]
fn each_example_is_sound() {
    for example in examples() {
        let checked = policy::check(std::slice::from_ref(&example)).unwrap();
        let strange: Vec<_> =
            checked.notices.iter().filter(|notice| !notice.contains("no entitlement covers")).collect();
        assert!(strange.is_empty(), "{}: {strange:?}", example.display());
    }
}
