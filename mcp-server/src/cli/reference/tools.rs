//! Reference of the MCP tools, from the registry.

use rmcp::model::Tool;
use serde_json::Value;

use super::markdown::{code, head, section, table};
use crate::tools::ToolRegistry;

pub fn page() -> String {
    let mut page = head(
        "Tools",
        "the tool registry",
        "The tools that an assistant can call, in the order of `tools/list`. `tools.json` has the same as JSON. \
         A token needs the scope in the first line of a tool. The server checks every argument itself and refuses \
         unknown ones.\n\n\
         A call takes at most 45 s in all (plan, question and wait), and never owns the work. Every answer has \
         `next_step`, which says what to call next. The same `idempotency_key` with the same arguments gives the \
         same deployment or execution. Ids are valid as long as the database is kept.",
    );
    for tool in ToolRegistry::all().manifests() {
        tell(&mut page, &tool);
    }
    page
}

fn tell(page: &mut String, tool: &Tool) {
    section(page, &tool.name, &format!("{}. {}", tool.title.as_deref().unwrap_or_default(), hints(tool)));
    page.push('\n');
    page.push_str(&super::markdown::prose(tool.description.as_deref().unwrap_or_default()));
    page.push('\n');
    let rows: Vec<_> = fields(&Value::Object((*tool.input_schema).clone()), "");
    if !rows.is_empty() {
        page.push('\n');
        table(page, ["argument", "type", "required", "description"], &rows);
    }
    let declared = tool.output_schema.as_ref().and_then(|schema| schema.get("properties"));
    let names: Vec<_> = declared
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|properties| properties.keys().map(|name| code(name)))
        .collect();
    page.push_str(&format!("\nDeclared result: {}.\n", names.join(", ")));
}

/// Says the four hints as words; the scope follows from the first.
fn hints(tool: &Tool) -> String {
    let hint = |value: Option<bool>| value == Some(true);
    let Some(annotations) = &tool.annotations else { return String::new() };
    let mut words = Vec::new();
    match hint(annotations.read_only_hint) {
        true => words.push("read-only, scope `read`"),
        false => words.push("changes state, scope `operate`"),
    }
    if hint(annotations.destructive_hint) {
        words.push("may be destructive");
    }
    if hint(annotations.idempotent_hint) {
        words.push("idempotent");
    }
    if tool.input_schema.get("properties").and_then(|p| p.get(crate::confirm::ARGUMENT)).is_some() {
        words.push("may need a confirmation");
    }
    format!("Hints: {}.", words.join(", "))
}

/// Returns one row for each property, with those of nested objects after their parent.
fn fields(schema: &Value, parent: &str) -> Vec<[String; 4]> {
    let required: Vec<_> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut rows = Vec::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{parent}{name}");
        let text = property["description"].as_str().unwrap_or_default().to_owned();
        let need = if required.contains(&name.as_str()) { "yes" } else { "no" };
        rows.push([code(&path), kind(property), need.to_owned(), text]);
        match property["type"].as_str() {
            Some("array") => rows.extend(fields(&property["items"], &format!("{path}[]."))),
            _ => rows.extend(fields(property, &format!("{path}."))),
        }
    }
    rows
}

fn kind(schema: &Value) -> String {
    let choices: Vec<_> =
        schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(code).collect();
    if !choices.is_empty() {
        return choices.join(", ");
    }
    match schema["type"].as_str() {
        Some("array") => format!("array of {}", kind(&schema["items"])),
        Some("object") if schema.get("additionalProperties").is_some_and(Value::is_object) => {
            format!("map to {}", kind(&schema["additionalProperties"]))
        }
        Some(kind) => kind.to_owned(),
        None => "any".to_owned(),
    }
}
