//! From text to a checked [`NodeConfig`]: YAML, both spellings of a key, unknown keys by path.

use aegis_types::error::{Error, ErrorCode, Result};
use serde_json::{Map, Value};

use super::{
    document,
    schema::{API_VERSION, KIND, NodeConfig},
};

/// A configuration has a few kilobytes.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;

/// The second spelling of a key: where, and what we call it.
const ALIASES: [(&[&str], &str, &[&str]); 4] = [
    (&["spec", "cluster"], "controller_endpoint", &["controller", "endpoint"]),
    (&["spec", "cluster"], "keypair_path", &["node_keypair_path"]),
    (&["spec", "cluster"], "heartbeat_interval_seconds", &["heartbeat_interval_secs"]),
    (&["spec", "runtime"], "docker_network_mode", &["container_network_mode"]),
];

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ConfigInvalid, message)
}

pub(super) fn parse(text: &str) -> Result<NodeConfig> {
    if text.len() > CONFIG_BYTES_MAX {
        return Err(invalid(format!(
            "the file has {} bytes; at most {CONFIG_BYTES_MAX} are read",
            text.len()
        )));
    }
    let mut document: Value = if text.trim().is_empty() {
        Value::Object(Map::new())
    } else {
        document::from_yaml(text).map_err(|e| invalid(format!("it is not sound YAML: {e}")))?
    };
    normalise(&mut document)?;
    typed(document)
}

/// One spelling of each key, no empty keys, and nothing unknown.
pub(super) fn normalise(document: &mut Value) -> Result<()> {
    if document.is_null() {
        *document = Value::Object(Map::new());
    }
    if !document.is_object() {
        return Err(invalid("it is not a mapping").remedy(format!("begin with apiVersion: {API_VERSION}")));
    }
    for (parent, alias, canonical) in ALIASES {
        rename(document, parent, alias, canonical)?;
    }
    document::drop_nulls(document);
    let unknown = document::unknown_keys::<NodeConfig>(document);
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(invalid(unknown.join("; ")).remedy("correct or remove what is unknown")),
    }
}

/// The types of what is normalised.
pub(super) fn typed(document: Value) -> Result<NodeConfig> {
    let mut config: NodeConfig = serde_path_to_error::deserialize(document.clone())
        .map_err(|e| invalid(format!("{}: {}", e.path(), e.inner())))?;
    config.document = document;
    for (key, given, expected) in
        [("apiVersion", &config.api_version, API_VERSION), ("kind", &config.kind, KIND)]
    {
        if given.as_deref().is_some_and(|given| given != expected) {
            return Err(
                invalid(format!("{key} is not {expected}")).remedy(format!("write {key}: {expected}"))
            );
        }
    }
    Ok(config)
}

fn rename(document: &mut Value, parent: &[&str], alias: &str, canonical: &[&str]) -> Result<()> {
    let mut at = Some(document);
    for key in parent {
        at = at.and_then(|value| value.get_mut(key));
    }
    let Some(map) = at.and_then(Value::as_object_mut) else { return Ok(()) };
    let Some(value) = map.remove(alias) else { return Ok(()) };
    let Some((last, inner)) = canonical.split_last() else { return Ok(()) };
    let mut target = map;
    for key in inner {
        let entry = target.entry(*key).or_insert_with(|| Value::Object(Map::new()));
        if entry.is_null() {
            *entry = Value::Object(Map::new());
        }
        match entry.as_object_mut() {
            Some(map) => target = map,
            None => return Err(invalid(format!("{}.{key} is not a mapping", parent.join(".")))),
        }
    }
    match target.get(*last) {
        Some(other) if *other != value => Err(invalid(format!(
            "{0}.{alias} and {0}.{1} are two spellings of one key and differ",
            parent.join("."),
            canonical.join(".")
        ))
        .remedy("keep one of them")),
        _ => {
            target.insert((*last).to_owned(), value);
            Ok(())
        }
    }
}
