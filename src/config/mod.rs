//! The only reader of files and environment.
//!
//! One YAML file, read in two stages. `raw` is its shape as written: unknown keys, keys written twice, empty keys and
//! values of the wrong type are refused there. `resolve` turns it into [`Config`]: defaults filled in, names and
//! references checked, every named file looked at, and all mistakes reported together with their lines. What comes out
//! needs no further validation, and nothing of it is used before all of it is valid; a reload works the same way and
//! keeps what runs when it fails.
//!
//! Deliberately absent: substitution of any kind (`${…}`, templates, includes, merge keys), secrets in the file (only
//! `file:` and `env:` refer to them), configuration by environment variables or flags, and a switch that turns denial
//! into permission for everything.

mod action_map;
pub mod client;
mod error;
mod files;
pub mod join;
mod notices;
mod raw;
pub mod relay;
mod resolve;
mod resolved;
mod units;

use std::path::{Path, PathBuf};

use raw::Shape;
use resolve::{Role, Source};

use crate::domain::yaml::{self, Size};

pub use error::{ConfigError, ConfigErrors};
pub use join::{Join, JoinTokenSource};
pub use notices::Notice;
pub use relay::RelayConfig;
pub use resolved::*;
pub use units::duration;

/// What a variable of the environment holds, if it is set.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Reads, resolves and validates a file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    with_file(path, |text, environment| parse_with(text, path, environment))
}

/// As [`load`], for a text at hand; `origin` is the file it came from, and relative paths start in its folder.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, origin: &Path) -> Result<Config, ConfigErrors> {
    #[allow(clippy::disallowed_methods, reason = "this is the module that reads the environment")]
    let environment = |name: &str| std::env::var(name).ok();
    parse_with(text, origin, &environment)
}

/// As [`parse`], with an environment of the caller's.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_with(text: &str, origin: &Path, environment: &Environment<'_>) -> Result<Config, ConfigErrors> {
    read(text, origin, environment, |source| source.sidecar(Role::Proxy))
}

/// As [`load`], for a control plane alone: its own section, who calls it and where operators look.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_control(path: &Path) -> Result<ControlConfig, ConfigErrors> {
    with_file(path, |text, environment| read(text, path, environment, |source| source.control(Role::Control)))
}

/// As [`load`], for a sidecar with the control plane in the same process.
///
/// # Errors
/// Everything that is wrong with either part.
pub fn load_up(path: &Path) -> Result<(Config, ControlConfig), ConfigErrors> {
    with_file(path, |text, environment| parse_up_with(text, path, environment))
}

/// As [`load_up`], for a text at hand.
///
/// # Errors
/// Everything that is wrong with either part.
pub fn parse_up_with(
    text: &str,
    origin: &Path,
    environment: &Environment<'_>,
) -> Result<(Config, ControlConfig), ConfigErrors> {
    read(text, origin, environment, |source| match (source.sidecar(Role::Up), source.control(Role::Up)) {
        (Ok(sidecar), Ok(control)) => Ok((sidecar, control)),
        (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => Err(errors),
        (Err(first), Err(second)) => Err(ConfigErrors::sorted(first.0.into_iter().chain(second.0).collect())),
    })
}

/// As [`load_control`], for a text at hand.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_control_with(
    text: &str,
    origin: &Path,
    environment: &Environment<'_>,
) -> Result<ControlConfig, ConfigErrors> {
    read(text, origin, environment, |source| source.control(Role::Control))
}

/// As [`load`], for a relay.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_relay(path: &Path) -> Result<RelayConfig, ConfigErrors> {
    with_file(path, |text, environment| parse_relay_with(text, path, environment))
}

/// As [`load_relay`], for a text at hand.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_relay_with(text: &str, origin: &Path, environment: &Environment<'_>) -> Result<RelayConfig, ConfigErrors> {
    read(text, origin, environment, |source| source.relay())
}

/// What a file is good for.
#[derive(Debug)]
pub struct Checked {
    /// A relay.
    pub relay: Option<RelayConfig>,
    /// A sidecar.
    pub sidecar: Option<Config>,
    /// A control plane.
    pub control: Option<ControlConfig>,
}

/// Validates a file for every command it is meant for: a control plane where there is a section `control`, a relay where
/// there is a section `relay`, a sidecar where there are listeners or nothing else; both in one process where the sidecar has no grants of its own.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(path: &Path) -> Result<Checked, ConfigErrors> {
    with_file(path, |text, environment| {
        let file: raw::File = yaml(text).map_err(|error| ConfigErrors::from_yaml(path, text, &error))?;
        let is_control = file.control.value().is_some();
        let is_relay = file.relay.value().is_some();
        let is_sidecar = file.listeners.value().is_some() || !(is_control || is_relay);
        let relay = is_relay.then(|| parse_relay_with(text, path, environment)).transpose()?;
        let grants = file.grants.value();
        let has_source = grants.is_some_and(|g| g.file.value().is_some() || g.control.value().is_some());
        match (is_control, is_sidecar) {
            (true, true) if !has_source => {
                let (sidecar, control) = parse_up_with(text, path, environment)?;
                Ok(Checked { relay, sidecar: Some(sidecar), control: Some(control) })
            }
            _ => Ok(Checked {
                relay,
                sidecar: is_sidecar.then(|| parse_with(text, path, environment)).transpose()?,
                control: is_control.then(|| parse_control_with(text, path, environment)).transpose()?,
            }),
        }
    })
}

fn with_file<T>(
    path: &Path,
    parse: impl FnOnce(&str, &Environment<'_>) -> Result<T, ConfigErrors>,
) -> Result<T, ConfigErrors> {
    let text = files::text(path).map_err(|message| {
        ConfigErrors::whole(path, message, Some("name a configuration file, such as `leasehold.yaml`"))
    })?;
    #[allow(clippy::disallowed_methods, reason = "this is the module that reads the environment")]
    let environment = |name: &str| std::env::var(name).ok();
    parse(&text, &environment)
}

fn read<T>(
    text: &str,
    origin: &Path,
    environment: &Environment<'_>,
    resolve: impl FnOnce(&Source<'_>) -> Result<T, ConfigErrors>,
) -> Result<T, ConfigErrors> {
    let file: raw::File = yaml(text).map_err(|error| ConfigErrors::from_yaml(origin, text, &error))?;
    let folder = origin.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory: PathBuf = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    resolve(&Source { file: &file, origin, directory, environment })
}

/// Every key that the file may have, such as `listeners[].tls.key`.
pub fn keys() -> Vec<String> {
    let mut keys = Vec::new();
    raw::File::keys("", &mut keys);
    keys
}

/// Reads one YAML document, strictly and within bounds.
fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    yaml::read(text, Size::Small)
}

#[cfg(test)]
mod tests;
