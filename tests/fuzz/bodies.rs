//! What each fuzz target does with arbitrary bytes. cargo-fuzz (`fuzz/`) and the property tests (`tests/fuzz.rs`) run
//! the same bodies.

use std::path::Path;
use std::sync::OnceLock;

use leasehold::sidecar::resolve::ActionMap;

/// A target has one canonical spelling, and that is its own.
pub fn canonical(bytes: &[u8]) {
    leasehold::sidecar::canonical::fuzz(bytes);
}

/// A map is refused or usable; a call and a body against the shipped maps are decided, never a panic.
pub fn action_map(bytes: &[u8]) {
    static MAPS: OnceLock<Vec<ActionMap>> = OnceLock::new();
    let maps = MAPS.get_or_init(|| {
        let builtin = |name| leasehold::sidecar::resolve::builtin(name).expect("a shipped map");
        ["etcd", "rabbitmq"].map(|name| ActionMap::from_yaml(builtin(name)).expect("it loads")).into()
    });
    for map in maps {
        leasehold::sidecar::resolve::fuzz(map, bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        match ActionMap::from_yaml(text) {
            Ok(map) => leasehold::sidecar::resolve::fuzz(&map, bytes),
            Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty()),
        }
    }
}

/// A configuration is refused with its mistakes, or taken.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(errors) = leasehold::config::parse(text, Path::new("/nonexistent/leasehold.yaml"))
    {
        assert!(!errors.0.is_empty() && errors.0.iter().all(|error| !error.to_string().is_empty()));
    }
}

/// A grants file is refused with a place, or taken.
pub fn grants(bytes: &[u8]) {
    use leasehold::sidecar::sync::document::{Format, read};
    for format in [Format::Yaml, Format::JsonLines] {
        if let Err(error) = read(format, bytes) {
            assert!(!error.to_string().is_empty());
        }
    }
}
