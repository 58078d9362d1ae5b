//! Effects of a node's events on the record of an execution. Pure functions.

use aegis_types::{
    error::{ErrorCode, Failure},
    execution::{
        lifecycle::{Cause, Input, State, Step},
        record::ExecutionRecord,
        view::{EventKind, EventView},
    },
};

/// A failure that is not the end of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Continuation {
    /// Its node is to blame, and another attempt is allowed.
    GivenUp(String),
    /// Its program failed, and a retry is allowed.
    Retried { failure: Failure, exit_code: Option<i32> },
}

/// Returns how an execution goes on after an event that looks like its end.
pub(super) fn continuation(record: &ExecutionRecord, event: &EventView) -> Option<Continuation> {
    let EventKind::Failed { failure, exit_code } = &event.kind else { return None };
    match record.life().next(shown(record, event)?) {
        Step::GiveUp => Some(Continuation::GivenUp(failure.message.clone())),
        Step::Retry => Some(Continuation::Retried { failure: failure.clone(), exit_code: *exit_code }),
        Step::Stay | Step::Become(_) | Step::PassOn => None,
    }
}

fn shown(record: &ExecutionRecord, event: &EventView) -> Option<Input> {
    Some(Input::Shown {
        attempt: event.attempt,
        state: event.kind.state()?,
        cause: cause(record, &event.kind),
    })
}

fn cause(record: &ExecutionRecord, kind: &EventKind) -> Cause {
    let EventKind::Failed { failure, exit_code } = kind else { return Cause::Other };
    if matches!(failure.code, ErrorCode::Lost | ErrorCode::Engine | ErrorCode::Storage) {
        return Cause::Node;
    }
    let retry = record.retry.as_ref().zip(*exit_code);
    if retry.is_some_and(|(retry, code)| retry.covers(code)) { Cause::RetriedExit } else { Cause::Other }
}

/// Applies what an event of its node shows of an execution, received at `now_ms`.
pub(super) fn apply(record: &mut ExecutionRecord, event: &EventView, now_ms: i64) {
    let step = shown(record, event).map_or(Step::Stay, |input| record.life().next(input));
    match step {
        Step::Become(state) => record.state = state,
        // An end that is none is no news.
        _ if event.kind.state().is_some_and(State::is_final) => {
            record.last_sequence = event.sequence;
            return;
        }
        Step::Stay | Step::GiveUp | Step::PassOn | Step::Retry => {}
    }
    note(record, event, now_ms);
}

/// Returns the time of an event as the controller takes it. Retention, readers and the order of times rely on it, so
/// that a node's clock counts only where it is possible: after the submission and not after the receipt.
fn time_of(record: &ExecutionRecord, event: &EventView, now_ms: i64) -> i64 {
    let earliest = record.started_at_ms.unwrap_or(record.created_at_ms);
    if (earliest..=now_ms).contains(&event.time_ms) { event.time_ms } else { now_ms.max(earliest) }
}

/// Applies the data of an event to a record, apart from its state.
pub(super) fn note(record: &mut ExecutionRecord, event: &EventView, now_ms: i64) {
    let time_ms = time_of(record, event, now_ms);
    record.last_sequence = event.sequence;
    match &event.kind {
        EventKind::IterationStarted { iteration } => {
            record.iteration = *iteration;
            record.started_at_ms.get_or_insert(time_ms);
        }
        EventKind::Completed { result } => {
            record.exit_code = Some(0);
            record.result.clone_from(result);
            // A loss that turned out otherwise is none.
            record.failure = None;
        }
        EventKind::Failed { failure, exit_code } => {
            record.failure = Some(failure.clone());
            record.exit_code = *exit_code;
        }
        EventKind::TimedOut { timeout_ms } => {
            record.failure = Some(Failure {
                code: ErrorCode::Timeout,
                message: format!("it ran for longer than its timeout of {} s", timeout_ms / 1000),
                remedy: Some("raise timeout_seconds".to_owned()),
            });
        }
        EventKind::Cancelled { .. } => record.failure = None,
        EventKind::Output { data, .. } => {
            record.usage.get_or_insert_default().output_bytes += data.len() as u64;
        }
        EventKind::OutputSkipped { bytes, .. } => {
            let usage = record.usage.get_or_insert_default();
            usage.output_bytes = usage.output_bytes.saturating_add(*bytes);
        }
        EventKind::Usage { cpu_ms, memory_peak_bytes } => {
            let usage = record.usage.get_or_insert_default();
            (usage.cpu_ms, usage.memory_peak_bytes) = (Some(*cpu_ms), Some(*memory_peak_bytes));
        }
        EventKind::Started
        | EventKind::ImageProgress { .. }
        | EventKind::IterationCompleted { .. }
        | EventKind::IterationFailed { .. }
        | EventKind::Reassigned { .. }
        | EventKind::Retried { .. }
        | EventKind::Gap { .. }
        | EventKind::Unknown => {}
    }
    if record.state.is_final() {
        record.ended_at_ms = Some(time_ms);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aegis_types::execution::request::{ExecutionRequest, Submission};

    pub fn record(state: State) -> ExecutionRecord {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let submission = Submission::check(request).unwrap();
        ExecutionRecord { state, attempt: 1, ..ExecutionRecord::pending(&submission, String::new(), 0) }
    }

    fn event(sequence: u64, kind: EventKind) -> EventView {
        EventView { sequence, attempt: 1, time_ms: 7, kind }
    }

    #[test]
    fn times_of_a_node_with_a_wrong_clock_are_those_of_receipt() {
        let ended = |clock_ms: i64| {
            let mut record = ExecutionRecord { created_at_ms: 1_000, ..record(State::Assigned) };
            let at = |sequence, time_ms, kind| EventView { sequence, attempt: 1, time_ms, kind };
            apply(&mut record, &at(1, clock_ms, EventKind::IterationStarted { iteration: 1 }), 2_000);
            apply(&mut record, &at(2, clock_ms + 500, EventKind::Completed { result: None }), 3_000);
            (record.started_at_ms, record.ended_at_ms)
        };
        assert_eq!(ended(1_500), (Some(1_500), Some(2_000)), "a plausible clock counts");
        assert_eq!(ended(-30 * 86_400_000), (Some(2_000), Some(3_000)), "a clock of last month");
        assert_eq!(ended(i64::MAX - 500), (Some(2_000), Some(3_000)), "a clock of another age");
        assert_eq!(ended(2_900), (Some(2_000), Some(3_000)), "a clock that is ahead");
    }

    #[test]
    fn events_move_an_execution_forward_only() {
        let mut record = record(State::Assigned);
        let apply = |record: &mut ExecutionRecord, event: &EventView| apply(record, event, 10);
        apply(&mut record, &event(1, EventKind::Started));
        apply(&mut record, &event(2, EventKind::IterationStarted { iteration: 1 }));
        assert_eq!((record.state, record.started_at_ms), (State::Running, Some(7)));
        apply(&mut record, &event(3, EventKind::Started));
        assert_eq!(record.state, State::Running);
        apply(&mut record, &event(4, EventKind::Completed { result: None }));
        apply(&mut record, &event(5, EventKind::Cancelled { reason: String::new() }));
        assert_eq!(
            (record.state, record.exit_code, record.ended_at_ms),
            (State::Succeeded, Some(0), Some(7))
        );
    }
}
