//! Reference of the configuration file, from its JSON schema and the table in [`super::keys`].

use cluster_core::config::NodeConfig;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{
    keys,
    markdown::{code, head, section, table},
};

/// Mapping of the file, such as `spec.node`: its path, its text, and the keys directly below it.
struct Mapping {
    path: String,
    text: String,
    keys: Vec<Key>,
}

struct Key {
    path: String,
    kind: String,
    /// Text of the schema; a text of [`keys::TEXTS`] replaces it.
    text: String,
}

pub fn page() -> String {
    let mut page = head(
        "Configuration",
        "the schema of the configuration",
        "No configuration is needed. [Operations](../how-to/operations.md#configuration) says where the file is \
         searched and how layers are pushed to nodes. Unknown keys are refused. A key may also be written in the \
         spelling of the published protocol: `spec.cluster.controller_endpoint`, `spec.cluster.keypair_path`, \
         `spec.cluster.heartbeat_interval_seconds` and `spec.runtime.docker_network_mode`. Keys marked as not used \
         are accepted, so that a file of the wider platform loads as it is.\n\n\
         The environment variables `AEGIS_DATA_DIR`, `AEGIS_HOST`, `AEGIS_PORT` and `AEGIS_LOG_LEVEL` override the \
         file. `AEGIS_CONFIG_PATH` names the file. `RUST_LOG` overrides the log level.",
    );
    for mapping in mappings() {
        section(&mut page, &mapping.path, &mapping.text);
        page.push('\n');
        let rows: Vec<_> = mapping.keys.iter().map(row).collect();
        table(&mut page, ["key", "type", "default", "description"], &rows);
    }
    page
}

fn row(key: &Key) -> [String; 4] {
    let (default, text) = keys::of(&key.path).unwrap_or_default();
    let text = if text.is_empty() { key.text.as_str() } else { text };
    let name = key.path.rsplit_once('.').map_or(key.path.as_str(), |(_, name)| name);
    [code(name), key.kind.clone(), default.to_owned(), text.to_owned()]
}

fn mappings() -> Vec<Mapping> {
    let schema = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<NodeConfig>();
    let mut found = Vec::new();
    collect(&mut found, "", schema.as_value());
    found
}

/// Adds the mapping at `path`, and then those below it.
fn collect(found: &mut Vec<Mapping>, path: &str, schema: &Value) {
    let Some(properties) = properties(schema) else { return };
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let mut keys = Vec::new();
    let mut below = Vec::new();
    for (name, property) in properties {
        let path = join(name);
        match inner(property) {
            Some((suffix, schema)) => below.push((format!("{path}{suffix}"), schema)),
            None => keys.push(Key { kind: kind(property), text: description(property), path }),
        }
    }
    if !keys.is_empty() {
        let (path, text) =
            if path.is_empty() { ("The file", "") } else { (path, schema_text(schema).unwrap_or_default()) };
        found.push(Mapping { path: path.to_owned(), text: text.to_owned(), keys });
    }
    for (path, schema) in below {
        collect(found, &path, schema);
    }
}

/// Returns the schema of a mapping below a key: the key's own, or that of each value of a map with free keys or of
/// each item of a list, with the suffix of its path.
fn inner(schema: &Value) -> Option<(&'static str, &Value)> {
    if properties(schema).is_some() {
        return Some(("", schema));
    }
    [(".NAME", "additionalProperties"), ("[]", "items")].into_iter().find_map(|(suffix, part)| {
        let schema = inside(schema, part)?;
        properties(schema).map(|_| (suffix, schema))
    })
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    inside(schema, "properties")?.as_object()
}

/// Returns a part of a schema; an optional value has its schema in `anyOf`.
fn inside<'a>(schema: &'a Value, part: &str) -> Option<&'a Value> {
    schema
        .get(part)
        .or_else(|| schema.get("anyOf")?.as_array()?.iter().find_map(|choice| inside(choice, part)))
}

fn schema_text(schema: &Value) -> Option<&str> {
    inside(schema, "description")?.as_str()
}

/// Returns the text of a key and of each of its values.
fn description(schema: &Value) -> String {
    let own = schema_text(schema).unwrap_or_default().to_owned();
    let values: Vec<_> = choices(schema)
        .into_iter()
        .filter_map(|(name, text)| Some(format!("`{name}`: {}", text?.trim_end_matches('.'))))
        .collect();
    match values.is_empty() {
        true => own,
        false => format!("{own} {}.", values.join(". ")),
    }
}

fn kind(schema: &Value) -> String {
    let choices: Vec<_> = choices(schema).into_iter().map(|(name, _)| code(name)).collect();
    if !choices.is_empty() {
        return choices.join(", ");
    }
    let types = match schema.get("type") {
        Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        Some(kind) => kind.as_str(),
        None => inside(schema, "type").and_then(Value::as_str),
    };
    match types {
        Some("array") => format!("list of {}", inside(schema, "items").map(kind).unwrap_or_default()),
        Some("object") => match inside(schema, "additionalProperties") {
            Some(values) if values.is_object() => format!("map to {}", kind(values)),
            _ => "mapping".to_owned(),
        },
        Some(kind) => kind.to_owned(),
        None => "any".to_owned(),
    }
}

/// Returns the values of an enum, each with its text.
fn choices(schema: &Value) -> Vec<(&str, Option<&str>)> {
    if let Some(values) = inside(schema, "enum").and_then(Value::as_array) {
        return values.iter().filter_map(Value::as_str).map(|name| (name, None)).collect();
    }
    let variants = inside(schema, "oneOf").and_then(Value::as_array).into_iter().flatten();
    variants
        .flat_map(|variant| {
            let text = variant.get("description").and_then(Value::as_str);
            let single = variant.get("const").and_then(Value::as_str).map(|name| (name, text));
            let several = variant.get("enum").and_then(Value::as_array).into_iter().flatten();
            single.into_iter().chain(several.filter_map(Value::as_str).map(move |name| (name, text)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all_keys() -> Vec<Key> {
        mappings().into_iter().flat_map(|mapping| mapping.keys).collect()
    }

    #[test]
    fn every_key_has_a_default_and_a_text() {
        for key in all_keys() {
            let (default, text) =
                keys::of(&key.path).unwrap_or_else(|| panic!("{} is missing in keys.rs", key.path));
            assert!(!default.is_empty(), "{} has no default", key.path);
            assert!(!text.is_empty() || !key.text.is_empty(), "{} has no text", key.path);
        }
    }

    #[test]
    fn key_table_names_only_keys_of_the_schema() {
        let known: BTreeSet<_> = all_keys().into_iter().map(|key| key.path).collect();
        for path in keys::paths() {
            assert!(known.contains(path), "{path} is no key of the schema");
        }
    }
}
