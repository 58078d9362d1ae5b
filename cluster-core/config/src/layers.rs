//! Configuration layers. The controller stores the global, tenant and node layers; the local layer is the node's file.
//! Mappings are merged, and any other value is replaced by the higher layer.

use std::{fmt, str::FromStr};

use aegis_identity::sha256;
use aegis_types::{
    error::{Error, Result},
    ids::{NodeId, TenantSlug},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Scope of a layer, from the lowest to the highest. Written `global`, `tenant/SLUG`, `node/ID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Global,
    Tenant(TenantSlug),
    Node(NodeId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Tenant(slug) => write!(f, "tenant/{slug}"),
            Self::Node(node_id) => write!(f, "node/{node_id}"),
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('/') {
            None if text == "global" => Ok(Self::Global),
            Some(("tenant", slug)) => TenantSlug::parse(slug).map(Self::Tenant),
            Some(("node", id)) => NodeId::parse(id).map(Self::Node),
            _ => Err(Error::invalid(format!("\"{}\" is no layer", aegis_types::text::shown(text)))
                .remedy("name it global, tenant/SLUG or node/ID")),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        <String as Deserialize>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Scope {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scope".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// One stored layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigSnapshot {
    pub scope: Scope,
    /// Content, with one spelling of each key.
    pub json: Value,
    /// Version of the content. Equal content has the same version.
    pub version: String,
}

/// Configuration that is pushed to a node, merged from its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MergedConfig {
    pub json: Value,
    pub version: String,
}

impl MergedConfig {
    /// Merges layers, ordered from the lowest to the highest.
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a Value>) -> Self {
        let json = merge(layers);
        Self { version: version_of(&json), json }
    }

    /// Returns the configuration without any layer.
    pub fn none() -> Self {
        Self::of([])
    }

    pub fn is_none(&self) -> bool {
        self.json.as_object().is_some_and(Map::is_empty)
    }
}

/// Merges layers, ordered from the lowest to the highest.
pub fn merge<'a>(layers: impl IntoIterator<Item = &'a Value>) -> Value {
    let mut merged = Value::Object(Map::new());
    for layer in layers {
        lay(&mut merged, layer);
    }
    merged
}

fn lay(below: &mut Value, above: &Value) {
    match (below, above) {
        (_, Value::Null) => {}
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                match below.get_mut(key) {
                    Some(known) => lay(known, value),
                    None => {
                        below.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (below, above) => *below = above.clone(),
    }
}

/// Returns twelve hexadecimal digits of the SHA-256 of the content, with sorted keys.
pub fn version_of(json: &Value) -> String {
    let mut canonical = String::new();
    write_canonical(json, &mut canonical);
    hex::encode(&sha256(canonical.as_bytes())[..6])
}

/// Writes JSON with sorted keys, independent of the order in the mapping.
fn write_canonical(value: &Value, to: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            to.push('{');
            for (key, value) in entries {
                to.push_str(&Value::from(key.as_str()).to_string());
                to.push(':');
                write_canonical(value, to);
                to.push(',');
            }
            to.push('}');
        }
        Value::Array(values) => {
            to.push('[');
            for value in values {
                write_canonical(value, to);
                to.push(',');
            }
            to.push(']');
        }
        plain => to.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mappings_are_merged_and_all_else_is_replaced() {
        let layers = [
            json!({"a": {"x": 1, "y": [1, 2]}, "b": "low", "c": {"d": 1}}),
            json!({"a": {"y": [3], "z": true}, "b": "high"}),
            json!({"c": 7, "b": null}),
        ];
        assert_eq!(merge(&layers), json!({"a": {"x": 1, "y": [3], "z": true}, "b": "high", "c": 7}));
        assert_eq!(merge([]), json!({}));
    }

    #[test]
    fn a_version_is_of_the_content_alone() {
        let (one, two) = (json!({"a": 1, "b": [1, {"c": 2}]}), json!({"b": [1, {"c": 2}], "a": 1}));
        assert_eq!(version_of(&one), version_of(&two));
        for other in [json!({"a": 1, "b": [{"c": 2}, 1]}), json!({"a": "1", "b": [1, {"c": 2}]}), json!({})] {
            assert_ne!(version_of(&one), version_of(&other), "{other}");
        }
        assert!(MergedConfig::none().is_none());
    }

    #[test]
    fn scopes_are_read_and_written() {
        for text in ["global", "tenant/acme", "node/edge-1"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for bad in ["", "Global", "tenant/", "tenant", "node/../x", "node/A", "local", "tenant/a/b"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }
}
