//! Finds a key that stands twice in an object of JSON. `serde_json` keeps the last value without a word, so that a
//! request could say one thing to a person who reads it, and another to the server.

use std::{collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Returns the path of the first key that stands twice, such as `params.arguments.image`.
///
/// # Errors
/// The text is not JSON, or nested too deeply.
pub fn repeated_key(json: &[u8]) -> Result<Option<String>, serde_json::Error> {
    let mut repeated = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Walk { path: String::new(), repeated: &mut repeated }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(repeated)
}

struct Walk<'a> {
    path: String,
    repeated: &'a mut Option<String>,
}

impl Walk<'_> {
    fn below(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = self.below(&key);
            map.next_value_seed(Walk { path: path.clone(), repeated: self.repeated })?;
            if !keys.insert(key) {
                self.repeated.get_or_insert(path);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let path = self.below("[]");
        while list.next_element_seed(Walk { path: path.clone(), repeated: self.repeated })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_found_at_any_depth() {
        let repeated = |json: &str| repeated_key(json.as_bytes()).unwrap();
        assert_eq!(repeated(r#"{"a": 1, "b": {"a": [null, true, 1.5, "x", -1]}}"#), None);
        assert_eq!(repeated(r#"{"id": 7, "id": 8}"#).as_deref(), Some("id"));
        assert_eq!(
            repeated(r#"{"p": {"q": [{"a": 1}, {"a": 1, "\u0061": 2}]}}"#).as_deref(),
            Some("p.q.[].a")
        );
        assert_eq!(repeated("[1]"), None);
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for bad in ["{", "{} x", deep.as_str()] {
            assert!(repeated_key(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
