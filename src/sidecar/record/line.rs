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

/// Writes `,"key":"text"` where nothing in the text needs to be escaped: names of [`crate::domain::id`], and ours.
macro_rules! plain {
    ($line:expr, $key:literal, $text:expr) => {
        $line.0.extend_from_slice(concat!(",\"", $key, "\":\"").as_bytes());
        $line.0.extend_from_slice($text.as_bytes());
        $line.0.push(b'"');
    };
}

/// Writes `,"key":"text"`.
macro_rules! escaped {
    ($line:expr, $key:literal, $text:expr) => {
        $line.0.extend_from_slice(concat!(",\"", $key, "\":\"").as_bytes());
        escape($line.0, $text);
        $line.0.push(b'"');
    };
}

/// Writes `,"key":number`.
macro_rules! number {
    ($line:expr, $key:literal, $number:expr) => {
        $line.0.extend_from_slice(concat!(",\"", $key, "\":").as_bytes());
        $line.digits($number);
    };
}

/// Lines that wait to be written, one after another.
#[derive(Debug)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    stamp: Stamp,
}

impl Lines {
    /// None yet, with room for so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), stamp: Stamp::default() }
    }

    /// All of them.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes they have.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes them all away and keeps the room.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds `{"kind":"intent",…}`.
    pub(super) fn intent(&mut self, sequence: u64, intent: &Intent<'_>) {
        let mut line = self.begin("{\"kind\":\"intent\",\"seq\":", sequence, intent.at);
        line.id(intent.id);
        escaped!(line, "principal", intent.principal.as_str());
        plain!(line, "backend", intent.backend.as_str());
        if let Some(action) = intent.action {
            plain!(line, "action", action.as_str());
        }
        line.resource(intent.resource);
        if let Some(grant) = intent.grant {
            plain!(line, "grant", grant.as_str());
        }
        if let Some(task) = intent.task {
            escaped!(line, "task", task.as_str());
        }
        if let Some(lease) = intent.lease {
            escaped!(line, "lease", lease);
        }
        line.end();
    }

    /// Adds `{"kind":"call",…}`.
    pub(super) fn call(&mut self, sequence: u64, uptime: Uptime, catalogue: &Catalogue, outcome: &Outcome<'_>) {
        let mut line = self.begin("{\"kind\":\"call\",\"seq\":", sequence, outcome.at);
        number!(line, "uptime_us", uptime.as_micros().unsigned_abs());
        line.id(outcome.id);
        line.origin(outcome);
        line.asked(catalogue, outcome);
        line.decided(outcome);
        line.ended(outcome);
        line.end();
    }

    fn begin(&mut self, opening: &'static str, sequence: u64, at: Timestamp) -> Line<'_> {
        self.bytes.reserve(ROOM);
        self.bytes.extend_from_slice(opening.as_bytes());
        let mut line = Line(&mut self.bytes);
        line.digits(sequence);
        line.0.extend_from_slice(b",\"at\":\"");
        line.0.extend_from_slice(self.stamp.of(at));
        line.0.push(b'"');
        line
    }
}

/// What most lines need.
const ROOM: usize = 1024;

/// A line that is being written.
struct Line<'b>(&'b mut Vec<u8>);

