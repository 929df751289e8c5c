//! `leasehold apply`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use super::{Call, Common, Failure, render};
use crate::cli::{Output, print};
use crate::config;

/// The largest file of documents.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// How deep folders are looked into.
const DEPTH_MAX: usize = 8;

/// How many unchanged lines stand around a changed one.
const CONTEXT_LINES: usize = 3;

/// What to declare.
#[derive(Debug, Args)]
pub(in crate::cli) struct Apply {
    /// A file, a folder with `.yaml` and `.json` files, or `-` for standard input; may be given more than once
    #[arg(short, long = "file", value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    /// Shows what would change, and changes nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Apply {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut documents = Vec::new();
        for path in &self.files {
            for file in files(path).map_err(Failure::Usage)? {
                documents.extend(read(&file)?);
            }
        }
        if documents.is_empty() {
            let named: Vec<String> = self.files.iter().map(|path| path.display().to_string()).collect();
            return Err(Failure::Usage(anyhow!("there is no document in {}", named.join(", "))));
        }
        let client = self.common.client()?;
        let call = Call::post(&["v1", "apply"], json!({"documents": documents})).dry_run(self.dry_run);
        let body = client.send(&call)?.body;
        let results = body.get("results").and_then(Value::as_array).context("the answer has no `results`")?;
        if self.common.output != Output::Table {
            return Ok(render::one(self.common.output, &body, |_| String::new())?);
        }
        for result in results {
            print::out(&applied(result, self.dry_run, print::colours_out()));
        }
        if self.dry_run {
            print::aside("nothing was changed: --dry-run");
        }
        Ok(())
    }
}

/// The files that a path means: itself, or those in it and below in the order of their names.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    collect(path, 0, &mut found)?;
    anyhow::ensure!(!found.is_empty(), "{} has no file that ends in .yaml, .yml or .json", path.display());
    Ok(found)
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(depth <= DEPTH_MAX, "{} is more than {DEPTH_MAX} folders deep", folder.display());
    let unreadable = || format!("{} cannot be read", folder.display());
    let mut inside = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        inside.push(entry.with_context(unreadable)?.path());
    }
    inside.sort();
    for file in inside {
        if file.is_dir() {
            collect(&file, depth + 1, found)?;
            continue;
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let is_document = ["yaml", "yml", "json"].iter().any(|end| name.ends_with(&format!(".{end}")));
        // Matrices that test policies lie beside the documents.
        let is_matrix = name.ends_with("_test.yaml") || name.ends_with("_test.yml");
        if is_document && !is_matrix && file.is_file() {
            found.push(file);
        }
    }
    Ok(())
}

