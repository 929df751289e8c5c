//! A renewal: a new request whose grant takes the place of one that still runs.
//!
//! Nothing ever moves the end of a grant later. What renews it is asked, ruled and approved like any other request; it
//! lasts no longer than the entitlement allows from when the first of the chain began.

use super::{Ask, Failed, Work};
use crate::control::refusal::Refusal;
use crate::control::store::{GrantRow, Rows};
use crate::domain::elevation::Request;
use crate::domain::entitlement::Entitlement;
use crate::domain::grant::GrantState;
use crate::domain::principal::Principal;
use crate::domain::time::Timestamp;

impl<R: Rows> Work<'_, R> {
    /// The grant that is to be renewed.
    pub(super) async fn renewed(
        &mut self,
        ask: &Ask,
        of: &Entitlement,
        holder: &Principal,
    ) -> Result<Option<GrantRow>, Failed> {
        let Some(id) = &ask.renews else { return Ok(None) };
        let row = self.grant_row(id).await?;
        if row.grant.principal != *holder || row.entitlement != of.name {
            return Err(Refusal::not_found("grant", format_args!("{id}` of `{}", of.name)).into());
        }
        if !self.runs(&row) {
            return Err(Refusal::conflict("ended", format_args!("grant `{id}` has ended: ask anew")).into());
        }
        if chain_until(&row, of) <= self.now {
            let detail = format!(
                "`{id}` goes back to {} and `{}` allows {} s from then: give it back and ask anew",
                row.began_at,
                of.name,
                of.duration_max.as_secs()
            );
            return Err(Refusal::forbidden("renewal_cap", detail).into());
        }
        Ok(Some(row))
    }

    /// The grant that a request renews, as it is now; an error in words where it runs no more.
    pub(super) async fn still_renewed(
        &mut self,
        request: &Request,
    ) -> Result<Result<Option<GrantRow>, String>, Failed> {
        let Some(id) = &request.renews else { return Ok(Ok(None)) };
        let row = self.grant_row(id).await?;
        Ok(if self.runs(&row) { Ok(Some(row)) } else { Err(format!("the grant that it renews is {}", row.state)) })
    }

    fn runs(&self, row: &GrantRow) -> bool {
        row.state == GrantState::Active && self.now < row.grant.window.expires_at
    }
}

/// Until when grants that renew this one can last.
pub(super) fn chain_until(row: &GrantRow, of: &Entitlement) -> Timestamp {
    row.began_at.plus(of.duration_max)
}
