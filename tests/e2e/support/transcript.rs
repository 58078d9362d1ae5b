//! Transcript of calls with arguments, duration and result, for people to read.

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;

use super::files::logs_dir;

const TEXT_SHOWN_MAX: usize = 60;
const LIST_SHOWN_MAX: usize = 4;

/// Fields omitted from results: they are always equal, or only of momentary use.
const NOISE: [&str; 9] = [
    "next_step",
    "cluster_id",
    "created_at",
    "started_at",
    "ended_at",
    "next_after_sequence",
    "has_more",
    "event",
    "image",
];
/// Fields omitted from arguments: the access to the machine.
const WAY_IN: [&str; 5] = ["ssh_port", "ssh_user", "ssh_key_path", "since_event", "after_sequence"];

pub struct Transcript {
    name: &'static str,
    rows: String,
    /// Repeated equal calls are one row.
    last: Option<Row>,
}

struct Row {
    tool: String,
    arguments: String,
    calls: u32,
    took: Duration,
    result: String,
}

impl Transcript {
    pub fn new(name: &'static str) -> Self {
        Self { name, rows: String::new(), last: None }
    }

    pub fn call(&mut self, tool: &str, arguments: &Value, took: Duration, result: &Value) {
        let arguments = outline(&without(arguments, &WAY_IN));
        let result = outline(&without(&without_prose(result), &NOISE));
        match &mut self.last {
            Some(row) if row.tool == tool && row.arguments == arguments && tool.starts_with("get_") => {
                row.calls += 1;
                row.took += took;
                row.result = result;
            }
            _ => {
                self.flush();
                self.last = Some(Row { tool: tool.to_owned(), arguments, calls: 1, took, result });
            }
        }
    }

    pub fn note(&mut self, text: &str) {
        self.flush();
        self.add(&format!("| | {text} | | |"));
    }

    fn flush(&mut self) {
        if let Some(Row { tool, arguments, calls, took, result }) = self.last.take() {
            let times = if calls > 1 { format!(" ({calls} calls)") } else { String::new() };
            self.add(&format!("| {tool}{times} | `{arguments}` | {} | `{result}` |", took.as_millis()));
        }
    }

    fn add(&mut self, row: &str) {
        println!("{row}");
        self.rows.push_str(row);
        self.rows.push('\n');
    }

    /// Writes `transcript-NAME.md` to the directory of the run's logs.
    pub fn keep(&mut self) {
        self.flush();
        let path = logs_dir().join(format!("transcript-{}.md", self.name));
        let head = format!("# {}\n\n| tool | arguments | ms | result |\n|---|---|---|---|\n", self.name);
        std::fs::write(&path, head + &self.rows).expect("the transcript is written");
        println!("transcript: {}", path.display());
    }
}

impl Drop for Transcript {
    /// A failed test shows its last call, too.
    fn drop(&mut self) {
        self.flush();
    }
}

fn without(value: &Value, names: &[&str]) -> Value {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.retain(|name, _| !names.contains(&name.as_str()));
    }
    value
}

/// Shortens a result: a running deployment to its current step, a peer to its status.
fn without_prose(result: &Value) -> Value {
    let mut result = result.clone();
    let goes_on = result["state"] == "planned" || result["state"] == "running";
    let Some(object) = result.as_object_mut() else { return result };
    if let Some(Value::Array(peers)) = object.get_mut("peers") {
        for peer in peers {
            *peer = format!(
                "{}: {}",
                peer["node_id"].as_str().unwrap_or("?"),
                peer["status"].as_str().unwrap_or("?")
            )
            .into();
        }
    }
    if let Some(Value::Array(steps)) = object.get_mut("steps") {
        steps.retain(|step| step["state"] != "pending");
        let shown_from = if goes_on { steps.len().saturating_sub(1) } else { 0 };
        *steps = steps.drain(shown_from..).map(|step| step_outline(&step).into()).collect();
    }
    result
}

fn step_outline(step: &Value) -> String {
    let took = step["took"].as_str().map(|took| format!(" {took}")).unwrap_or_default();
    let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
    format!("{}: {}{took}", text("name"), text("state"))
}

fn outline(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > TEXT_SHOWN_MAX => {
            let head: String = text.chars().take(TEXT_SHOWN_MAX).collect();
            format!("{:?}", head + "…")
        }
        Value::Array(items) => {
            let steps = items.iter().all(|item| item.as_str().is_some_and(|text| text.contains(": ")));
            let shown = if steps { items.len() } else { LIST_SHOWN_MAX };
            let mut words: Vec<_> = items.iter().take(shown).map(outline).collect();
            if items.len() > shown {
                words.push("…".to_owned());
            }
            format!("[{}]", words.join(", "))
        }
        Value::Object(object) => {
            let mut text = String::from("{");
            for (index, (name, value)) in object.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                write!(text, "{comma}{name}: {}", outline(value)).expect("a string takes all");
            }
            text + "}"
        }
        other => other.to_string(),
    }
    .replace('|', "¦")
}
