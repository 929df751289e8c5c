//! The sections about the process itself: grants, record, operators.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::super::files;
use super::super::raw::{Admin as RawAdmin, Audit as RawAudit, Count, Field, Grants as RawGrants, Text};
use super::super::resolved::{Admin, Audit, GrantSource, Grants};
use super::{Resolver, Role, Spot};
use crate::sidecar::record::{AccessLog, IntentMode};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Below it, a view of a control plane elsewhere would be stale between two answers.
const STALENESS_REMOTE_MIN: Duration = Duration::from_secs(3);

impl Resolver<'_> {
    pub(super) fn grants(&mut self, spot: &Spot, raw: Option<&RawGrants>) -> Option<Grants> {
        let none = RawGrants::default();
        let raw = match raw {
            Some(raw) => raw,
            None if self.role == Role::Up => &none,
            None => {
                self.fail(spot, "is missing", "write `grants: {file: grants.yaml}`, or `control:` with its addresses");
                return None;
            }
        };
        let danger_staleness_max = self.flag(&raw.danger_staleness_max);
        let source = match self.role {
            Role::Up => self.no_file(spot, raw),
            _ if raw.control.value().is_some() => self.grants_control(spot, raw),
            _ => self.grants_file(spot, raw),
        };
        let staleness_max = self.duration(spot, "staleness_max", &raw.staleness_max, "30s", "100ms", "24h");
        let at = spot.key("staleness_max", &raw.staleness_max);
        if staleness_max.as_secs() > 300 && !danger_staleness_max {
            let hint = "write 5m or less, or `danger_staleness_max: true` beside it";
            self.fail(&at, "is more than 5m: a revocation could go unseen that long", hint);
        }
        if matches!(source, Some(GrantSource::Remote { .. })) && staleness_max < STALENESS_REMOTE_MIN {
            let hint = "write 3s or more: an answer takes its way, and a short silence is no fault";
            self.fail(&at, "is too short for a control plane elsewhere", hint);
        }
        if let Some(GrantSource::File { poll, .. }) = &source
            && poll.saturating_mul(2) > staleness_max
        {
            self.fail(
                &at,
                "is less than twice `poll`, so calls would be denied between two looks",
                "raise it, or lower `poll`",
            );
        }
        Some(Grants { source: source?, staleness_max, danger_staleness_max })
    }

    fn grants_file(&mut self, spot: &Spot, raw: &RawGrants) -> Option<GrantSource> {
        let file = self.path_required(spot, "file", &raw.file, "grants.yaml");
        if let Some(file) = &file {
            let at = spot.key("file", &raw.file);
            let known = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "jsonl");
            if !known {
                let message = format!("`{}` is of no known kind", file.display());
                self.fail(&at, message, "end its name in `.yaml`, `.yml` or `.jsonl`");
            }
            self.file_check(&at, files::readable(file), "create it; `grants: []` in it denies everything");
        }
        let poll = self.duration(spot, "poll", &raw.poll, "100ms", "10ms", "1m");
        Some(GrantSource::File { file: file?, poll })
    }

    /// With the control plane in the same process there is no second source.
    fn no_file(&mut self, spot: &Spot, raw: &RawGrants) -> Option<GrantSource> {
        let hint = "remove it: with `leasehold up` grants come from the control plane in the same process";
        self.no_grants_file(spot, raw, hint);
        if raw.control.value().is_some() {
            self.fail(&spot.key("control", &raw.control), "is not used here", hint);
        }
        Some(GrantSource::Control)
    }

    fn no_grants_file(&mut self, spot: &Spot, raw: &RawGrants, hint: &str) {
        for (name, given) in [("file", &raw.file), ("poll", &raw.poll)] {
            if given.value().is_some() {
                self.fail(&spot.key(name, given), "is not used here", hint);
            }
        }
    }

    fn grants_control(&mut self, spot: &Spot, raw: &RawGrants) -> Option<GrantSource> {
        self.no_grants_file(spot, raw, "remove it, or `control`: grants come from one place");
        let at = spot.key("control", &raw.control);
        let control = raw.control.value()?;
        let servers = self.servers(&at, control);
        let first_view = self.duration(&at, "first_view", &control.first_view, "5s", "0s", "5m");
        let (servers, join) = servers?;
        Some(GrantSource::Remote { servers, join, first_view })
    }

    pub(super) fn audit(&mut self, spot: &Spot, raw: Option<&RawAudit>) -> Audit {
        let none = RawAudit::default();
        let raw = raw.unwrap_or(&none);
        let directory = self.path(spot, "directory", &raw.directory);
        let directory = directory.unwrap_or_else(|| PathBuf::from("/var/lib/leasehold/audit"));
        if directory.exists() && !directory.is_dir() {
            let message = format!("`{}` is not a folder", directory.display());
            self.fail(
                &spot.key("directory", &raw.directory),
                message,
                "name a folder; it is created if it is not there",
            );
        }
        let segment_bytes = self.size(spot, "segment_bytes", &raw.segment_bytes, 64 * MIB, 64 << 10, 4 * GIB);
        let bytes_max = self.size(spot, "bytes_max", &raw.bytes_max, GIB, 128 << 10, 16384 * GIB);
        if bytes_max / 2 < segment_bytes {
            let at = spot.key("bytes_max", &raw.bytes_max);
            self.fail(&at, "holds fewer than two segments", "raise it, or lower `segment_bytes`");
        }
        let choices = [("each_call", IntentMode::EachCall), ("batched", IntentMode::Batched)];
        let intent = self.choice(spot, "intent", &raw.intent, &choices);
        Audit { directory, segment_bytes, bytes_max, intent }
    }

    pub(super) fn access_log(&mut self, root: &Spot, field: &Field<Text>) -> AccessLog {
        self.choice(root, "access_log", field, &[("off", AccessLog::Off), ("stdout", AccessLog::Stdout)])
    }

    pub(super) fn admin(&mut self, spot: &Spot, raw: Option<&RawAdmin>) -> Admin {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
        let none = RawAdmin::default();
        let raw = raw.unwrap_or(&none);
        let danger_admin_address = self.flag(&raw.danger_admin_address);
        let at = spot.key("address", &raw.address);
        let address = match self.text(spot, "address", &raw.address) {
            Some(text) => self.socket_address(&at, text).unwrap_or(default),
            None => default,
        };
        if !address.ip().is_loopback() && !danger_admin_address {
            let message =
                format!("`{address}` is open to other machines, and the admin listener asks nobody who they are");
            self.fail(&at, message, "write `127.0.0.1:9901`, or `danger_admin_address: true` beside it");
        }
        Admin { address, danger_admin_address }
    }

    pub(super) fn workers(&mut self, root: &Spot, field: &Field<Count>) -> usize {
        match self.count(root, "workers", field, 0, 0, 1024) {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            workers => workers as usize,
        }
    }

    /// An IP address and a port; a name could mean another machine tomorrow.
    pub(super) fn socket_address(&mut self, spot: &Spot, text: &str) -> Option<SocketAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
            return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        }
        let hint = "write an IP address and a port, such as `127.0.0.1:8443`, `[::1]:8443` or `0.0.0.0:8443` for all";
        self.fail(spot, format_args!("`{text}` is not an address"), hint);
        None
    }
}
