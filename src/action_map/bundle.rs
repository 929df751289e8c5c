//! What a sidecar has to know of a backend, in a form that can travel.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::document::ActionMapDocument;
use crate::domain::json;

/// What a control plane says of one backend. A field that is not known refuses it: what it says could make a call another
/// action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendBundle {
    /// Its action map; none where its document lists actions, and where there is no such document any more.
    pub action_map: Option<NamedMap>,
}

/// An action map under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedMap {
    /// The name of its document.
    pub name: String,
    /// What it says.
    pub map: ActionMapDocument,
}

/// A bundle as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The SHA-256 of the content, in hex.
    pub digest: Arc<str>,
    /// JSON, written in one way.
    pub content: Bytes,
}

impl BackendBundle {
    /// The bundle as it travels: the same bytes exactly where it says the same.
    pub fn pack(&self) -> Packed {
        let content = json::canonical(&serde_json::to_value(self).expect("texts and lists of them are JSON"));
        Packed { digest: json::sha256(content.as_bytes()).into(), content: content.into() }
    }

    /// Reads a bundle that came.
    ///
    /// # Errors
    /// A sentence: the content is not that of the digest, or says what this version does not know.
    pub fn unpack(digest: &str, content: &[u8]) -> Result<Self, String> {
        if json::sha256(content) != digest {
            return Err("its content is not that of its digest".to_owned());
        }
        serde_json::from_slice(content).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(rules: serde_json::Value) -> BackendBundle {
        let map = serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap();
        BackendBundle { action_map: Some(NamedMap { name: "m".to_owned(), map }) }
    }

    #[test]
    fn what_is_packed_is_what_is_unpacked_and_nothing_else_is() {
        let rule = serde_json::json!({
            "action": "x.get", "class": "read", "method": ["GET", "POST"], "path": "/x/{y}", "resource": "x/{y}/{z...}",
            "headers": {"a": {"equals": "b"}}, "query": {"q": {"present": false}}, "upgrade": "websocket",
            "streaming": true, "body_bytes_max": 7, "range": {"from": "z", "to": "y"},
            "body": {"z": {"pointer": "/z", "or": ["/y"], "encoding": "base64", "default": "", "present": true}},
        });
        for bundle in [BackendBundle::default(), bundle(serde_json::json!([rule]))] {
            let Packed { digest, content } = bundle.pack();
            assert_eq!(BackendBundle::unpack(&digest, &content), Ok(bundle.clone()));
            assert_eq!(bundle.clone().pack().digest, digest);
            let other = [&content[..], b" "].concat();
            assert!(BackendBundle::unpack(&digest, &other).unwrap_err().contains("not that of its digest"));
        }
        for bad in [r#"{"action_map":null,"more":1}"#, r#"{"action_map":{"name":"m","map":{}}}"#, "", "[]"] {
            assert!(BackendBundle::unpack(&json::sha256(bad.as_bytes()), bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
