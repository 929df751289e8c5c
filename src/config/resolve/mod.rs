//! From the file's shape to resolved values: every section is read to its end, so that one run names every mistake.

mod backends;
mod control;
mod credentials;
mod identity;
mod listeners;
mod relay;
mod service;
mod source;
mod sync;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ConfigError, nearest};
use super::files::{self, Side};
use super::raw::{Count, Field, File, Flag, List, Text};
use super::relay::RelayConfig;
use super::resolved::{Config, ControlConfig};
use super::{ConfigErrors, Environment, units};

/// A key and where its value stands.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    path: String,
    place: Option<(u32, u32)>,
}

impl Spot {
    /// The file as a whole.
    fn root() -> Self {
        Self { path: String::new(), place: None }
    }

    /// A key below this one; where it is not written, this one's place stands for it.
    fn key<T>(&self, name: &str, field: &Field<T>) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, place: field.place().or(self.place) }
    }

    /// An element of the list here.
    fn item<T>(&self, index: usize, field: &Field<T>) -> Self {
        Self { path: format!("{}[{index}]", self.path), place: field.place().or(self.place) }
    }
}

/// Reads values and gathers what is wrong with them.
pub(super) struct Resolver<'a> {
    origin: &'a Path,
    directory: PathBuf,
    role: Role,
    /// Whether grants come from a control plane.
    follows_control: bool,
    environment: &'a Environment<'a>,
    errors: Vec<ConfigError>,
    /// Names of credentials and backends as written, so that a mistake in one is not reported again by who refers to it.
    written: Written,
}

#[derive(Default)]
struct Written {
    credentials: Vec<String>,
    backends: Vec<String>,
}

/// What the process will be, and so which sections must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A sidecar.
    Proxy,
    /// A control plane.
    Control,
    /// Both.
    Up,
    /// Between the two.
    Relay,
}

/// A file and where it lies.
pub(super) struct Source<'a> {
    /// The file as it is written.
    pub(super) file: &'a File,
    /// Its name, for messages.
    pub(super) origin: &'a Path,
    /// Its folder; relative paths start there.
    pub(super) directory: PathBuf,
    /// The environment.
    pub(super) environment: &'a Environment<'a>,
}

impl Source<'_> {
    /// Resolves what a sidecar needs.
    pub(super) fn sidecar(&self, role: Role) -> Result<Config, ConfigErrors> {
        self.resolve(role, |resolver| resolver.file(self.file))
    }

    /// Resolves what a control plane needs.
    pub(super) fn control(&self, role: Role) -> Result<ControlConfig, ConfigErrors> {
        self.resolve(role, |resolver| resolver.control_file(self.file))
    }

    /// Resolves what a relay needs.
    pub(super) fn relay(&self) -> Result<RelayConfig, ConfigErrors> {
        self.resolve(Role::Relay, |resolver| resolver.relay_file(self.file))
    }

    fn resolve<T>(&self, role: Role, read: impl FnOnce(&mut Resolver<'_>) -> Option<T>) -> Result<T, ConfigErrors> {
        let mut resolver = Resolver {
            origin: self.origin,
            directory: self.directory.clone(),
            role,
            follows_control: role == Role::Up
                || self.file.grants.value().is_some_and(|grants| grants.control.value().is_some()),
            environment: self.environment,
            errors: Vec::new(),
            written: Written::of(self.file),
        };
        let resolved = read(&mut resolver);
        match resolved {
            Some(resolved) if resolver.errors.is_empty() => Ok(resolved),
            _ => {
                debug_assert!(!resolver.errors.is_empty(), "a missing value without an error");
                Err(ConfigErrors::sorted(resolver.errors))
            }
        }
    }
}

impl Written {
    fn of(file: &File) -> Self {
        let credentials = file.credentials.value().into_iter().flatten();
        let backends = file.backends.value().into_iter().flatten();
        Self {
            credentials: credentials.filter_map(|c| c.value()?.name.value().cloned()).collect(),
            backends: backends.filter_map(|b| b.value()?.name.value().cloned()).collect(),
        }
    }
}

