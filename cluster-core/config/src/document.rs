//! Rules that all hand-written documents share: YAML or JSON, keys without a value are ignored, the depth is bounded,
//! and unknown keys are errors.

use schemars::JsonSchema;
use serde_json::{Map, Value};

/// Parses YAML, which includes JSON. The error names line and column, on one line.
pub fn from_yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text)
        // The parser appends a drawing of the position to its message.
        .map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

/// Removes keys without a value.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

pub fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Object(map) => map.values().map(depth).max(),
        Value::Array(values) => values.iter().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

/// Returns every key that `T` does not know, with its path and the most similar known key.
pub fn unknown_keys<T: JsonSchema>(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(document, schema_of::<T>().as_value(), "", &mut |path, known| {
        if let Err((key, siblings)) = known {
            found.push(unknown(path, key, siblings));
        }
    });
    found
}

/// Returns the paths of the keys whose schema has this mark.
pub fn marked_keys<T: JsonSchema>(document: &Value, mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(document, schema_of::<T>().as_value(), "", &mut |path, known| {
        if known.is_ok_and(|schema| inside(schema, mark).is_some()) {
            found.push(path.to_owned());
        }
    });
    found
}

fn schema_of<T: JsonSchema>() -> schemars::Schema {
    schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>()
}

/// Schema of a known key, or an unknown key with the known keys of its object.
type Known<'a> = Result<&'a Value, (&'a str, &'a Map<String, Value>)>;

/// Visits every key of a document with its schema.
fn walk<'a>(value: &'a Value, schema: &'a Value, path: &str, each: &mut impl FnMut(&str, Known<'a>)) {
    match value {
        Value::Object(map) => {
            let Some(known) = inside(schema, "properties").and_then(Value::as_object) else { return };
            for (key, inner) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(schema) => {
                        each(&path, Ok(schema));
                        walk(inner, schema, &path, each);
                    }
                    None => each(&path, Err((key, known))),
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = inside(schema, "items") else { return };
            for (index, item) in items.iter().enumerate() {
                walk(item, schema, &format!("{path}[{index}]"), each);
            }
        }
        _ => {}
    }
}

/// Returns a part of a schema; `Option` wraps it in `anyOf`. A mapping with free keys has no `properties`.
fn inside<'a>(schema: &'a Value, part: &str) -> Option<&'a Value> {
    schema.get(part).or_else(|| {
        let choices = schema.get("anyOf")?.as_array()?;
        choices.iter().find_map(|choice| inside(choice, part))
    })
}

fn unknown(path: &str, key: &str, known: &Map<String, Value>) -> String {
    const SIMILAR: f64 = 0.7;
    let nearest = known
        .keys()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let path = aegis_types::text::shown(path);
    match nearest {
        Some((_, nearest)) => format!("unknown key {path}: did you mean {nearest}?"),
        None => format!("unknown key {path}"),
    }
}
