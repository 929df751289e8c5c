//! One record as one line of JSON.
//!
//! Written by hand into a reused buffer: this runs for every call. Whatever a caller chose is escaped so that a line stays
//! a line, and shows nothing but itself on any terminal.

use std::sync::Arc;
use std::time::Duration;

use super::{CallId, Catalogue, Ended, Intent, Outcome};
use crate::domain::resource::{Extent, Resource};
use crate::domain::time::{Timestamp, Uptime};
use crate::guardrail::Rule;

/// Writes `{"kind":"intent",…}`.
pub(super) fn intent(buffer: &mut Vec<u8>, sequence: u64, intent: &Intent<'_>) {
    let mut line = Line::begin(buffer, "intent", sequence, intent.at);
    line.id(intent.id);
    line.text("principal", intent.principal.as_str());
    line.text("backend", intent.backend.as_str());
    line.maybe("action", intent.action.map(|action| action.as_str()));
    line.resource(intent.resource);
    line.maybe("grant", intent.grant.map(|grant| grant.as_str()));
    line.maybe("task", intent.task.map(|task| task.as_str()));
    line.maybe("lease", intent.lease);
    line.end();
}

/// Writes `{"kind":"call",…}`.
pub(super) fn call(buffer: &mut Vec<u8>, sequence: u64, uptime: Uptime, catalogue: &Catalogue, outcome: &Outcome<'_>) {
    let mut line = Line::begin(buffer, "call", sequence, outcome.at);
    line.number("uptime_us", uptime.as_micros().unsigned_abs());
    line.id(outcome.id);
    line.text("listener", outcome.listener);
    line.text("peer", outcome.peer);
    line.text("protocol", outcome.protocol);
    line.maybe("principal", outcome.principal.map(|principal| principal.as_str()));
    line.maybe("identity", outcome.identity);
    line.maybe("backend", catalogue.backend(outcome.backend).map(|name| name.as_str()));
    line.maybe("action", outcome.action.map(|(_, name)| name.as_str()));
    if let Some(resource) = outcome.resource {
        line.resource(resource);
    }
    line.text("method", outcome.method);
    line.text("path", outcome.path);
    line.maybe("grant", outcome.grant.map(|grant| grant.as_str()));
    if let Some(arguments) = outcome.arguments {
        line.text("arguments", &arguments.to_string());
    }
    line.maybe("task", outcome.task.map(|task| task.as_str()));
    line.text("decision", outcome.decision.as_str());
    if outcome.stale {
        line.key("stale");
        line.0.extend_from_slice(b"true");
    }
    line.text("reason", outcome.reason.as_str());
    line.maybe("detail", outcome.detail);
    if outcome.reasons.len() > 1 {
        line.list("reasons", outcome.reasons.iter().map(|reason| reason.as_str()));
    }
    line.rules("guardrails", outcome.guardrails);
    line.rules("shadow", outcome.shadow);
    line.maybe("lease", outcome.lease);
    line.maybe_number("upstream_status", outcome.upstream_status);
    line.maybe_number("status", outcome.status);
    line.text("ended", outcome.ended.as_str());
    if let Ended::Cut(reason) = outcome.ended {
        line.text("cut_by", reason.as_str());
    }
    line.number("bytes_in", outcome.bytes_in);
    line.number("bytes_out", outcome.bytes_out);
    line.number("own_us", micros(outcome.own));
    line.number("upstream_us", micros(outcome.upstream));
    line.number("total_us", micros(outcome.total));
    line.maybe("trace", outcome.trace);
    line.end();
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What most lines need.
const ROOM: usize = 1024;

/// A line that is being written. What takes a key is inlined, so that writing it is a store or two and not a call.
struct Line<'b>(&'b mut Vec<u8>);

impl<'b> Line<'b> {
    fn begin(buffer: &'b mut Vec<u8>, kind: &str, sequence: u64, at: Timestamp) -> Self {
        buffer.reserve(ROOM);
        buffer.extend_from_slice(b"{\"kind\":\"");
        buffer.extend_from_slice(kind.as_bytes());
        buffer.push(b'"');
        let mut line = Self(buffer);
        line.number("seq", sequence);
        line.key("at");
        line.0.push(b'"');
        stamp(line.0, at);
        line.0.push(b'"');
        line
    }

    fn end(self) {
        self.0.extend_from_slice(b"}\n");
    }

    #[inline(always)]
    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    #[inline(always)]
    fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        self.0.push(b'"');
        escape(self.0, text);
        self.0.push(b'"');
    }

    fn id(&mut self, id: &CallId) {
        self.key("id");
        self.0.extend_from_slice(b"\"evl_");
        self.0.extend_from_slice(id.prefix.as_bytes());
        self.0.extend_from_slice(&id.digits());
        self.0.push(b'"');
    }

    fn resource(&mut self, resource: &Resource) {
        self.key("resource");
        self.0.push(b'"');
        escape(self.0, resource.text());
        if resource.extent() == Extent::Under {
            self.0.extend_from_slice(b"**");
        }
        self.0.push(b'"');
    }

    #[inline(always)]
    fn maybe(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    #[inline(always)]
    fn number(&mut self, key: &str, number: u64) {
        self.key(key);
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    #[inline(always)]
    fn maybe_number(&mut self, key: &str, number: Option<u16>) {
        if let Some(number) = number {
            self.number(key, u64::from(number));
        }
    }

    /// Policies by their documents and ids; nothing where there are none.
    fn rules(&mut self, key: &str, rules: &[Arc<Rule>]) {
        if !rules.is_empty() {
            let names: Vec<String> = rules.iter().map(ToString::to_string).collect();
            self.list(key, names.iter().map(String::as_str));
        }
    }

    fn list<'t>(&mut self, key: &str, texts: impl Iterator<Item = &'t str>) {
        self.key(key);
        self.0.push(b'[');
        for (place, text) in texts.enumerate() {
            if place > 0 {
                self.0.push(b',');
            }
            self.0.push(b'"');
            escape(self.0, text);
            self.0.push(b'"');
        }
        self.0.push(b']');
    }
}

/// Writes a text inside quotes. Everything but visible ASCII and ordinary letters is written as `\u….`.
pub(super) fn escape(buffer: &mut Vec<u8>, text: &str) {
    // Without a way out in between, so that many bytes are looked at at once.
    let plain = |b: u8| (b' '..=b'~').contains(&b) & (b != b'"') & (b != b'\\');
    if text.bytes().fold(true, |all, b| all & plain(b)) {
        buffer.extend_from_slice(text.as_bytes());
        return;
    }
    for c in text.chars() {
        match c {
            '"' => buffer.extend_from_slice(b"\\\""),
            '\\' => buffer.extend_from_slice(b"\\\\"),
            ' '..='~' => buffer.push(c as u8),
            c if c.is_alphanumeric() => buffer.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = std::io::Write::write_fmt(buffer, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// Writes a moment as RFC 3339 in UTC with microseconds; days are turned into a date by Hinnant's `civil_from_days`.
pub(super) fn stamp(buffer: &mut Vec<u8>, at: Timestamp) {
    let micros = at.as_micros().clamp(0, 253_402_300_799_999_999);
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |from: usize, width: usize, mut value: i64| {
        for place in (from..from + width).rev() {
            text[place] = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3_600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 6, micros);
    buffer.extend_from_slice(&text);
}
