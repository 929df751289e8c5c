//! JSON with one reading: a single document, no key twice, bounded depth.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// When two keys of an object are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameKey {
    /// When their texts are.
    Exact,
    /// When they differ in nothing but ASCII case: some decoders (Go's) match names so.
    AnyCase,
}

/// Reads one object, nested at most `depth_max` deep. None where the bytes have another reading, or none.
pub fn object(bytes: &[u8], depth_max: usize, same: SameKey) -> Option<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { left: depth_max, same }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// A value written in one way: keys sorted, no space between.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_sorted(value, &mut text);
    text
}

/// The SHA-256 of bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256, in hex, of a value written in one way.
pub fn digest(value: &Value) -> String {
    sha256(canonical(value).as_bytes())
}

fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<(&String, &Value)> = object.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (place, (key, value)) in keys.into_iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_sorted(value, out);
            }
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                write_sorted(value, out);
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[derive(Clone, Copy)]
struct Strict {
    left: usize,
    same: SameKey,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("it is nested too deep"))?;
        Ok(Self { left, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

macro_rules! plain {
    ($($method:ident($type:ty);)*) => {
        $(fn $method<E>(self, value: $type) -> Result<Value, E> {
            Ok(Value::from(value))
        })*
    };
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    plain! {
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
        visit_str(&str);
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        Deserialize::deserialize(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(deeper)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let taken = match self.same {
                SameKey::Exact => all.contains_key(&key),
                SameKey::AnyCase => all.keys().any(|known| known.eq_ignore_ascii_case(&key)),
            };
            if taken {
                return Err(de::Error::custom("a key is there twice"));
            }
            let value = entries.next_value_seed(deeper)?;
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_are_none() {
        let read = |text: &str, same| object(text.as_bytes(), 4, same).is_some();
        assert!(read(r#"{"a":1,"b":[{"c":null}]}"#, SameKey::Exact));
        assert!(read(r#"{"a":1,"A":1}"#, SameKey::Exact));
        assert!(!read(r#"{"a":1,"A":1}"#, SameKey::AnyCase));
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1}{"#,
            r#"{"a":1} x"#,
            "[]",
            "1",
            "",
            r#"{"a":[[[[[1]]]]]}"#,
            r#"{"b":{"a":1,"a":2}}"#,
        ] {
            assert!(!read(bad, SameKey::Exact), "{bad}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(!read(&deep, SameKey::Exact));
    }
}
