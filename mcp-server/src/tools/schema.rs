//! JSON schemas that every client accepts.
//!
//! The APIs of some models refuse a property without `type` and an object without properties, and one refused
//! tool fails every turn of a conversation. Each property therefore has a `type`, and each object names its
//! properties or the type of its values. Schemas are written out without `$ref` (several clients follow
//! references badly), without the formats that schemars adds to the standard (`uint32`, `double`: Ajv clients
//! warn about them), and without `null`: an optional argument is left out, and a result leaves nulls out.
//!
//! Limits and defaults of arguments stand in the descriptions, since some clients strip them from schemas. The
//! server checks every argument by itself. Output schemas declare ids, the state and the next step only.

use rmcp::model::JsonObject;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::confirm::ARGUMENT;

/// Formats that JSON Schema itself knows and that we use; any other one goes.
const STANDARD_FORMATS: [&str; 3] = ["date-time", "uri", "uuid"];

/// Returns the schema of a tool's arguments.
pub fn input<T: JsonSchema>() -> JsonObject {
    let mut schema = root::<T>(SchemaSettings::draft2020_12());
    schema.values_mut().for_each(drop_limits);
    drop_closed(&mut schema);
    schema
}

/// Returns the schema of a tool's result.
pub fn output<T: JsonSchema>() -> JsonObject {
    let mut schema = root::<T>(SchemaSettings::draft2020_12().for_serialize());
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.retain(|name, _| name.ends_with("_id") || ["state", "next_step"].contains(&name.as_str()));
        properties.values_mut().for_each(only_type);
    }
    schema.remove("additionalProperties");
    schema.remove("required");
    schema
}

/// Adds the argument with which a call is confirmed.
pub fn add_confirmation(input: &mut JsonObject) {
    if let Some(Value::Object(properties)) = input.get_mut("properties") {
        let token = json!({
            "type": "string",
            "description": "From this call's needs_confirmation answer. Pass it only after the user agreed."
        });
        properties.insert(ARGUMENT.to_owned(), token);
    }
}

/// Keywords whose content stands in the descriptions.
const LIMITS: [&str; 6] = ["default", "minimum", "maximum", "pattern", "minItems", "maxItems"];

/// Drops `additionalProperties: false`. The server refuses an unknown argument and names the known ones.
fn drop_closed(schema: &mut JsonObject) {
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    schema.values_mut().filter_map(Value::as_object_mut).for_each(drop_closed);
}

fn drop_limits(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(drop_limits),
        Value::Object(object) => {
            // An argument may be called like one of them.
            if !object.values().all(Value::is_object) {
                object.retain(|key, _| !LIMITS.contains(&key.as_str()));
            }
            object.values_mut().for_each(drop_limits);
        }
        _ => {}
    }
}

/// Reduces the schema of a result's field to its type.
fn only_type(schema: &mut Value) {
    if let Value::Object(object) = schema {
        object.retain(|key, _| key == "type");
    }
}

fn root<T: JsonSchema>(settings: SchemaSettings) -> JsonObject {
    let generator = settings.with(|settings| settings.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    simplify(&mut schema);
    let mut object = match schema {
        Value::Object(object) => object,
        // `true` and `false` are schemas too; no tool has one of them.
        _ => JsonObject::new(),
    };
    // The struct's name and doc say nothing that the tool's own do not.
    object.remove("title");
    object.remove("description");
    object.remove("$schema");
    object
}

/// Applies the module's rules to a schema and everything inside it, `$defs` included.
pub fn simplify(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Object(object) => {
            object.values_mut().for_each(simplify);
            if let Some(Value::String(format)) = object.get("format")
                && !STANDARD_FORMATS.contains(&format.as_str())
            {
                object.remove("format");
            }
            // Doc comments are wrapped for us, not for a model.
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            drop_nullable_required(object);
            drop_null_type(object);
            join_constants(object);
            if object.get("enum").is_some_and(Value::is_array) {
                object.insert("type".to_owned(), "string".into());
            }
        }
        _ => {}
    }
}

/// A choice of documented words is one `enum`: the field's own description says what they mean.
fn join_constants(object: &mut JsonObject) {
    let Some(Value::Array(choices)) = object.get("oneOf") else { return };
    let words = choices.iter().map(|choice| match (choice.get("const"), choice.get("enum")) {
        (Some(word @ Value::String(_)), None) => Some(vec![word.clone()]),
        (None, Some(Value::Array(words))) => Some(words.clone()),
        _ => None,
    });
    if let Some(words) = words.collect::<Option<Vec<_>>>() {
        object.remove("oneOf");
        object.insert("enum".to_owned(), Value::Array(words.concat()));
    }
}

