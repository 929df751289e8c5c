//! What deserves a look, and how to mend it.

use serde::Serialize;
use utoipa::ToSchema;

use super::catalogue::{ADMINS, Catalogue};
use super::store::{Page, Review, Rows, StoreError};
use crate::domain::time::Timestamp;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something cannot work.
    Error,
    /// Something is weaker than it looks.
    Warning,
    /// Something to know.
    Info,
}

/// Something that deserves a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// A stable word for programs.
    pub code: &'static str,
    /// What it is about, such as `Entitlement/pg-maint`.
    pub subject: String,
    /// What was found.
    pub detail: String,
    /// How to mend it.
    pub fix: String,
}

/// Looks at documents and rows.
///
/// # Errors
/// The store cannot answer.
pub async fn examine<R: Rows>(catalogue: &Catalogue, rows: &mut R, now: Timestamp) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    examine_catalogue(catalogue, &mut findings);
    for (document, message) in catalogue.policies.dangling() {
        findings.push(Finding {
            severity: Severity::Warning,
            code: "policy_of_nothing",
            subject: format!("Policy/{document}"),
            detail: message.clone(),
            fix: "name an entitlement that is declared, or take the policy away".to_owned(),
        });
    }
    for lock in rows.locks().await? {
        if lock.expires_at.is_none_or(|end| now < end) {
            findings.push(Finding {
                severity: Severity::Info,
                code: "lock_in_force",
                subject: format!("Lock/{}", lock.id),
                detail: format!("it stops calls: {}", lock.message),
                fix: format!("when it is over, `leasehold unlock {}`", lock.id),
            });
        }
    }
    let page = Page { limit: 10_000, ..Page::default() };
    for row in rows.grants(&page).await? {
        if row.review == Some(Review::Open) {
            findings.push(Finding {
                severity: Severity::Warning,
                code: "review_open",
                subject: format!("Grant/{}", row.grant.id),
                detail: format!("break-glass of `{}` on `{}` was not reviewed", row.grant.principal, row.grant.backend),
                fix: format!("look at what was done under it, then `leasehold review {} --note …`", row.grant.id),
            });
        }
    }
    findings.sort_by(|a, b| (a.severity, &a.subject).cmp(&(b.severity, &b.subject)));
    Ok(findings)
}

fn examine_catalogue(catalogue: &Catalogue, findings: &mut Vec<Finding>) {
    let mut found = |severity, code, subject: String, detail: String, fix: &str| {
        findings.push(Finding { severity, code, subject, detail, fix: fix.to_owned() });
    };
    let has_members =
        |group: &str| catalogue.principals().any(|p| !p.disabled && p.groups.iter().any(|other| other == group));
    if !has_members(ADMINS) {
        found(
            Severity::Info,
            "no_admin",
            format!("Group/{ADMINS}"),
            "nobody but the local admin token administers".into(),
            "declare a Principal of a person in that group, then log in as them",
        );
    }
    for entitlement in catalogue.entitlements.values() {
        let subject = format!("Entitlement/{}", entitlement.name);
        if !entitlement.eligible.iter().any(|group| has_members(group)) {
            let detail = format!("nobody is in {}", entitlement.eligible.join(" or "));
            found(Severity::Warning, "nobody_eligible", subject.clone(), detail, "put a Principal into the group");
        }
        for (number, step) in entitlement.steps.iter().enumerate() {
            let exact =
                catalogue.principals().filter(|p| !p.disabled && p.groups.iter().any(|g| step.approvers.contains(g)));
            let (mut people, mut open) = (0_u32, false);
            for principal in exact {
                open |= principal.principal.ends_with('*');
                people += 1;
            }
            if !open && people < step.quorum {
                let detail = format!("step {number} wants {} approvers and there are {people}", step.quorum);
                found(
                    Severity::Error,
                    "quorum_out_of_reach",
                    subject.clone(),
                    detail,
                    "add approvers or lower the quorum",
                );
            }
        }
    }
    for principal in catalogue.principals() {
        let Some(owner) = &principal.owner else { continue };
        let known = crate::domain::principal::Principal::parse(owner).ok().and_then(|owner| catalogue.know(&owner));
        if known.is_none_or(|known| known.disabled) {
            found(
                Severity::Warning,
                "owner_unknown",
                format!("Principal `{}`", principal.principal),
                format!("its owner `{owner}` is no Principal, or a disabled one"),
                "name somebody who is there",
            );
        }
    }
    for backend in catalogue.backends.keys() {
        if !catalogue.entitlements.values().any(|e| e.backend == *backend) {
            let detail = "nobody can ask for anything on it".to_owned();
            found(Severity::Info, "no_entitlement", format!("Backend/{backend}"), detail, "declare an Entitlement");
        }
    }
}
