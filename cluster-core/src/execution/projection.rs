//! What an event of its node's makes of an execution's record. Plain functions.

use super::{
    lifecycle::{Input, State, Step},
    view::{EventKind, EventView},
};
use crate::{
    error::{ErrorCode, Failure},
    store::ExecutionRecord,
};

/// Why the attempt is given up, where that is what an event comes to.
pub(super) fn given_up(record: &ExecutionRecord, event: &EventView) -> Option<String> {
    let EventKind::Failed { failure, .. } = &event.kind else { return None };
    (record.life().next(shown(event)?) == Step::GiveUp).then(|| failure.message.clone())
}

fn shown(event: &EventView) -> Option<Input> {
    let by_node = match &event.kind {
        EventKind::Failed { failure, .. } => {
            matches!(failure.code, ErrorCode::Lost | ErrorCode::Engine | ErrorCode::Storage)
        }
        _ => false,
    };
    Some(Input::Shown { attempt: event.attempt, state: event.kind.state()?, by_node })
}

/// What an event of its node's shows of an execution.
pub(super) fn apply(record: &mut ExecutionRecord, event: &EventView) {
    let step = shown(event).map_or(Step::Stay, |input| record.life().next(input));
    match step {
        Step::Become(state) => record.state = state,
        // An end that is none is no news.
        _ if event.kind.state().is_some_and(State::is_final) => {
            record.last_sequence = event.sequence;
            return;
        }
        Step::Stay | Step::GiveUp => {}
    }
    note(record, event);
}

/// What else an event tells, beside the state.
pub(super) fn note(record: &mut ExecutionRecord, event: &EventView) {
    record.last_sequence = event.sequence;
    match &event.kind {
        EventKind::IterationStarted { iteration } => {
            record.iteration = *iteration;
            record.started_at_ms.get_or_insert(event.time_ms);
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
        EventKind::Started
        | EventKind::ImageProgress { .. }
        | EventKind::IterationCompleted { .. }
        | EventKind::IterationFailed { .. }
        | EventKind::Output { .. }
        | EventKind::Reassigned { .. }
        | EventKind::Gap { .. } => {}
    }
    if record.state.is_final() {
        record.ended_at_ms = Some(event.time_ms);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::execution::request::{ExecutionRequest, Submission};

    pub fn record(state: State) -> ExecutionRecord {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let submission = Submission::check(request).unwrap();
        ExecutionRecord { state, attempt: 1, ..ExecutionRecord::pending(submission, String::new(), 0) }
    }

    fn event(sequence: u64, kind: EventKind) -> EventView {
        EventView { sequence, attempt: 1, time_ms: 7, kind }
    }

    #[test]
    fn events_move_an_execution_forward_only() {
        let mut record = record(State::Assigned);
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
