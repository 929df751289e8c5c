//! What things are.
//!
//! The words of the product as types: who asks ([`principal`]), what is asked ([`action`], [`arguments`]), what is permitted and until
//! when ([`grant`], [`time`]), what overrides it ([`lock`]), what may be asked for and how asking ends ([`entitlement`],
//! [`elevation`]), and why ([`task`]); and texts that have one reading ([`json`], [`yaml`]). Everything here is pure: values
//! in, values out.
//!
//! Deliberately absent: I/O, async, a clock (callers pass [`time::Now`]), configuration, and any type of the wire, of a
//! file or of a database. `domain` names no other module of this crate.

/// A type that documents and answers write as its text, and read by its own rules.
macro_rules! as_text {
    ($type:ident, $read:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                $read(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

use as_text;

pub mod id;
pub mod json;
pub mod time;

pub mod action;
pub mod arguments;
pub mod principal;
pub mod resource;

pub mod entitlement;
pub mod grant;
pub mod lock;
mod stated;
pub mod task;
pub mod view;
pub mod yaml;

pub mod elevation;
