//! Fields of a JSON body that decide what a call does.
//!
//! The body is parsed once, strictly: one document, no key twice, bounded depth. The bytes that were parsed are the bytes
//! that are sent on.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde_json::Value;

use super::BodyRefused;
use super::template::Values;
use crate::action_map::document::EncodingDocument;
use crate::domain::json::{SameKey, object};

/// Deepest nesting of a body.
const DEPTH_MAX: usize = 32;

/// The fields of one rule.
#[derive(Debug, Clone)]
pub(super) struct BodyFields {
    pub(super) fields: Vec<BodyField>,
    pub(super) bytes_max: usize,
}

/// One field.
#[derive(Debug, Clone)]
pub(super) struct BodyField {
    pub(super) name: Box<str>,
    pub(super) pointers: Vec<String>,
    pub(super) encoding: EncodingDocument,
    pub(super) default: Option<String>,
    pub(super) equals: Option<String>,
    pub(super) present: Option<bool>,
}

impl BodyFields {
    /// Whether the rule is meant for this body.
    pub(super) fn matches(&self, json: &Value) -> bool {
        self.fields.iter().all(|field| {
            let found: Vec<&Value> = field.pointers.iter().filter_map(|pointer| json.pointer(pointer)).collect();
            field.present.is_none_or(|wanted| wanted != found.is_empty())
                && field
                    .equals
                    .as_ref()
                    .is_none_or(|wanted| found.len() == 1 && found[0].as_str().is_some_and(|given| given == wanted))
        })
    }

    /// Gives the fields' values to their names.
    pub(super) fn read<'c>(&'c self, json: &'c Value, values: &mut Values<'c>) -> Result<(), BodyRefused> {
        for field in &self.fields {
            if field.present.is_some() {
                continue;
            }
            let mut found = field.pointers.iter().filter_map(|pointer| json.pointer(pointer));
            let given = match (found.next(), found.next()) {
                (Some(_), Some(_)) => return Err(BodyRefused::Malformed),
                (Some(Value::String(text)), None) => Some(text.as_str()),
                (Some(_), None) => return Err(BodyRefused::Malformed),
                (None, _) => None,
            };
            let value = match (given, field.encoding, &field.default) {
                (Some(text), EncodingDocument::None, _) => Cow::Borrowed(text.as_bytes()),
                (Some(text), EncodingDocument::Base64, _) => {
                    Cow::Owned(STANDARD.decode(text).map_err(|_| BodyRefused::Malformed)?)
                }
                (None, _, Some(default)) => Cow::Borrowed(default.as_bytes()),
                (None, _, None) => return Err(BodyRefused::Malformed),
            };
            values.push((&*field.name, value));
        }
        Ok(())
    }
}

/// Parses a body that decides.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value, BodyRefused> {
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(BodyRefused::Unreadable);
    }
    // A body without a type is read as JSON by the backends that decide by it, so here too.
    if let Some(kind) = headers.get(CONTENT_TYPE) {
        let kind = kind.to_str().map_err(|_| BodyRefused::Unreadable)?;
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let form = kind.eq_ignore_ascii_case("application/x-www-form-urlencoded");
        if !form && !kind.eq_ignore_ascii_case("application/json") {
            return Err(BodyRefused::Unreadable);
        }
    }
    object(body, DEPTH_MAX, SameKey::AnyCase).map(Value::Object).ok_or(BodyRefused::Malformed)
}