/// The documents in a file.
fn read(path: &Path) -> Result<Vec<Value>, Failure> {
    let shown = path.display();
    let mut text = String::new();
    let taken = if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    let length = taken.with_context(|| format!("{shown} cannot be read")).map_err(Failure::Usage)?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(Failure::Usage(anyhow!("{shown} is larger than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    let documents = config::client::documents(&text, path)?;
    for (index, document) in documents.iter().enumerate() {
        let has = |pointer: &str| document.pointer(pointer).is_some_and(Value::is_string);
        if !(has("/apiVersion") && has("/kind") && has("/metadata/name")) {
            let number = index + 1;
            let wanted = "a document has `apiVersion`, `kind`, `metadata.name` and `spec`";
            return Err(Failure::Usage(anyhow!("{shown}: document {number} is none: {wanted}")));
        }
    }
    Ok(documents)
}

/// One line for a document, and what changes of it.
fn applied(result: &Value, dry_run: bool, colours: bool) -> String {
    let of = |key: &str| render::text(result, &[key]);
    let (kind, name, what) = (of("/kind"), of("/name"), of("/result"));
    let would = if dry_run && what != "unchanged" { "would be " } else { "" };
    let mut text = print::safe(&format!("{kind}/{name} {would}{what}\n"));
    let (before, after) = (result.get("before"), result.get("after"));
    if dry_run && (before.is_some() || after.is_some()) {
        text.push_str(&diff(&yaml(before), &yaml(after), colours));
    }
    text
}

fn yaml(spec: Option<&Value>) -> String {
    match spec {
        None | Some(Value::Null) => String::new(),
        Some(spec) => serde_saphyr::to_string(spec).unwrap_or_else(|_| format!("{spec:#}\n")),
    }
}

/// What is taken out and put in, line by line, with what stands around it.
fn diff(before: &str, after: &str, colours: bool) -> String {
    let mut text = String::new();
    for group in TextDiff::from_lines(before, after).grouped_ops(CONTEXT_LINES) {
        if !text.is_empty() {
            text.push_str("    …\n");
        }
        let lines = TextDiff::from_lines(before, after);
        for change in group.iter().flat_map(|operation| lines.iter_changes(operation)) {
            let line = print::safe(change.value().trim_end_matches('\n'));
            let (mark, colour) = match change.tag() {
                ChangeTag::Equal => (' ', None),
                ChangeTag::Delete => ('-', Some("31")),
                ChangeTag::Insert => ('+', Some("32")),
            };
            match colour.filter(|_| colours) {
                Some(colour) => text.push_str(&format!("  \u{1b}[{colour}m{mark} {line}\u{1b}[0m\n")),
                None => text.push_str(format!("  {mark} {line}").trim_end()),
            }
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_with_what_stands_around_it() {
        let result = json!({
            "kind": "Entitlement", "name": "maint", "result": "changed",
            "before": {"backend": "db", "duration_max": "30m", "eligible": ["dba"]},
            "after": {"backend": "db", "duration_max": "15m", "eligible": ["dba"]},
        });
        assert_eq!(
            applied(&result, true, false),
            "Entitlement/maint would be changed\n    backend: db\n  - duration_max: 30m\n  + duration_max: 15m\n    eligible:\n    - dba\n"
        );
        assert_eq!(applied(&result, false, false), "Entitlement/maint changed\n");
        let created = json!({"kind": "Policy", "name": "p", "result": "created", "after": {"cedar": "a\nb\n"}});
        let shown = applied(&created, true, false);
        assert!(shown.starts_with("Policy/p would be created\n  + cedar:") && !shown.contains("  - "), "{shown}");
        let same = json!({"kind": "Policy", "name": "p", "result": "unchanged"});
        assert_eq!(applied(&same, true, false), "Policy/p unchanged\n");
    }

    #[test]
    fn a_folder_is_its_documents_without_its_matrices() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["b.yaml", "a.json", "x_test.yaml", "README.md", "c.yml"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        std::fs::create_dir(folder.path().join("deeper")).expect("a folder");
        std::fs::write(folder.path().join("deeper/d.yaml"), "").expect("written");
        let found = files(folder.path()).expect("files");
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap_or_default()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "c.yml", "d.yaml"]);
        assert!(files(&folder.path().join("nothing")).is_ok_and(|files| files.len() == 1));
    }

    #[test]
    fn what_is_no_document_is_refused_before_anything_is_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.yaml");
        let check = |text: &str| {
            std::fs::write(&file, text).expect("written");
            read(&file)
        };
        let good = "apiVersion: leasehold/v1\nkind: Policy\nmetadata: {name: a}\nspec: {cedar: |\n  x}\n";
        let two = "apiVersion: leasehold/v1\nkind: Policy\nmetadata: {name: a}\nspec: {}\n---\napiVersion: leasehold/v1\nkind: Policy\nmetadata: {name: b}\nspec: {}\n";
        assert!(check(two).is_ok_and(|documents| documents.len() == 2));
        assert!(check("---\n# nothing\n").is_ok_and(|documents| documents.is_empty()));
        for bad in [good, "a: 1\na: 2\n", "kind: Policy\n", "- 1\n", "{", "a: &x [*x]\n"] {
            assert!(check(bad).is_err(), "`{bad}` was accepted");
        }
    }
}
