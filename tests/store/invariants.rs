//! What holds of the rows whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::control::store::{AuditEntry, Change, Changes, GrantRow, Head, Page, RequestRow, Rows, Store};
use leasehold::domain::grant::GrantState;
use leasehold::domain::id::Revision;
use leasehold::domain::lock::Lock;

/// Everything that a store has.
#[derive(Debug, Clone, PartialEq)]
pub struct Everything {
    pub head: Head,
    pub requests: Vec<RequestRow>,
    pub grants: Vec<GrantRow>,
    pub locks: Vec<Lock>,
    pub audit: Vec<AuditEntry>,
    pub changes: Vec<(Revision, Change)>,
    pub documents: Vec<String>,
}

const PAGE: u32 = 100;

pub async fn everything<S: Store>(store: &S) -> Everything {
    let mut view = store.view().await.unwrap();
    let rows = &mut view;
    let (mut requests, mut grants, mut audit, mut changes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    loop {
        let after = requests.last().map(|row: &RequestRow| row.request.id.to_string());
        let page = rows.requests(&Page { after, limit: PAGE, ..Page::default() }).await.unwrap();
        if page.is_empty() {
            break;
        }
        requests.extend(page);
    }
    loop {
        let after = grants.last().map(|row: &GrantRow| row.grant.id.to_string());
        let page = rows.grants(&Page { after, limit: PAGE, ..Page::default() }).await.unwrap();
        if page.is_empty() {
            break;
        }
        grants.extend(page);
    }
    loop {
        let page = rows.audit(audit.last().map_or(1, |entry: &AuditEntry| entry.sequence + 1), PAGE).await.unwrap();
        if page.is_empty() {
            break;
        }
        audit.extend(page);
    }
    let mut after = Revision(0);
    loop {
        match rows.changes(after, PAGE).await.unwrap() {
            Changes::Next(next) if next.is_empty() => break,
            Changes::Next(next) => {
                after = next.last().unwrap().0;
                changes.extend(next);
            }
            Changes::Compacted { floor } => after = floor,
        }
    }
    let documents = rows.documents().await.unwrap();
    let mut documents: Vec<_> = documents.iter().map(|document| serde_json::to_string(document).unwrap()).collect();
    documents.sort();
    Everything {
        head: rows.head().await.unwrap(),
        requests,
        grants,
        locks: rows.locks().await.unwrap(),
        audit,
        changes,
        documents,
    }
}

/// That two have the same; it is said where they differ first.
#[track_caller]
pub fn same(here: &Everything, there: &Everything) {
    let lines = |all: &Everything| format!("{all:#?}").lines().map(str::to_owned).collect::<Vec<_>>();
    let (here, there) = (lines(here), lines(there));
    if let Some(at) = (0..here.len().max(there.len())).find(|at| here.get(*at) != there.get(*at)) {
        let around =
            |lines: &[String]| lines[at.saturating_sub(8).min(lines.len())..lines.len().min(at + 3)].join("\n");
        panic!("they differ at line {at}:\n{}\n-- and --\n{}", around(&here), around(&there));
    }
}

/// Checks everything, and returns it.
pub async fn check<S: Store>(store: &S) -> Everything {
    let all = everything(store).await;
    chain(&all);
    requests(&all);
    grants(&all);
    feed(&all);
    all
}

/// The audit is dense, each entry has the hash of the one before, and the head is its end.
fn chain(all: &Everything) {
    let (mut sequence, mut hash) = (0, "0".repeat(64));
    for entry in &all.audit {
        assert_eq!((entry.sequence, &entry.previous), (sequence + 1, &hash));
        assert_eq!(entry.hash, entry.expected_hash(), "entry {} was altered", entry.sequence);
        (sequence, hash) = (entry.sequence, entry.hash.clone());
    }
    assert_eq!((sequence, hash), (all.head.sequence, all.head.audit_hash.clone()));
}

fn entries<'a>(all: &'a Everything, subject: &'a str) -> Vec<&'a str> {
    all.audit.iter().filter(|entry| entry.subject == subject).map(|entry| entry.event.as_str()).collect()
}

/// A request has an entry for each of its versions, and a grant exactly if it was approved.
fn requests(all: &Everything) {
    for row in &all.requests {
        let id = row.request.id.as_str();
        let told = entries(all, id);
        assert_eq!(told.len() as u64, row.version, "{id}: {told:?}");
        assert_eq!(
            told.last().unwrap().trim_end_matches("agreed"),
            match row.elevation.state() {
                "pending" if row.version > 1 => "request.".to_owned(),
                state => format!("request.{state}"),
            }
        );
        let grants: Vec<_> = all
            .grants
            .iter()
            .filter(|grant| grant.request == row.request.id && grant.narrowed_from.is_none())
            .collect();
        assert_eq!(grants.len(), usize::from(row.elevation.state() == "approved"), "{id}: {grants:?}");
    }
}

/// A grant began once, ended at most once, and never reached further than what it came from.
fn grants(all: &Everything) {
    let requests: BTreeMap<_, _> = all.requests.iter().map(|row| (&row.request.id, row)).collect();
    let by_id: BTreeMap<_, _> = all.grants.iter().map(|row| (&row.grant.id, row)).collect();
    for row in &all.grants {
        let (id, grant) = (row.grant.id.as_str(), &row.grant);
        let told = entries(all, id);
        assert_eq!(told.iter().filter(|event| **event == "grant.active").count(), 1, "{id}: {told:?}");
        let ends: Vec<_> = told
            .iter()
            .filter(|event| GrantState::ALL[1..].iter().any(|state| **event == format!("grant.{state}")))
            .collect();
        match row.state {
            GrantState::Active => assert!(ends.is_empty() && row.ended.is_none(), "{id}: {told:?}"),
            state => {
                assert_eq!(ends, [&format!("grant.{state}")], "{id}: {told:?}");
                assert_eq!(row.ended.as_ref().unwrap().reason.state(), state);
            }
        }
        let request = &requests[&row.request].request;
        assert!(grant.scope.is_within(&request.scope), "{id} reaches further than its request");
        assert!(grant.window.expires_at <= row.created_at.plus(request.duration), "{id} lives longer than asked");
        assert_eq!(grant.principal, request.subject);
        assert!(grant.uses_max.is_none_or(|most| row.uses <= most), "{id} was used too often");
        assert!(grant.uses_max.is_none_or(|most| row.uses < most) || row.state != GrantState::Active, "{id}: {row:?}");
        if let Some(wider) = &row.narrowed_from {
            let wider = by_id[wider];
            assert!(grant.scope.is_within(&wider.grant.scope));
            assert!(grant.window.expires_at <= wider.grant.window.expires_at);
            assert_eq!(wider.state, GrantState::Released);
        }
    }
}

/// Revisions are dense, and whoever follows them knows what is in force.
fn feed(all: &Everything) {
    let first = all.changes.first().map_or(all.head.revision.0 + 1, |(revision, _)| revision.0);
    for (expected, (revision, _)) in (first..).zip(&all.changes) {
        assert_eq!(revision.0, expected);
    }
    assert_eq!(first + all.changes.len() as u64, all.head.revision.0 + 1);
    if first != 1 {
        return;
    }
    let (mut grants, mut locks, mut ended) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for (_, change) in &all.changes {
        match change {
            Change::Grant(grant) => {
                assert!(!ended.contains(&grant.id), "{} came back", grant.id);
                drop(grants.insert(grant.id.clone(), (**grant).clone()));
            }
            Change::End { id, .. } => {
                assert!(grants.remove(id).is_some(), "{id} ended and never began");
                ended.insert(id.clone());
            }
            Change::Lock(lock) => drop(locks.insert(lock.id.clone(), (**lock).clone())),
            Change::Unlock { id } => drop(locks.remove(id)),
            Change::Declared => {}
        }
    }
    let active = all.grants.iter().filter(|row| row.state == GrantState::Active);
    let active: BTreeMap<_, _> = active.map(|row| (row.grant.id.clone(), row.grant.clone())).collect();
    assert_eq!(grants, active);
    assert_eq!(locks.into_values().collect::<Vec<_>>(), all.locks);
}
