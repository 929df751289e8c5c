//! Documents are declared, all or none, and what they no longer allow ends.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Failed, Reply, Work};
use crate::control::catalogue::Catalogue;
use crate::control::document::{Document, Kind};
use crate::control::refusal::Refusal;
use crate::control::store::{Change, EndReason, Rows, Selector, Write};
use crate::domain::id::EntitlementName;

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// `created`, `changed` or `unchanged`.
    pub result: String,
    /// What it said before, where it changed.
    pub before: Option<serde_json::Value>,
    /// What it says now, where it changed.
    pub after: Option<serde_json::Value>,
}

impl<R: Rows> Work<'_, R> {
    pub(super) async fn declare(&mut self, documents: &[Document]) -> Result<Reply, Failed> {
        self.must_administer("admin:apply")?;
        let mut all = self.rows.documents().await?;
        let (mut applied, mut changed) = (Vec::new(), Vec::new());
        for document in documents {
            let same =
                |other: &&mut Document| other.kind == document.kind && other.metadata.name == document.metadata.name;
            let named = applied.iter().any(|a: &Applied| a.kind == document.kind && a.name == document.metadata.name);
            if named {
                let detail = format!("{} `{}` is there twice", document.kind, document.metadata.name);
                return Err(Refusal::invalid("twice", detail).into());
            }
            let mut document = document.clone();
            let mut before = None;
            let result = match all.iter_mut().find(same) {
                None => {
                    document.metadata.generation = Some(1);
                    all.push(document.clone());
                    changed.push(document.clone());
                    "created"
                }
                Some(known) if known.spec == document.spec && known.metadata.labels == document.metadata.labels => {
                    "unchanged"
                }
                Some(known) => {
                    document.metadata.generation = Some(known.metadata.generation.unwrap_or(0) + 1);
                    before = Some(known.spec.clone());
                    known.clone_from(&document);
                    changed.push(document.clone());
                    "changed"
                }
            };
            let after = (result != "unchanged").then_some(document.spec);
            let (kind, name) = (document.kind, document.metadata.name);
            applied.push(Applied { kind, name, result: result.to_owned(), before, after });
        }
        if !changed.is_empty() {
            let next = self.read(&all)?;
            let dangling = next.policies.dangling().iter().filter(|(name, _)| {
                changed.iter().any(|document| document.kind == Kind::Policy && document.metadata.name == *name)
            });
            let dangling: Vec<&str> = dangling.map(|(_, message)| message.as_str()).collect();
            if !dangling.is_empty() {
                return Err(Refusal::invalid("documents", dangling.join("\n")).into());
            }
            for document in changed {
                let subject = format!("{}/{}", document.kind, document.metadata.name);
                let detail = json!({"generation": document.metadata.generation, "spec": document.spec});
                self.plan.transition(
                    Write::Document(document),
                    Some(Change::Declared),
                    "document.applied",
                    &subject,
                    detail,
                );
            }
            self.plan.declared();
            self.end_what_is_not_allowed(&next).await?;
        }
        Ok(Reply::Applied(applied))
    }

    pub(super) async fn declare_no_more(&mut self, kind: Kind, name: &str) -> Result<Reply, Failed> {
        self.must_administer("admin:apply")?;
        let mut all = self.rows.documents().await?;
        let before = all.len();
        all.retain(|document| document.kind != kind || document.metadata.name != name);
        if all.len() == before {
            return Err(Refusal::not_found("document", format_args!("{kind}/{name}")).into());
        }
        let next = self.read(&all)?;
        let write = Write::NoDocument(kind, name.to_owned());
        let subject = format!("{kind}/{name}");
        self.plan.transition(write, Some(Change::Declared), "document.deleted", &subject, json!({}));
        self.plan.declared();
        self.end_what_is_not_allowed(&next).await?;
        Ok(Reply::Done)
    }

    fn read(&self, documents: &[Document]) -> Result<Catalogue, Refusal> {
        Catalogue::read(documents, 0).map_err(|errors| Refusal::invalid("documents", errors.join("\n")))
    }

    /// Grants of entitlements that are gone, and of principals that are disabled or known no more.
    async fn end_what_is_not_allowed(&mut self, next: &Catalogue) -> Result<(), Failed> {
        let gone: Vec<EntitlementName> =
            self.catalogue.entitlements.keys().filter(|name| !next.entitlements.contains_key(*name)).cloned().collect();
        for name in gone {
            let selector = Selector { entitlement: Some(name), ..Selector::default() };
            for row in self.rows.selected(&selector).await? {
                self.end(row, EndReason::EntitlementDeleted);
            }
        }
        for entitlement in next.entitlements.keys() {
            let selector = Selector { entitlement: Some(entitlement.clone()), ..Selector::default() };
            for row in self.rows.selected(&selector).await? {
                if next.know(&row.grant.principal).is_none_or(|known| known.disabled) {
                    self.end(row, EndReason::PrincipalDisabled);
                }
            }
        }
        Ok(())
    }
}