impl Resolver<'_> {
    fn file(&mut self, file: &File) -> Option<Config> {
        let root = Spot::root();
        let credentials = self.credentials(&root.key("credentials", &file.credentials), &file.credentials);
        let backends = self.backends(&root.key("backends", &file.backends), &file.backends, &credentials);
        let listeners = self.listeners(&root.key("listeners", &file.listeners), &file.listeners, &backends);
        let identity = self.identity(&root.key("identity", &file.identity), file.identity.value());
        let grants = self.grants(&root.key("grants", &file.grants), file.grants.value());
        let audit = self.audit(&root.key("audit", &file.audit), file.audit.value());
        let access_log = self.access_log(&root, &file.access_log);
        let admin = self.admin(&root.key("admin", &file.admin), file.admin.value());
        let workers = self.workers(&root, &file.workers);
        let drain_timeout = self.duration(&root, "drain_timeout", &file.drain_timeout, "30s", "0s", "1h");
        Some(Config {
            listeners,
            identity: identity?,
            backends,
            credentials,
            grants: grants?,
            audit,
            access_log,
            admin,
            workers,
            drain_timeout,
            origin: self.origin.to_owned(),
        })
    }

    /// Notes a mistake.
    fn fail(&mut self, spot: &Spot, message: impl Display, hint: impl Display) {
        let hint = hint.to_string();
        self.errors.push(ConfigError {
            origin: self.origin.to_owned(),
            line: spot.place.map(|(line, _)| line),
            column: spot.place.map(|(_, column)| column),
            field: spot.path.clone(),
            message: message.to_string(),
            hint: (!hint.is_empty()).then_some(hint),
        });
    }

    /// A text as it stands, if the key is there and the text can be trusted to be what it looks like.
    fn text<'f>(&mut self, at: &Spot, name: &str, field: &'f Field<Text>) -> Option<&'f str> {
        let text = field.value()?.as_str();
        let spot = at.key(name, field);
        self.check_text(&spot, text).then_some(text)
    }

    /// A text that must be there.
    fn required<'f>(&mut self, at: &Spot, name: &str, field: &'f Field<Text>, example: &str) -> Option<&'f str> {
        if field.value().is_none() {
            self.fail(&at.key(name, field), "is missing", format_args!("write `{name}: {example}`"));
        }
        self.text(at, name, field)
    }

    fn check_text(&mut self, spot: &Spot, text: &str) -> bool {
        let hidden = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
        };
        if text.is_empty() {
            self.fail(spot, "is empty", "write a value, or remove the key");
            false
        } else if text.contains("${") {
            let hint = "write the value itself; only `file:` and `env:` of a credential's `source` refer to anything";
            self.fail(spot, "has a `${`, and nothing is ever substituted here", hint);
            false
        } else if text.chars().any(hidden) {
            self.fail(spot, "has a control or an invisible character", "remove it");
            false
        } else {
            true
        }
    }

    /// The texts of a list that are fit to be read, each with its spot.
    fn texts<'f>(&mut self, at: &Spot, name: &str, field: &'f Field<List<Text>>) -> Vec<(Spot, &'f str)> {
        let list = at.key(name, field);
        let mut found: Vec<(Spot, &str)> = Vec::new();
        for (index, item) in field.value().into_iter().flatten().enumerate() {
            let spot = list.item(index, item);
            let Some(text) = item.value() else { continue };
            if !self.check_text(&spot, text) {
                continue;
            }
            if found.iter().any(|(_, earlier)| earlier == text) {
                self.fail(&spot, format_args!("`{text}` is written twice"), "keep one of them");
                continue;
            }
            found.push((spot, text));
        }
        found
    }

    /// The texts of a list that must have at least one.
    fn texts_required<'f>(
        &mut self,
        at: &Spot,
        name: &str,
        field: &'f Field<List<Text>>,
        example: &str,
    ) -> Vec<(Spot, &'f str)> {
        if field.value().is_none_or(Vec::is_empty) {
            self.fail(&at.key(name, field), "is missing or empty", format_args!("write `{name}: [{example}]`"));
        }
        self.texts(at, name, field)
    }

    /// A flag that is off unless written.
    #[allow(clippy::unused_self, reason = "reads like its neighbours")]
    fn flag(&self, field: &Field<Flag>) -> bool {
        field.value().is_some_and(|flag| flag.0)
    }

    /// One of a closed list; the first is the default.
    fn choice<T: Copy>(&mut self, at: &Spot, name: &str, field: &Field<Text>, choices: &[(&str, T)]) -> T {
        let default = choices[0].1;
        let Some(text) = self.text(at, name, field) else { return default };
        self.pick(&at.key(name, field), text, choices).unwrap_or(default)
    }

    /// One of a closed list that has no default.
    fn choice_required<T: Copy>(
        &mut self,
        at: &Spot,
        name: &str,
        field: &Field<Text>,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.required(at, name, field, choices[0].0)?;
        self.pick(&at.key(name, field), text, choices)
    }

    fn pick<T: Copy>(&mut self, spot: &Spot, text: &str, choices: &[(&str, T)]) -> Option<T> {
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(text, &words) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write {}", words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" or ")),
        };
        self.fail(spot, format_args!("`{text}` is not known"), hint);
        None
    }

    /// A duration between two others, both included.
    fn duration(
        &mut self,
        at: &Spot,
        name: &str,
        field: &Field<Text>,
        default: &str,
        min: &str,
        max: &str,
    ) -> Duration {
        let constant = |text: &str| units::duration(text).unwrap_or_default();
        let (default, min, max) = (constant(default), constant(min), constant(max));
        let Some(text) = self.text(at, name, field) else { return default };
        let spot = at.key(name, field);
        match units::duration(text) {
            None => {
                let hint =
                    format!("write a number and `ms`, `s`, `m` or `h`, such as `{}`", units::show_duration(default));
                self.fail(&spot, format_args!("`{text}` is not a duration"), hint);
            }
            Some(duration) if duration < min || duration > max => {
                let (min, max) = (units::show_duration(min), units::show_duration(max));
                self.fail(&spot, format_args!("`{text}` is out of range"), format_args!("write {min} to {max}"));
            }
            Some(duration) => return duration,
        }
        default
    }

    /// A size in bytes between two others, both included.
    fn size(&mut self, at: &Spot, name: &str, field: &Field<Text>, default: u64, min: u64, max: u64) -> u64 {
        let Some(text) = self.text(at, name, field) else { return default };
        let spot = at.key(name, field);
        match units::size(text) {
            None => {
                let hint = format!(
                    "write a number, alone or with `KiB`, `MiB` or `GiB`, such as `{}`",
                    units::show_size(default)
                );
                self.fail(&spot, format_args!("`{text}` is not a size"), hint);
            }
            Some(size) if size < min || size > max => {
                let (min, max) = (units::show_size(min), units::show_size(max));
                self.fail(&spot, format_args!("`{text}` is out of range"), format_args!("write {min} to {max}"));
            }
            Some(size) => return size,
        }
        default
    }

    /// As [`Self::size`], for what is held in memory.
    fn memory(&mut self, at: &Spot, name: &str, field: &Field<Text>, default: u64, min: u64, max: u64) -> usize {
        usize::try_from(self.size(at, name, field, default, min, max)).unwrap_or(usize::MAX)
    }

    /// A number between two others, both included.
    fn count(&mut self, at: &Spot, name: &str, field: &Field<Count>, default: u32, min: u32, max: u32) -> u32 {
        let Some(count) = field.value() else { return default };
        match u32::try_from(count.0) {
            Ok(count) if (min..=max).contains(&count) => count,
            _ => {
                let message = format!("{} is out of range", count.0);
                self.fail(&at.key(name, field), message, format_args!("write {min} to {max}"));
                default
            }
        }
    }

    /// A path, relative to the file's own folder.
    fn path(&mut self, at: &Spot, name: &str, field: &Field<Text>) -> Option<PathBuf> {
        let text = self.text(at, name, field)?;
        Some(self.directory.join(text))
    }

    /// A path that must be there.
    fn path_required(&mut self, at: &Spot, name: &str, field: &Field<Text>, example: &str) -> Option<PathBuf> {
        let text = self.required(at, name, field, example)?;
        Some(self.directory.join(text))
    }

    /// The files of a certificate and its own key, each with an example of its name.
    fn key_pair(
        &mut self,
        at: &Spot,
        (certificate, certificate_example): (&Field<Text>, &str),
        (key, key_example): (&Field<Text>, &str),
    ) -> (Option<PathBuf>, Option<PathBuf>) {
        let pair = (
            self.path_required(at, "certificate", certificate, certificate_example),
            self.path_required(at, "key", key, key_example),
        );
        if let (Some(first), Some(second)) = &pair
            && let Err((side, message)) = files::key_pair(first, second)
        {
            let spot = match side {
                Side::Certificate => at.key("certificate", certificate),
                Side::Key => at.key("key", key),
            };
            self.fail(&spot, message, "name PEM files: the certificate first in its chain, and its own key");
        }
        pair
    }

    /// Notes what a look at a file found.
    fn file_check<T>(&mut self, spot: &Spot, result: Result<T, String>, hint: &str) -> Option<T> {
        result.map_err(|message| self.fail(spot, message, hint)).ok()
    }

    /// A JSON pointer (RFC 6901) with at least one step.
    fn pointer(&mut self, spot: &Spot, text: &str) -> Option<String> {
        if text.len() > 1 && text.starts_with('/') {
            return Some(text.to_owned());
        }
        self.fail(spot, format_args!("`{text}` is not a pointer to a claim"), "write `/claim` or `/claim/part`");
        None
    }
}

/// Whether a name is one word that is safe in a metric label, a log line and a URL.
fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