/// A field that may be null is left out instead, so it is not required.
fn drop_nullable_required(object: &mut JsonObject) {
    // `simplify` has run on the properties: a mark says which of them allowed null.
    let mut nullable = Vec::new();
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for (name, property) in properties {
            if property.as_object_mut().and_then(|schema| schema.remove(NULLABLE)).is_some() {
                nullable.push(name.clone());
            }
        }
    }
    if let Some(Value::Array(required)) = object.get_mut("required") {
        required.retain(|name| !nullable.iter().any(|other| name == other));
        if required.is_empty() {
            object.remove("required");
        }
    }
}

/// Left on a property by [`drop_null_type`], taken off by its parent.
const NULLABLE: &str = "x-nullable";

fn drop_null_type(object: &mut JsonObject) {
    let mut dropped = false;
    if let Some(Value::Array(types)) = object.get_mut("type") {
        let before = types.len();
        types.retain(|name| name != "null");
        dropped = types.len() < before;
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        let before = choices.len();
        choices.retain(|choice| choice.get("type") != Some(&Value::String("null".to_owned())));
        let nulls = choices.len() < before;
        if nulls
            && choices.len() == 1
            && let Some(Value::Object(only)) = choices.pop()
        {
            object.remove("anyOf");
            for (key, value) in only {
                // The field's own words win over those of its type.
                object.entry(key).or_insert(value);
            }
        }
        dropped |= nulls;
    }
    if dropped {
        // A default of null says the same as leaving it out.
        if object.get("default") == Some(&Value::Null) {
            object.remove("default");
        }
        object.insert(NULLABLE.to_owned(), Value::Bool(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema, serde::Serialize)]
    #[allow(dead_code)]
    struct Inner {
        ratio: f64,
        count: u32,
        maybe: Option<u64>,
    }

    #[derive(JsonSchema, serde::Serialize)]
    #[allow(dead_code)]
    enum Choice {
        /// Documented.
        Left,
        Right,
    }

    #[derive(JsonSchema, serde::Serialize)]
    #[allow(dead_code)]
    struct Outer {
        /// Its own words.
        inner: Option<Inner>,
        list: Vec<Inner>,
        map: std::collections::BTreeMap<String, String>,
        choice: Option<Choice>,
        port: u16,
        own_id: Option<String>,
        state: Choice,
    }

    #[test]
    fn no_strange_format_no_reference_and_no_null_remains() {
        let text = serde_json::to_string(&output::<Outer>()).unwrap();
        for bad in ["uint", "double", "$ref", "$defs", "null", NULLABLE] {
            assert!(!text.contains(bad), "{bad} in {text}");
        }
        let schema = output::<Outer>();
        let string = json!({"type": "string"});
        assert_eq!(schema["properties"], json!({"own_id": string, "state": string}));
        let schema = input::<Outer>();
        assert_eq!(schema["required"], json!(["list", "map", "port", "state"]));
        let fields =
            json!({"ratio": {"type": "number"}, "count": {"type": "integer"}, "maybe": {"type": "integer"}});
        let inner = &schema["properties"]["inner"];
        assert_eq!(inner["description"], "Its own words.");
        assert_eq!((&inner["type"], &inner["properties"]), (&json!("object"), &fields));
        assert_eq!(schema["properties"]["list"]["items"]["properties"], fields);
        assert_eq!(
            schema["properties"]["map"],
            json!({"type": "object", "additionalProperties": {"type": "string"}})
        );
        assert_eq!(schema["properties"]["port"], json!({"type": "integer"}));
        assert_eq!(schema["properties"]["choice"], json!({"type": "string", "enum": ["Right", "Left"]}));
    }

    #[test]
    fn formats_are_stripped_in_defs_too() {
        let mut schema = json!({"$defs": {"a": {"type": "integer", "format": "uint32"}},
            "properties": {"t": {"type": "string", "format": "date-time"}}});
        simplify(&mut schema);
        assert_eq!(
            schema,
            json!({"$defs": {"a": {"type": "integer"}},
            "properties": {"t": {"type": "string", "format": "date-time"}}})
        );
    }
}
