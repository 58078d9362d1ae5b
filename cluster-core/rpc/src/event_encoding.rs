//! Events in the wire's encoding, which is also how both ends store them.

use aegis_proto::aegis::runtime::v1 as pb;
use aegis_types::{
    clock::rfc3339,
    error::{Error, ErrorCode, Failure, Result},
    execution::view::{EventKind, EventView, Stream},
    ids::{ExecutionId, NodeId},
};
use bytes::Bytes;
use pb::execution_event::Event;
use prost::Message as _;

pub fn encode(execution_id: &ExecutionId, event: &EventView) -> Vec<u8> {
    to_wire(execution_id, event).encode_to_vec()
}

pub fn decode(bytes: &[u8]) -> Result<EventView> {
    let event = pb::ExecutionEvent::decode(bytes)
        .map_err(|e| Error::new(ErrorCode::Storage, "a stored event cannot be read").source(e))?;
    from_wire(event)
}

pub fn to_wire(execution_id: &ExecutionId, event: &EventView) -> pb::ExecutionEvent {
    let kind = match &event.kind {
        EventKind::Unknown => None,
        kind => Some(wire_kind(kind, execution_id, event.time_ms)),
    };
    pb::ExecutionEvent {
        event: kind,
        sequence: event.sequence,
        attempt: event.attempt,
        time_ms: event.time_ms,
    }
}

fn wire_kind(kind: &EventKind, execution_id: &ExecutionId, time_ms: i64) -> Event {
    let id = execution_id.to_string();
    let time = rfc3339(time_ms);
    match kind {
        EventKind::Started => Event::ExecutionStarted(pb::ExecutionStarted {
            execution_id: id,
            started_at: time,
            ..Default::default()
        }),
        EventKind::ImageProgress { message } => {
            Event::ImageProgress(pb::ImageProgress { message: message.clone() })
        }
        EventKind::IterationStarted { iteration } => Event::IterationStarted(pb::IterationStarted {
            execution_id: id,
            iteration_number: *iteration,
            started_at: time,
            ..Default::default()
        }),
        EventKind::Output { stream, data, truncated } => Event::Output(pb::OutputChunk {
            stream: wire_stream(*stream).into(),
            data: data.to_vec(),
            truncated: *truncated,
            ..Default::default()
        }),
        // Output without data to nodes of an older version.
        EventKind::OutputSkipped { stream, bytes, at_least } => Event::Output(pb::OutputChunk {
            stream: wire_stream(*stream).into(),
            skipped_bytes: Some(*bytes),
            skipped_at_least: *at_least,
            ..Default::default()
        }),
        EventKind::IterationCompleted { iteration } => Event::IterationCompleted(pb::IterationCompleted {
            execution_id: id,
            iteration_number: *iteration,
            completed_at: time,
            ..Default::default()
        }),
        EventKind::IterationFailed { iteration, failure, exit_code, stderr_tail } => {
            Event::IterationFailed(pb::IterationFailed {
                execution_id: id,
                iteration_number: *iteration,
                error: Some(pb::IterationError {
                    error_type: failure.code.name().to_owned(),
                    message: failure.message.clone(),
                    stacktrace: (!stderr_tail.is_empty()).then(|| stderr_tail.clone()),
                }),
                failed_at: time,
                exit_code: *exit_code,
                remedy: failure.remedy.clone(),
            })
        }
        EventKind::Completed { result } => Event::ExecutionCompleted(pb::ExecutionCompleted {
            execution_id: id,
            final_output: result.clone().unwrap_or_default(),
            completed_at: time,
            exit_code: Some(0),
            ..Default::default()
        }),
        EventKind::Failed { failure, exit_code } => Event::ExecutionFailed(pb::ExecutionFailed {
            execution_id: id,
            reason: failure.message.clone(),
            failed_at: time,
            code: failure.code.name().to_owned(),
            exit_code: *exit_code,
            remedy: failure.remedy.clone(),
            ..Default::default()
        }),
        EventKind::Cancelled { reason } => {
            Event::Cancelled(pb::ExecutionCancelled { reason: reason.clone() })
        }
        EventKind::TimedOut { timeout_ms } => {
            Event::TimedOut(pb::ExecutionTimedOut { timeout_ms: *timeout_ms })
        }
        EventKind::Reassigned { node_id, reason } => Event::Reassigned(pb::ExecutionReassigned {
            node_id: node_id.to_string(),
            reason: reason.clone(),
        }),
        EventKind::Retried { failure, exit_code, pause_ms } => Event::Retried(pb::ExecutionRetried {
            code: failure.code.name().to_owned(),
            reason: failure.message.clone(),
            exit_code: *exit_code,
            pause_ms: *pause_ms,
        }),
        EventKind::Usage { cpu_ms, memory_peak_bytes } => {
            Event::Usage(pb::ExecutionUsage { cpu_ms: *cpu_ms, memory_peak_bytes: *memory_peak_bytes })
        }
        EventKind::Gap { first, last } => Event::Gap(pb::EventGap { first: *first, last: *last }),
        // `to_wire` gives such an event no kind.
        EventKind::Unknown => Event::RefinementApplied(pb::RefinementApplied::default()),
    }
}

fn wire_stream(stream: Stream) -> pb::OutputStream {
    match stream {
        Stream::Stdout => pb::OutputStream::Stdout,
        Stream::Stderr => pb::OutputStream::Stderr,
    }
}

pub fn from_wire(event: pb::ExecutionEvent) -> Result<EventView> {
    let kind = match event.event {
        // The other implementation's, or a newer version's: an error would end the stream at it again and again.
        None | Some(Event::RefinementApplied(_)) => EventKind::Unknown,
        Some(kind) => kind_from_wire(kind)?,
    };
    Ok(EventView { sequence: event.sequence, attempt: event.attempt, time_ms: event.time_ms, kind })
}

