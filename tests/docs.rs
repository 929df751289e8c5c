//! The pages of reference name everything that exists, and nothing that does not.

#![allow(missing_docs)]

use std::collections::BTreeSet;

use leasehold::config;
use leasehold::sidecar::reason::Reason;

fn page(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::read_to_string(path).expect("a readable page")
}

/// The first cell of each row of the tables, without its marks.
fn first_cells(page: &str) -> Vec<(String, Vec<String>)> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    rows.map(|row| {
        let cells: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        (cells[1].replace(['`', '*'], ""), cells)
    })
    .collect()
}

#[test]
fn every_reason_has_a_row_with_its_status() {
    let text = page("errors.md");
    let rows = first_cells(&text);
    for reason in Reason::ALL {
        let Some((_, cells)) = rows.iter().find(|(name, _)| name == reason.as_str()) else {
            panic!("`{reason}` is not in docs/errors.md")
        };
        let status = reason.status().as_u16();
        if status != 200 {
            assert!(cells[2].starts_with(&status.to_string()), "`{reason}` has the status {status}, not {}", cells[2]);
        }
        assert!(cells.len() >= 6 && !cells[3].is_empty() && !cells[4].is_empty(), "`{reason}` is not explained");
    }
    for (name, _) in rows {
        assert!(Reason::ALL.iter().any(|reason| reason.as_str() == name), "`{name}` is no reason");
    }
}

#[test]
fn every_key_has_a_row() {
    let shown: BTreeSet<String> = first_cells(&page("configuration.md")).into_iter().map(|(name, _)| name).collect();
    let keys: BTreeSet<String> = config::keys().into_iter().collect();
    assert_eq!(shown, keys);
}

/// The names of metrics in the sources: texts that begin as only they do.
fn metrics(folder: &std::path::Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            metrics(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a readable source file");
        let named = text.split('"').filter(|text| text.starts_with("leasehold_") || text.starts_with("process_"));
        let is_name = |text: &&str| text.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase());
        found.extend(named.filter(is_name).map(str::to_owned));
    }
}

#[test]
fn every_metric_has_a_row() {
    let shown: BTreeSet<String> = first_cells(&page("metrics.md")).into_iter().map(|(name, _)| name).collect();
    let mut made = BTreeSet::new();
    metrics(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut made);
    assert!(made.len() > 20, "{made:?}");
    assert_eq!(shown, made);
}
