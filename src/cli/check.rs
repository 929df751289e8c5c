//! `leasehold check`.

use std::path::Path;

use super::{Failure, print};
use crate::config::{Checked, Config, ControlConfig};

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Prints what a valid configuration amounts to.
pub(super) fn check(file: &Path, checked: &Checked, strict: bool) -> Result<(), Failure> {
    let relaxations: Vec<_> = checked
        .sidecar
        .iter()
        .flat_map(Config::relaxations)
        .chain(checked.control.iter().flat_map(ControlConfig::relaxations))
        .collect();
    let warnings: Vec<_> = checked.sidecar.iter().flat_map(Config::warnings).collect();
    for notice in &relaxations {
        print::notice("relaxed", &notice.to_string());
    }
    for notice in &warnings {
        print::notice("warning", &notice.to_string());
    }
    let found = relaxations.len() + warnings.len();
    if strict && found > 0 {
        let found = count(found, "setting", "settings");
        print::error(&format!("{}: {found} named above, and --strict was asked for", file.display()));
        return Err(Failure::NotStrict);
    }
    let mut parts = Vec::new();
    if let Some(config) = &checked.sidecar {
        parts.push(count(config.listeners.len(), "listener", "listeners"));
        parts.push(count(config.backends.len(), "backend", "backends"));
    }
    let identity = checked.sidecar.as_ref().map(|c| &c.identity).or(checked.control.as_ref().map(|c| &c.identity));
    if let Some(identity) = identity {
        let sources = identity.spiffe.len() + identity.issuers.len();
        parts.push(count(sources, "source of identity", "sources of identity"));
    }
    if let Some(config) = &checked.sidecar {
        parts.push(count(config.credentials.len(), "credential", "credentials"));
    }
    if checked.control.is_some() {
        parts.push("a control plane".to_owned());
    }
    if let Some(relay) = &checked.relay {
        parts.push(format!("a relay of {}", count(relay.backends.len(), "backend", "backends")));
    }
    parts.push(count(relaxations.len(), "relaxation", "relaxations"));
    print::out(&print::safe(&format!("{}: ok: {}\n", file.display(), parts.join(", "))));
    Ok(())
}
