//! What can stand behind a key.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Source;

/// What a key holds and where. Unlike an `Option`, it refuses a key with nothing after it: `tls:` alone must not mean
/// "no TLS".
#[derive(Debug)]
pub(in crate::config) struct Field<T>(pub(in crate::config) Option<Spanned<T>>);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

impl<T> Field<T> {
    /// The value, if the key is there.
    pub(in crate::config) fn value(&self) -> Option<&T> {
        self.0.as_ref().map(|s| &s.value)
    }

    /// Line and column of the value as it is used.
    pub(in crate::config) fn place(&self) -> Option<(u32, u32)> {
        let location = self.0.as_ref()?.referenced;
        let (line, column) = (u32::try_from(location.line()).ok()?, u32::try_from(location.column()).ok()?);
        (line > 0).then_some((line, column))
    }
}

/// Which keys a type brings to the file.
pub(in crate::config) trait Shape {
    /// Appends the keys below `prefix`, such as `listeners[].tls.key`.
    fn keys(_prefix: &str, _out: &mut Vec<String>) {}
}

/// A text, a duration, a size, a choice: the second stage reads it.
pub(in crate::config) type Text = String;
impl Shape for Text {}

/// `true` or `false`, and not the text `"false"`.
#[derive(Debug, Clone, Copy)]
pub(in crate::config) struct Flag(pub(in crate::config) bool);
impl Shape for Flag {}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagVisitor;
        impl Visitor<'_> for FlagVisitor {
            type Value = Flag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true` or `false` without quotes")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }
        }
        deserializer.deserialize_any(FlagVisitor)
    }
}

/// A whole number from zero up, and not a text of digits.
#[derive(Debug, Clone, Copy)]
pub(in crate::config) struct Count(pub(in crate::config) u64);
impl Shape for Count {}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;
        impl Visitor<'_> for CountVisitor {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0 up, without quotes")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Count, E> {
                Ok(Count(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Count, E> {
                u64::try_from(value)
                    .map(Count)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &"a whole number from 0 up"))
            }
        }
        deserializer.deserialize_any(CountVisitor)
    }
}

/// A text, a whole number or a boolean, kept as what it is.
#[derive(Debug, Clone)]
pub(in crate::config) struct Scalar(pub(in crate::config) serde_json::Value);
impl Shape for Scalar {}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a whole number, `true` or `false`")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// A list.
pub(in crate::config) type List<T> = Vec<Field<T>>;
impl<T: Shape> Shape for List<T> {
    fn keys(prefix: &str, out: &mut Vec<String>) {
        T::keys(&format!("{prefix}[]"), out);
    }
}

/// Names of the writer's choice.
pub(in crate::config) type Named<T> = BTreeMap<String, Field<T>>;
impl<T> Shape for Named<T> {}

/// One, or a list of several.
#[derive(Debug)]
pub(in crate::config) struct OneOrMany<T>(pub(in crate::config) List<T>);
impl<T: Shape> Shape for OneOrMany<T> {
    fn keys(prefix: &str, out: &mut Vec<String>) {
        T::keys(prefix, out);
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping, or a list of mappings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(seq)).map(OneOrMany)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = T::deserialize(MapAccessDeserializer::new(map))?;
                let unknown = serde_saphyr::Location::UNKNOWN;
                Ok(OneOrMany(vec![Field(Some(Spanned::new(one, unknown, unknown)))]))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// Where a secret comes from; the text form exists only to be refused with what to write instead.
#[derive(Debug)]
pub(in crate::config) enum SourceOrText {
    /// `source: {file: …}`
    Source(Box<Source>),
    /// `source: hunter2`, or `source: env:NAME`. The text is kept for its scheme alone and is never shown.
    Text(Text),
}

impl Shape for SourceOrText {
    fn keys(prefix: &str, out: &mut Vec<String>) {
        Source::keys(prefix, out);
    }
}

impl<'de> Deserialize<'de> for SourceOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SourceOrText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a source such as `{file: /run/secrets/name}`")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(text.to_owned()))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(SourceOrText::Text(String::new()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Source::deserialize(MapAccessDeserializer::new(map)).map(Box::new).map(SourceOrText::Source)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