fn kind_from_wire(kind: Event) -> Result<EventKind> {
    Ok(match kind {
        Event::ExecutionStarted(_) => EventKind::Started,
        Event::ImageProgress(progress) => EventKind::ImageProgress { message: progress.message },
        Event::IterationStarted(started) => {
            EventKind::IterationStarted { iteration: started.iteration_number }
        }
        Event::IterationOutput(output) => {
            EventKind::Output { stream: Stream::Stdout, data: Bytes::from(output.output), truncated: false }
        }
        Event::Output(chunk) => {
            let stream = match chunk.stream() {
                pb::OutputStream::Stderr => Stream::Stderr,
                pb::OutputStream::Stdout | pb::OutputStream::Unspecified => Stream::Stdout,
            };
            match chunk.skipped_bytes {
                Some(bytes) => EventKind::OutputSkipped { stream, bytes, at_least: chunk.skipped_at_least },
                None => {
                    EventKind::Output { stream, data: Bytes::from(chunk.data), truncated: chunk.truncated }
                }
            }
        }
        Event::IterationCompleted(completed) => {
            EventKind::IterationCompleted { iteration: completed.iteration_number }
        }
        Event::IterationFailed(failed) => {
            let error = failed.error.unwrap_or_default();
            EventKind::IterationFailed {
                iteration: failed.iteration_number,
                failure: Failure {
                    code: ErrorCode::from_name(&error.error_type).unwrap_or(ErrorCode::ContainerFailed),
                    message: error.message,
                    remedy: failed.remedy,
                },
                exit_code: failed.exit_code,
                stderr_tail: error.stacktrace.unwrap_or_default(),
            }
        }
        Event::ExecutionCompleted(completed) => EventKind::Completed {
            result: (!completed.final_output.is_empty()).then_some(completed.final_output),
        },
        Event::ExecutionFailed(failed) => EventKind::Failed {
            failure: Failure {
                code: ErrorCode::from_name(&failed.code).unwrap_or(ErrorCode::ContainerFailed),
                message: failed.reason,
                remedy: failed.remedy,
            },
            exit_code: failed.exit_code,
        },
        Event::Cancelled(cancelled) => EventKind::Cancelled { reason: cancelled.reason },
        Event::TimedOut(timed_out) => EventKind::TimedOut { timeout_ms: timed_out.timeout_ms },
        Event::Reassigned(given_up) => {
            EventKind::Reassigned { node_id: NodeId::parse(given_up.node_id)?, reason: given_up.reason }
        }
        Event::Retried(retried) => EventKind::Retried {
            failure: Failure {
                code: ErrorCode::from_name(&retried.code).unwrap_or(ErrorCode::ContainerFailed),
                message: retried.reason,
                remedy: None,
            },
            exit_code: retried.exit_code,
            pause_ms: retried.pause_ms,
        },
        Event::Usage(usage) => {
            EventKind::Usage { cpu_ms: usage.cpu_ms, memory_peak_bytes: usage.memory_peak_bytes }
        }
        Event::Gap(gap) => EventKind::Gap { first: gap.first, last: gap.last },
        Event::RefinementApplied(_) => EventKind::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_of_a_newer_version_keeps_its_number() {
        // Field 119 with an empty message, then the number 7.
        let newer = [0xba, 0x07, 0x00, 0xc0, 0x07, 0x07];
        let event = decode(&newer).unwrap();
        assert_eq!((event.sequence, event.kind), (7, EventKind::Unknown));
    }

    #[test]
    fn every_kind_of_ours_reads_back() {
        let failure = Failure { code: ErrorCode::OutOfMemory, message: "m".into(), remedy: Some("r".into()) };
        let kinds = [
            EventKind::Started,
            EventKind::ImageProgress { message: "pulling".into() },
            EventKind::IterationStarted { iteration: 1 },
            EventKind::Output {
                stream: Stream::Stderr,
                data: Bytes::from_static(b"\xff\x00"),
                truncated: true,
            },
            EventKind::OutputSkipped { stream: Stream::Stderr, bytes: 0, at_least: true },
            EventKind::OutputSkipped { stream: Stream::Stdout, bytes: 1 << 40, at_least: false },
            EventKind::IterationCompleted { iteration: 2 },
            EventKind::IterationFailed {
                iteration: 3,
                failure: failure.clone(),
                exit_code: Some(1),
                stderr_tail: "why".into(),
            },
            EventKind::Completed { result: Some("{}".into()) },
            EventKind::Completed { result: None },
            EventKind::Reassigned { node_id: NodeId::parse("edge-1").unwrap(), reason: "away".into() },
            EventKind::Failed { failure, exit_code: Some(137) },
            EventKind::Cancelled { reason: "r".into() },
            EventKind::TimedOut { timeout_ms: 5 },
            EventKind::Gap { first: 1, last: 2 },
            EventKind::Unknown,
        ];
        let id = ExecutionId::mint();
        for (sequence, kind) in (1..).zip(kinds) {
            let event = EventView { sequence, attempt: 1, time_ms: 1_700_000_000_000, kind };
            assert_eq!(decode(&encode(&id, &event)).unwrap(), event);
            let json = serde_json::to_string(&event).unwrap();
            let read = serde_json::from_str::<EventView>(&json);
            let is_text = !matches!(&event.kind, EventKind::Output { .. });
            assert!(read.as_ref().is_ok_and(|read| !is_text || *read == event), "{json}: {read:?}");
        }
    }
}
