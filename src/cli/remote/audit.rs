//! `leasehold audit`.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::render::{self, Column, text, when};
use super::{Call, Common, EXIT_CODES, Failure, more};
use crate::app::audit::Chain;
use crate::cli::client::Client;
use crate::cli::{Output, print};

/// How often new entries are looked for.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// How many entries are asked for at once.
const PAGE: usize = 500;

const COLUMNS: &[Column] = &[
    ("SEQUENCE", |entry, _| text(entry, &["/sequence"])),
    ("AT", |entry, now| when(entry, &["/at"], now)),
    ("EVENT", |entry, _| text(entry, &["/event"])),
    ("SUBJECT", |entry, _| text(entry, &["/subject"])),
    ("ACTOR", |entry, _| text(entry, &["/actor"])),
];

/// What to do with the record.
#[derive(Debug, Args)]
pub(in crate::cli) struct Audit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists what happened
    #[command(after_help = EXIT_CODES)]
    List {
        /// From this entry on
        #[arg(long, value_name = "SEQUENCE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        from: u64,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Goes on as entries come, one JSON object a line, until it is interrupted or nobody reads it
        #[arg(short, long, conflicts_with = "limit")]
        follow: bool,
        #[command(flatten)]
        common: Common,
    },

    /// Recomputes the chain of hashes, and names the first entry that does not fit
    #[command(after_help = "\
Keep the hash that is printed last: with `--expect SEQUENCE:HASH` a later run also finds what was cut off the end or
written anew from the beginning.

Exit codes:
  0  every entry is as it was written
  1  an entry was changed, is missing, or cannot be read
  2  the command line is wrong
  4  the control plane cannot be reached, or broke off")]
    Verify {
        /// Entries in a file, as `audit list -o json` or `--follow` writes them, and not of the control plane
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// What a former run printed last
        #[arg(long, value_name = "SEQUENCE:HASH", value_parser = expected)]
        expect: Option<(u64, String)>,
        #[command(flatten)]
        common: Common,
    },
}

fn expected(text: &str) -> Result<(u64, String), String> {
    let read = text.split_once(':').and_then(|(sequence, hash)| Some((sequence.parse().ok()?, hash)));
    let read = read.filter(|(_, hash)| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
    read.map(|(sequence, hash)| (sequence, hash.to_ascii_lowercase()))
        .ok_or_else(|| "write the number and the hash that `audit verify` printed, as `12:ab…`".to_owned())
}

impl Audit {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match &self.command {
            Command::List { from, follow: true, common, .. } => follow(&common.client()?, *from),
            Command::List { from, limit, common, .. } => {
                let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
                let client = common.client()?;
                let mut entries = Vec::new();
                let mut next = *from;
                while entries.len() < limit {
                    let found = page(&client, next, (limit - entries.len()).min(PAGE))?;
                    let Some(last) = found.last() else { break };
                    next = sequence(last)? + 1;
                    entries.extend(found);
                }
                let is_more = entries.len() == limit && !page(&client, next, 1)?.is_empty();
                render::list(common.output, &entries, COLUMNS, "no entries")?;
                more(is_more, limit);
                Ok(())
            }
            Command::Verify { from_file, expect, common } => {
                let mut check = Check { chain: Chain::new(), expect: expect.as_ref(), met: false };
                match from_file {
                    Some(path) => from(path, &mut check)?,
                    None => check.all(&common.client()?)?,
                }
                check.told(common.output)
            }
        }
    }
}

/// Entries from a sequence on; none where there are none yet.
fn page(client: &Client, from: u64, size: usize) -> Result<Vec<Value>, Failure> {
    let call = Call::get(&["v1", "audit", "entries"]).query("from", &from.to_string());
    Ok(client.list(&call, size)?.0)
}

fn sequence(entry: &Value) -> anyhow::Result<u64> {
    entry.get("sequence").and_then(Value::as_u64).context("an entry of the record has no `sequence`")
}

/// Prints entries as they come, until nobody reads them any more; a lost connection is made again.
fn follow(client: &Client, mut from: u64) -> Result<(), Failure> {
    loop {
        match page(client, from, PAGE) {
            Ok(found) => {
                for entry in &found {
                    match print::try_out(&format!("{entry}\n")) {
                        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                        written => written.context("entries cannot be printed")?,
                    }
                    from = sequence(entry)? + 1;
                }
                if found.len() == PAGE {
                    continue;
                }
            }
            Err(Failure::Unreachable(error)) => print::aside(&format!("{error:#}")),
            Err(failure) => return Err(failure),
        }
        client.pause(FOLLOW_EVERY);
        if print::is_unread() {
            return Ok(());
        }
    }
}

/// A chain as far as it was followed, and what it has to go through.
struct Check<'a> {
    chain: Chain,
    expect: Option<&'a (u64, String)>,
    met: bool,
}

impl Check<'_> {
    fn follow(&mut self, entry: &Value) -> Result<(), Failure> {
        self.chain.follow(entry).map_err(anyhow::Error::from)?;
        if let Some((sequence, hash)) = self.expect
            && *sequence == self.chain.last()
        {
            if self.chain.hash() != hash {
                return Err(Failure::Running(anyhow!(
                    "entry {sequence} is not the one that was expected: it, or what is before it, was written anew"
                )));
            }
            self.met = true;
        }
        Ok(())
    }

    /// Every entry that the control plane has.
    fn all(&mut self, client: &Client) -> Result<(), Failure> {
        loop {
            let found = page(client, self.chain.last() + 1, PAGE)?;
            if found.is_empty() {
                break;
            }
            found.iter().try_for_each(|entry| self.follow(entry))?;
        }
        if self.chain.first().is_some_and(|first| first != 1) {
            return Err(Failure::Running(anyhow!("the record does not begin with entry 1")));
        }
        Ok(())
    }

    fn told(&self, output: Output) -> Result<(), Failure> {
        if let Some((sequence, _)) = self.expect
            && !self.met
        {
            let last = self.chain.last();
            return Err(Failure::Running(anyhow!(
                "the record ends with entry {last} and had {sequence}: its end was cut off"
            )));
        }
        let chain = &self.chain;
        let document = serde_json::json!({
            "entries": chain.count(), "first": chain.first(), "last": chain.last(), "hash": chain.hash(),
        });
        Ok(render::one(output, &document, |_| match chain.first() {
            None => "no entries: there is nothing to verify\n".to_owned(),
            Some(first) => {
                let begins = if first == 1 { "" } else { " (what is before was not looked at)" };
                let (last, hash) = (chain.last(), chain.hash());
                format!("entries {first} to {last} are as they were written{begins}\n{last}:{hash}\n")
            }
        })?)
    }
}

/// Entries of a file: a list, lists, or one object a line.
fn from(path: &std::path::Path, check: &mut Check<'_>) -> Result<(), Failure> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("{shown} cannot be read")).map_err(Failure::Usage)?;
    let reader = std::io::BufReader::new(file);
    for value in serde_json::Deserializer::from_reader(reader).into_iter::<Value>() {
        let value = value.map_err(|error| anyhow!("{shown}: after entry {}: {error}", check.chain.last()))?;
        match value.get("items").unwrap_or(&value) {
            Value::Array(list) => list.iter().try_for_each(|entry| check.follow(entry))?,
            entry => check.follow(entry)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_a_number_and_a_hash() {
        let hash = "A".repeat(64);
        assert_eq!(expected(&format!("12:{hash}")), Ok((12, "a".repeat(64))));
        for bad in ["", "12", "12:ab", &hash, &format!("x:{hash}")] {
            assert!(expected(bad).is_err(), "`{bad}` was accepted");
        }
    }
}
