//! `leasehold check`.

use super::{Failure, print};
use crate::config::Config;

/// Prints what a valid configuration amounts to.
pub(super) fn check(config: &Config, strict: bool) -> Result<(), Failure> {
    let (relaxations, warnings) = (config.relaxations(), config.warnings());
    for notice in &relaxations {
        print::notice("relaxed", &notice.to_string());
    }
    for notice in &warnings {
        print::notice("warning", &notice.to_string());
    }
    let count = |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
    let found = relaxations.len() + warnings.len();
    if strict && found > 0 {
        let found = count(found, "setting", "settings");
        print::error(&format!("{}: {found} named above, and --strict was asked for", config.origin.display()));
        return Err(Failure::NotStrict);
    }
    print::out(&print::safe(&format!(
        "{}: ok: {}, {}, {}, {}, {}\n",
        config.origin.display(),
        count(config.listeners.len(), "listener", "listeners"),
        count(config.backends.len(), "backend", "backends"),
        count(
            config.identity.spiffe.len() + config.identity.issuers.len(),
            "source of identity",
            "sources of identity"
        ),
        count(config.credentials.len(), "credential", "credentials"),
        count(relaxations.len(), "relaxation", "relaxations"),
    )));
    Ok(())
}
