//! Pages of lists: by key, so that what is added meanwhile shifts nothing.

use std::future::Future;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;
use crate::control::store::{GrantRow, Page, RequestRow, Rows, StoreError};
use crate::domain::principal::Principal;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listed<T> {
    /// What is on it.
    pub(super) items: Vec<T>,
    /// Send it as `page_token` to get the next; none on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_page_token: Option<String>,
}

/// Items on a page that asks for no number.
const SIZE_DEFAULT: u32 = 50;

/// Most items on a page.
const SIZE_MAX: u32 = 500;

/// Rows that are looked at for one page; a page may be short, or empty, and still have a next one.
const LOOKS_MAX: u32 = 10;

/// Reads `page_size`.
pub(super) fn size(asked: Option<u32>) -> Result<u32, Problem> {
    match asked {
        None => Ok(SIZE_DEFAULT),
        Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(size),
        Some(_) => Err(Problem::invalid("page_size", format!("`page_size` is from 1 to {SIZE_MAX}"))),
    }
}

/// A token for what follows after `id`, good for this caller and this question only.
///
/// It is bound and not secret: whoever makes one up gets no other rows than those that are theirs to see.
pub(super) fn token(caller: &Principal, question: &str, id: &str) -> String {
    URL_SAFE_NO_PAD.encode([&binding(caller, question, id)[..], id.as_bytes()].concat())
}

/// What follows after which id a token asks for.
pub(super) fn after(caller: &Principal, question: &str, token: Option<&str>) -> Result<Option<String>, Problem> {
    let Some(token) = token else { return Ok(None) };
    let refuse = || Problem::invalid("page_token", "`page_token` is of another list or another caller: begin anew");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refuse())?;
    let (bound, id) = bytes.split_at_checked(16).ok_or_else(refuse)?;
    let id = std::str::from_utf8(id).map_err(|_| refuse())?;
    if bound != binding(caller, question, id) {
        return Err(refuse());
    }
    Ok(Some(id.to_owned()))
}

fn binding(caller: &Principal, question: &str, id: &str) -> [u8; 16] {
    let text = format!("leasehold page\n{caller}\n{question}\n{id}");
    let mut bound = [0; 16];
    bound.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..16]);
    bound
}

/// A row that is listed by its id.
pub(super) trait Row: Sized + Send {
    /// Its id.
    fn id(&self) -> &str;
    /// A page of them.
    fn fetch<R: Rows>(rows: &mut R, page: &Page) -> impl Future<Output = Result<Vec<Self>, StoreError>> + Send;
}

impl Row for RequestRow {
    fn id(&self) -> &str {
        self.request.id.as_str()
    }

    async fn fetch<R: Rows>(rows: &mut R, page: &Page) -> Result<Vec<Self>, StoreError> {
        rows.requests(page).await
    }
}

impl Row for GrantRow {
    fn id(&self) -> &str {
        self.grant.id.as_str()
    }

    async fn fetch<R: Rows>(rows: &mut R, page: &Page) -> Result<Vec<Self>, StoreError> {
        rows.grants(page).await
    }
}

/// The rows of one page that are to be kept, and the id after which the next begins.
pub(super) async fn scan<T: Row, R: Rows>(
    rows: &mut R,
    mut page: Page,
    size: u32,
    keep: impl Fn(&T) -> bool + Send,
) -> Result<(Vec<T>, Option<String>), StoreError> {
    page.limit = SIZE_MAX;
    let size = size as usize;
    let mut kept: Vec<T> = Vec::new();
    for _ in 0..LOOKS_MAX {
        let found = T::fetch(rows, &page).await?;
        let last = found.len() < SIZE_MAX as usize;
        for row in found {
            if kept.len() == size {
                return Ok(next(kept));
            }
            page.after = Some(row.id().to_owned());
            if keep(&row) {
                kept.push(row);
            }
        }
        if last {
            return Ok((kept, None));
        }
    }
    Ok((kept, page.after))
}

fn next<T: Row>(kept: Vec<T>) -> (Vec<T>, Option<String>) {
    let after = kept.last().map(|row| row.id().to_owned());
    (kept, after)
}
