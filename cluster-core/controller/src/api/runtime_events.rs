//! An execution's events as clients of the published protocol understand them.
//!
//! What has a published kind is told in it: stdout as `IterationOutput`, a cancel and an exceeded time as
//! `ExecutionFailed`. The rest (stderr, the image's progress, gaps) keeps our kinds, which such a client
//! passes over. Every event bears its number, ours or not.

use aegis_proto::aegis::runtime::v1 as pb;
use aegis_rpc::event_encoding;
use aegis_types::{
    agent::AgentReference,
    error::ErrorCode,
    execution::view::{EventKind, EventView, ExecutionView, Stream},
    ids::ExecutionId,
};
use pb::execution_event::Event;

const CUT_OFF: &str =
    "\n[the output's budget is used up: only the end follows, when the container has ended]\n";

/// State of the published events so far.
#[derive(Debug)]
pub(super) struct Published {
    id: ExecutionId,
    agent: Option<AgentReference>,
    iteration: u32,
    /// The beginning of a character that a chunk of stdout ended in.
    begun: Vec<u8>,
}

impl Published {
    /// Creates the state for a reader that has seen the events up to `after`.
    pub fn new(view: &ExecutionView, after: u64) -> Self {
        let iteration = if after == 0 { 0 } else { view.iteration };
        Self { id: view.execution_id.clone(), agent: view.agent.clone(), iteration, begun: Vec::new() }
    }

    pub fn of(&mut self, event: EventView) -> pb::ExecutionEvent {
        let mut wire = event_encoding::to_wire(&self.id, &event);
        let failed = |reason: String, code: ErrorCode| {
            Event::ExecutionFailed(pb::ExecutionFailed {
                execution_id: self.id.to_string(),
                reason,
                total_iterations: self.iteration,
                failed_at: aegis_types::clock::rfc3339(event.time_ms),
                code: code.name().to_owned(),
                exit_code: None,
                remedy: None,
            })
        };
        match (event.kind, &mut wire.event) {
            (EventKind::Output { stream: Stream::Stdout, data, truncated }, told) => {
                let mut output = self.text(&data);
                if truncated {
                    output.push_str(CUT_OFF);
                }
                *told = Some(Event::IterationOutput(pb::IterationOutput {
                    execution_id: self.id.to_string(),
                    iteration_number: self.iteration,
                    output,
                }));
            }
            (EventKind::OutputSkipped { stream: Stream::Stdout, bytes, at_least }, told) => {
                let least = if at_least { "at least " } else { "" };
                *told = Some(Event::IterationOutput(pb::IterationOutput {
                    execution_id: self.id.to_string(),
                    iteration_number: self.iteration,
                    output: format!("\n[{least}{bytes} bytes are left out here]\n"),
                }));
            }
            (EventKind::Cancelled { reason }, told) => {
                *told = Some(failed(format!("it was cancelled: {reason}"), ErrorCode::Cancelled));
            }
            (EventKind::TimedOut { timeout_ms }, told) => {
                let reason = format!("its time of {} s is over", timeout_ms / 1000);
                *told = Some(failed(reason, ErrorCode::Timeout));
            }
            (EventKind::IterationStarted { iteration }, _) => {
                self.iteration = iteration;
                self.begun.clear();
            }
            (_, Some(Event::ExecutionStarted(started))) => {
                started.agent_id = self.agent.as_ref().map(ToString::to_string).unwrap_or_default();
            }
            (_, Some(Event::ExecutionCompleted(completed))) => completed.total_iterations = self.iteration,
            (_, Some(Event::ExecutionFailed(failed))) => failed.total_iterations = self.iteration,
            _ => {}
        }
        wire
    }

    /// Text out of chunks that break anywhere; what is no UTF-8 is replaced.
    fn text(&mut self, data: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(data);
        // Only the last of what is no UTF-8 may be a character that the next chunk completes.
        let last = bytes.utf8_chunks().last().map(|chunk| chunk.invalid()).unwrap_or_default();
        if std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none()) {
            self.begun = bytes.split_off(bytes.len() - last.len());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use aegis_types::error::Failure;

    fn published() -> Published {
        Published {
            id: ExecutionId::mint(),
            agent: Some("a@1".parse().unwrap()),
            iteration: 0,
            begun: Vec::new(),
        }
    }

    fn told(published: &mut Published, kind: EventKind) -> Event {
        let wire = published.of(EventView { sequence: 7, attempt: 2, time_ms: 0, kind });
        assert_eq!((wire.sequence, wire.attempt), (7, 2));
        wire.event.unwrap()
    }

    #[test]
    fn ends_and_output_have_published_kinds() {
        let mut published = published();
        let Event::ExecutionStarted(started) = told(&mut published, EventKind::Started) else { panic!() };
        assert_eq!(started.agent_id, "a@1");
        told(&mut published, EventKind::IterationStarted { iteration: 2 });
        let stdout =
            EventKind::Output { stream: Stream::Stdout, data: Bytes::from_static(b"out"), truncated: true };
        let Event::IterationOutput(output) = told(&mut published, stdout) else { panic!() };
        assert!(output.iteration_number == 2 && output.output.starts_with("out\n["), "{output:?}");
        let stderr =
            EventKind::Output { stream: Stream::Stderr, data: Bytes::from_static(b"e"), truncated: false };
        assert!(matches!(told(&mut published, stderr), Event::Output(_)));
        let failure = Failure { code: ErrorCode::ContainerFailed, message: "m".into(), remedy: None };
        for (kind, code) in [
            (EventKind::Cancelled { reason: "r".into() }, "Cancelled"),
            (EventKind::TimedOut { timeout_ms: 5_000 }, "Timeout"),
            (EventKind::Failed { failure, exit_code: Some(1) }, "ContainerFailed"),
        ] {
            let Event::ExecutionFailed(failed) = told(&mut published, kind) else { panic!() };
            assert_eq!((failed.code.as_str(), failed.total_iterations), (code, 2));
        }
    }

    #[test]
    fn characters_survive_chunks_that_break_inside_them() {
        let text = "a\u{e4}\u{20ac}\u{1f600}z".as_bytes();
        for size in 1..=text.len() {
            let mut published = published();
            let whole: String = text.chunks(size).map(|chunk| published.text(chunk)).collect();
            assert_eq!(whole.as_bytes(), text, "in chunks of {size}");
        }
        let mut published = published();
        assert_eq!(published.text(b"\xff\x80ok\xc3"), "\u{fffd}\u{fffd}ok");
        assert_eq!(published.text(b"x"), "\u{fffd}x", "what never became a character is replaced");
    }
}
