//! Checks the control plane's own record, entry by entry.
//!
//! It is here, and not with the commands, because the recipe of an entry's hash is the control plane's: whoever verifies
//! must use the one that whoever writes uses, and only `app` may name it for the commands.

use serde_json::Value;

use crate::control::store::AuditEntry;

/// The first entry that cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is no entry, or says more than an entry does.
    #[error("what follows entry {after} is no entry of the record: {reason}")]
    Unreadable {
        /// The last good one.
        after: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Entries are missing, doubled or in another order.
    #[error("entry {found} follows on entry {after}: what is between is missing, or the order was changed")]
    Gap {
        /// The last good one.
        after: u64,
        /// The one that was found.
        found: u64,
    },
    /// It does not carry the hash of the one before.
    #[error("entry {0} does not follow on the entry before it: one of the two was changed")]
    Unchained(u64),
    /// Its own hash is not that of its content.
    #[error("entry {0} was changed: its hash is not that of its content")]
    Changed(u64),
}

/// Follows the chain from entry to entry.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    first: Option<u64>,
    last: u64,
    hash: String,
    count: u64,
}

impl Chain {
    /// A chain that begins with whatever comes first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next entry, as the API writes it.
    ///
    /// # Errors
    /// [`Broken`]; nothing after it can be believed.
    pub fn follow(&mut self, entry: &Value) -> Result<(), Broken> {
        let unreadable = |reason: String| Broken::Unreadable { after: self.last, reason };
        let read: AuditEntry = serde_json::from_value(entry.clone()).map_err(|error| unreadable(error.to_string()))?;
        let again = serde_json::to_value(&read).map_err(|error| unreadable(error.to_string()))?;
        // What the hash does not cover must not be there.
        if again != *entry {
            return Err(unreadable("it has something that its hash does not cover".to_owned()));
        }
        let sequence = read.sequence;
        match self.first {
            Some(_) if sequence != self.last + 1 => return Err(Broken::Gap { after: self.last, found: sequence }),
            Some(_) if read.previous != self.hash => return Err(Broken::Unchained(sequence)),
            None if sequence == 0 => return Err(unreadable("entries are counted from 1".to_owned())),
            None if sequence == 1 && read.previous != "0".repeat(64) => return Err(Broken::Unchained(1)),
            _ => {}
        }
        if read.hash != read.expected_hash() {
            return Err(Broken::Changed(sequence));
        }
        self.first = self.first.or(Some(sequence));
        self.last = sequence;
        self.hash = read.hash;
        self.count += 1;
        Ok(())
    }

    /// The sequence of the first entry, if there was one.
    pub fn first(&self) -> Option<u64> {
        self.first
    }

    /// The sequence of the last entry.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The hash of the last entry: whoever keeps it can tell later that nothing up to here was changed.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// How many entries there were.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store::{Head, chain};
    use crate::domain::time::Timestamp;
    use proptest::prelude::*;
    use serde_json::json;

    fn record(count: u64) -> Vec<Value> {
        let mut head = Head::default();
        let mut entries = Vec::new();
        for number in 0..count {
            let at = Timestamp::from_seconds(i64::try_from(number).unwrap());
            let detail = json!({"z": number, "a": {"text": "ä\n", "list": [1, null, true]}});
            let entry = chain(&head, at, "https://idp.test#bot", "grant.active", &format!("grt_{number}"), detail);
            head.sequence = entry.sequence;
            head.audit_hash.clone_from(&entry.hash);
            // As it comes over the wire.
            let text = serde_json::to_string(&entry).unwrap();
            entries.push(serde_json::from_str(&text).unwrap());
        }
        entries
    }

    fn verify(entries: &[Value]) -> Result<Chain, Broken> {
        let mut chain = Chain::new();
        entries.iter().try_for_each(|entry| chain.follow(entry))?;
        Ok(chain)
    }

    #[test]
    fn what_was_written_verifies() {
        let chain = verify(&record(5)).unwrap();
        assert_eq!((chain.first(), chain.last(), chain.count()), (Some(1), 5, 5));
        assert_eq!(verify(&record(5)[2..]).unwrap().first(), Some(3));
        assert_eq!(verify(&[]).unwrap().first(), None);
    }

    #[test]
    fn the_first_bad_entry_is_named() {
        let good = record(5);
        let mut entries = good.clone();
        entries[2]["actor"] = json!("somebody else");
        assert_eq!(verify(&entries).unwrap_err(), Broken::Changed(3));
        let mut entries = good.clone();
        entries.remove(2);
        assert_eq!(verify(&entries).unwrap_err(), Broken::Gap { after: 2, found: 4 });
        let mut entries = good.clone();
        entries.swap(1, 2);
        assert_eq!(verify(&entries).unwrap_err(), Broken::Gap { after: 1, found: 3 });
        let mut entries = good.clone();
        entries[0]["previous"] = json!("1".repeat(64));
        assert_eq!(verify(&entries).unwrap_err(), Broken::Unchained(1));
        let mut entries = good.clone();
        entries[1]["more"] = json!(1);
        assert!(matches!(verify(&entries).unwrap_err(), Broken::Unreadable { after: 1, .. }));
        let mut other = record(5);
        other[3]["detail"] = json!({});
        // An entry that was made again, with a good hash of its own, does not carry the next one.
        let rest: AuditEntry = serde_json::from_value(other[3].clone()).unwrap();
        other[3]["hash"] = json!(rest.expected_hash());
        assert_eq!(verify(&other).unwrap_err(), Broken::Unchained(5));
    }

    /// Every place of an entry, whatever its depth.
    fn places(value: &Value, path: String, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| places(value, format!("{path}/{key}"), found)),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(index, value)| places(value, format!("{path}/{index}"), found));
            }
            _ => found.push(path),
        }
    }

    proptest! {
        #[test]
        fn any_edit_is_found(entry in 0usize..5, place: prop::sample::Index, put in "[a-z]{1,4}") {
            let mut entries = record(5);
            let mut found = Vec::new();
            places(&entries[entry], String::new(), &mut found);
            let path = place.get(&found);
            *entries[entry].pointer_mut(path).unwrap() = json!(put);
            prop_assert!(verify(&entries).is_err(), "{path} of {entry}");
        }
    }
}
