//! Tests all paths by which text of a container or a host reaches an assistant, with the whole corpus of hostile
//! output. Resources and prompts have the same test in their own modules.

use cluster_core::{
    deploy::DeploymentView,
    types::{
        error::{Error, ErrorCode, Failure},
        execution::view::{EventKind, EventView, ExecutionView, Stream},
    },
};
use hyper::body::Bytes;
use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::{
    ResponseFormat, get_deployment_status, get_execution,
    output::{self, Event},
    steps,
};
use crate::{
    hostile::{self, CANARY, assert_marked, assert_seen},
    tools::registry,
};

/// Size limit of a whole result.
const RESULT_BYTES_MAX: usize = 20 * 1024;

fn texts() -> impl Iterator<Item = (&'static str, Bytes, String)> {
    hostile::cases().into_iter().map(|case| {
        let text = String::from_utf8_lossy(&case.bytes).into_owned();
        (case.name, case.bytes.into(), text)
    })
}

fn failure(message: &str) -> Failure {
    Failure::from(&Error::new(ErrorCode::ContainerFailed, message).remedy("look at its output"))
}

/// Builds an answer as an assistant gets it, and checks that both forms are equal.
fn answered(value: Value) -> Value {
    let result: CallToolResult = registry::succeeded(value, &[]);
    let content = serde_json::to_value(&result.content).unwrap();
    let twin: Value = serde_json::from_str(content[0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(Some(&twin), result.structured_content.as_ref());
    twin
}

#[test]
fn a_page_of_output_is_marked_seen_and_bounded() {
    for (name, data, text) in texts() {
        let event = |sequence, kind| EventView { sequence, attempt: 1, time_ms: 0, kind };
        let stream = |stream| EventKind::Output { stream, data: data.clone(), truncated: false };
        let last = EventKind::IterationFailed {
            iteration: 1,
            failure: failure("it exited with code 3"),
            exit_code: Some(3),
            stderr_tail: text.clone(),
        };
        let events = vec![
            event(1, stream(Stream::Stdout)),
            event(2, stream(Stream::Stderr)),
            event(3, last),
            event(4, EventKind::Completed { result: Some(text.clone()) }),
        ];
        let (mut after, mut rest) = (0, events);
        while !rest.is_empty() {
            let page = output::page(rest.clone(), after);
            assert!(page.next_after_sequence > after, "{name}: it goes on");
            after = page.next_after_sequence;
            rest.retain(|event| event.sequence > after);

            let shown = answered(json!(output::gather(&page.events)));
            assert_marked(name, &shown, &["stdout", "stderr"]);
            let size = [&shown["stdout"], &shown["stderr"]].map(|text| text.as_str().map_or(0, str::len));
            assert!(size.iter().sum::<usize>() <= output::OUTPUT_BYTES_MAX, "{name}: {size:?}");
            assert_eq!(shown["untrusted"], true);

            assert_eq!(json!(output::mark(&page.events))["untrusted"], true);
            let events: Vec<Event> = page.events.into_iter().map(Event::from).collect();
            assert_marked(name, &answered(json!(events)), &["[].text", "[].stderr_tail", "[].result"]);
        }
    }
}

#[test]
fn an_execution_says_what_to_do_in_our_words() {
    for (name, _, text) in texts() {
        for state in ["succeeded", "failed", "cancelled", "lost", "running", "pending"] {
            let view: ExecutionView = serde_json::from_value(json!({
                "execution_id": "exec-1", "state": state, "image": "busybox", "attempt": 1, "exit_code": 3,
                "failure": failure(&text), "result": text, "created_at_ms": 0, "last_sequence": 9
            }))
            .unwrap();
            let shown = answered(json!(get_execution::Outcome::of(view)));
            assert_marked(name, &shown, &["untrusted_result", "failure.message"]);
            assert!(shown["untrusted_result"].as_str().unwrap().len() < RESULT_BYTES_MAX / 2, "{name}");
            assert_eq!(shown["failure"]["remedy"], "look at its output");
        }
    }
}

#[test]
fn a_deployment_says_what_to_do_in_our_words() {
    for (name, _, text) in texts() {
        for format in [ResponseFormat::Concise, ResponseFormat::Detailed] {
            let view: DeploymentView = serde_json::from_value(json!({
                "deployment_id": "comet-edge-node-1-1", "host": "edge1", "node_id": "edge1", "state": "failed",
                "event": 9, "created_at_ms": 0, "updated_at_ms": 0, "next_step": "", "log_tail": text,
                "steps": [
                    {"name": "check", "state": "done", "started_at_ms": 0, "duration_ms": 61_000,
                     "evidence": text, "message": text},
                    {"name": "start", "state": "failed", "evidence": text, "message": text},
                ],
            }))
            .unwrap();
            let shown = answered(json!(get_deployment_status::Outcome::of(view, format)));
            assert_marked(name, &shown, &["untrusted_log_tail", "steps[].evidence", "steps[].message"]);
            assert!(
                shown.to_string().len() < RESULT_BYTES_MAX * 3 / 2,
                "{name}: {}",
                shown.to_string().len()
            );
            assert_eq!(shown["steps"][0]["took"], "61 s");
            assert_eq!(shown["steps"][0]["started_at"], "1970-01-01T00:00:00Z");
        }
    }
}

#[test]
fn an_error_that_repeats_it_has_one_remedy_and_it_is_ours() {
    for (name, _, text) in texts() {
        let error =
            Error::new(ErrorCode::HostUnreachable, format!("sh said: {text}")).remedy("look at the host");
        let result = serde_json::to_value(registry::failed(&error, &[])).unwrap();
        let words = result["content"][0]["text"].as_str().unwrap();
        assert_seen(name, words);
        assert!(words.len() <= RESULT_BYTES_MAX, "{name}: {}", words.len());
        let ours = words.lines().skip(1).filter(|line| !line.starts_with("    "));
        assert_eq!(ours.collect::<Vec<_>>(), ["What to do: look at the host"], "{name}: {words}");
    }
}

#[test]
fn evidence_is_bounded_for_all_steps_together() {
    let evidence = "x".repeat(100);
    let long = vec![evidence.as_str(); 500].join("\n");
    let step = json!({"name": "check", "state": "done", "evidence": long, "message": CANARY.repeat(500)});
    let views = serde_json::from_value(json!([step, step])).unwrap();
    let shown = json!(steps::steps(views, ResponseFormat::Detailed));
    assert!(shown.to_string().len() < RESULT_BYTES_MAX, "{}", shown.to_string().len());
}