impl Line<'_> {
    fn end(self) {
        self.0.extend_from_slice(b"}\n");
    }

    /// Where the call came in.
    fn origin(&mut self, outcome: &Outcome<'_>) {
        plain!(self, "listener", outcome.listener);
        escaped!(self, "peer", outcome.peer);
        plain!(self, "protocol", outcome.protocol);
        if let Some(principal) = outcome.principal {
            escaped!(self, "principal", principal.as_str());
        }
        if let Some(identity) = outcome.identity {
            plain!(self, "identity", identity);
        }
    }

    /// What it was about.
    fn asked(&mut self, catalogue: &Catalogue, outcome: &Outcome<'_>) {
        if let Some(backend) = catalogue.backend(outcome.backend) {
            plain!(self, "backend", backend.as_str());
        }
        if let Some((_, action)) = outcome.action {
            plain!(self, "action", action.as_str());
        }
        if let Some(resource) = outcome.resource {
            self.resource(resource);
        }
        // A method is a token (RFC 9110 section 5.6.2): it has no byte that would end a text.
        plain!(self, "method", outcome.method);
        escaped!(self, "path", outcome.path);
    }

    /// What was decided, and by what.
    fn decided(&mut self, outcome: &Outcome<'_>) {
        if let Some(grant) = outcome.grant {
            plain!(self, "grant", grant.as_str());
        }
        if let Some(arguments) = outcome.arguments {
            plain!(self, "arguments", &arguments.to_string());
        }
        if let Some(task) = outcome.task {
            escaped!(self, "task", task.as_str());
        }
        plain!(self, "decision", outcome.decision.as_str());
        if outcome.stale {
            self.0.extend_from_slice(b",\"stale\":true");
        }
        plain!(self, "reason", outcome.reason.as_str());
        if let Some(detail) = outcome.detail {
            plain!(self, "detail", detail);
        }
        if outcome.reasons.len() > 1 {
            self.list("reasons", outcome.reasons.iter().map(|reason| reason.as_str()));
        }
        self.rules("guardrails", outcome.guardrails);
        self.rules("shadow", outcome.shadow);
        if let Some(lease) = outcome.lease {
            escaped!(self, "lease", lease);
        }
    }

    /// What came of it.
    fn ended(&mut self, outcome: &Outcome<'_>) {
        if let Some(status) = outcome.upstream_status {
            number!(self, "upstream_status", status.into());
        }
        if let Some(status) = outcome.status {
            number!(self, "status", status.into());
        }
        plain!(self, "ended", outcome.ended.as_str());
        if let Ended::Cut(reason) = outcome.ended {
            plain!(self, "cut_by", reason.as_str());
        }
        number!(self, "bytes_in", outcome.bytes_in);
        number!(self, "bytes_out", outcome.bytes_out);
        number!(self, "own_us", micros(outcome.own));
        number!(self, "upstream_us", micros(outcome.upstream));
        number!(self, "total_us", micros(outcome.total));
        if let Some(trace) = outcome.trace {
            plain!(self, "trace", trace);
        }
    }

    fn id(&mut self, id: &CallId) {
        self.0.extend_from_slice(b",\"id\":\"evl_");
        self.0.extend_from_slice(id.prefix.as_bytes());
        self.0.extend_from_slice(&id.digits());
        self.0.push(b'"');
    }

    fn resource(&mut self, resource: &Resource) {
        self.0.extend_from_slice(b",\"resource\":\"");
        escape(self.0, resource.text());
        if resource.extent() == Extent::Under {
            self.0.extend_from_slice(b"**");
        }
        self.0.push(b'"');
    }

    fn digits(&mut self, number: u64) {
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Policies by their documents and ids; nothing where there are none.
    fn rules(&mut self, key: &str, rules: &[Arc<Rule>]) {
        if !rules.is_empty() {
            let names: Vec<String> = rules.iter().map(ToString::to_string).collect();
            self.list(key, names.iter().map(String::as_str));
        }
    }

    fn list<'t>(&mut self, key: &str, texts: impl Iterator<Item = &'t str>) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":[");
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

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Writes a text inside quotes. Everything but visible ASCII and ordinary letters is written as `\u….`.
pub(super) fn escape(buffer: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
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

/// Whether a text stands for itself inside quotes: eight bytes are looked at at once (Anderson, "Bit Twiddling Hacks":
/// whether a word has a byte less than n, more than n, equal to n).
fn is_plain(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES * 128;
    let bad = |word: u64| {
        let equal = |byte: u8| {
            let word = word ^ (ONES * u64::from(byte));
            word.wrapping_sub(ONES) & !word
        };
        let less = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
        let more = word.wrapping_add(ONES * u64::from(127 - b'~')) | word;
        (less | more | equal(b'"') | equal(b'\\')) & HIGHS
    };
    let (words, rest) = text.as_chunks::<8>();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    let bad_words = words.iter().fold(0, |all, word| all | bad(u64::from_le_bytes(*word)));
    bad_words | bad(u64::from_le_bytes(last)) == 0
}

/// Moments as RFC 3339 in UTC with microseconds. Many lines are of one second, so its text is kept.
#[derive(Debug)]
pub(super) struct Stamp {
    second: i64,
    text: [u8; 27],
}

impl Default for Stamp {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00.000000Z" }
    }
}

impl Stamp {
    pub(super) fn of(&mut self, at: Timestamp) -> &[u8] {
        let micros = at.as_micros().clamp(0, 253_402_300_799_999_999);
        let (second, micros) = (micros / 1_000_000, micros % 1_000_000);
        if second != self.second {
            self.second = second;
            self.date_and_time();
        }
        put(&mut self.text[20..26], micros);
        &self.text
    }

    /// Days are turned into a date by Hinnant's `civil_from_days`.
    fn date_and_time(&mut self) {
        let (days, second) = (self.second / 86_400, self.second % 86_400);
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let of_era = shifted % 146_097;
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        for (place, value) in [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, second / 3_600),
            (14..16, second / 60 % 60),
            (17..19, second % 60),
        ] {
            put(&mut self.text[place], value);
        }
    }
}

/// Writes a number with as many digits as there is room for.
fn put(room: &mut [u8], mut value: i64) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}
