//! The controller's side of one assigned execution: hand it to its node, store what the node tells,
//! come back after every cut, and end with what is known.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tokio::{sync::watch, time::Instant};

use super::{
    dispatch::{Live, Shared, failed},
    encoding,
    lifecycle::State,
    supervisor::Order,
    view::{EventKind, EventView},
};
use crate::{
    cluster::{nodes::Worker, peer::PeerStatus},
    error::{Error, ErrorCode, Failure, Result},
    ids::ExecutionId,
    store::{ExecutionRecord, Write},
};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Before what a node did not take is placed anew.
const REPLACE_PAUSE: Duration = Duration::from_secs(1);
/// Before what could not be stored is asked for again.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// After so long a silence the outcome is told as lost; the node's return still corrects it.
const LOST_AFTER: Duration = Duration::from_secs(600);
/// Events that are ready together are stored together.
const EVENTS_TOGETHER_MAX: usize = 256;
/// A node that refuses the release is told again with its next heartbeat.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// How one connection to the node ended.
enum Cut {
    /// The execution has ended.
    Ended,
    /// The node will not run it, and nothing ran: another may.
    NotTaken(Error),
    /// The node says no, for good.
    Refused(Error),
    /// The node is away; it goes on there if it goes on at all.
    Away(Error),
    /// The controller stops.
    Stopped,
}

pub(super) fn spawn(shared: Arc<Shared>, record: ExecutionRecord, live: Arc<Live>) {
    tokio::spawn(async move {
        let execution_id = record.execution_id.clone();
        let mut record = record;
        // Only the store fails here: a full disk, say. What was not stored is asked of the node again.
        while let Err(error) = drive(&shared, &mut record, &live).await {
            tracing::error!(%execution_id, error = %error.chain(), "an execution could not be stored");
            match shared.stop.run_until_cancelled(read_again(&shared, &execution_id)).await {
                Some(Some(stored)) => record = stored,
                Some(None) | None => return,
            }
        }
    });
}

/// The record as it is stored: what memory holds has run ahead of it. None when there is none any more.
async fn read_again(shared: &Shared, execution_id: &ExecutionId) -> Option<ExecutionRecord> {
    loop {
        tokio::time::sleep(STORE_RETRY).await;
        match shared.store.execution(execution_id).await {
            Ok(stored) => return stored,
            Err(error) => tracing::warn!(%execution_id, error = %error.chain(), "not read yet"),
        }
    }
}

async fn drive(shared: &Arc<Shared>, record: &mut ExecutionRecord, live: &Live) -> Result<()> {
    let mut away_since: Option<Instant> = None;
    let mut pause = RETRY_MIN;
    loop {
        let before = record.last_sequence;
        match connection(shared, record, live).await? {
            Cut::Stopped => return Ok(()),
            Cut::Ended => {
                shared.retire(record).await;
                release(shared, record).await;
                return Ok(());
            }
            Cut::Refused(error) => return shared.end(record, live, failed(&error)).await,
            Cut::NotTaken(error) => {
                tracing::info!(execution_id = %record.execution_id, reason = %error.code(), "placed anew");
                let id = record.execution_id.clone();
                shared.controller.release(id).await?;
                // A node that refuses for a moment must not be asked as fast as it can answer.
                if shared.stop.run_until_cancelled(tokio::time::sleep(REPLACE_PAUSE)).await.is_some() {
                    shared.enqueue(record.clone()).await;
                }
                return Ok(());
            }
            Cut::Away(error) => {
                if record.last_sequence > before {
                    (away_since, pause) = (None, RETRY_MIN);
                }
                let since = *away_since.get_or_insert_with(Instant::now);
                tell_away(shared, record, live, &error, since).await?;
                let mut version = shared.controller.version();
                tokio::select! {
                    () = shared.stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(pause) => {}
                    // A link that came back is worth a try at once.
                    _ = version.changed() => tokio::time::sleep(RETRY_MIN).await,
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// One connection to the node, for as long as it lasts.
async fn connection(shared: &Arc<Shared>, record: &mut ExecutionRecord, live: &Live) -> Result<Cut> {
    let Some(node_id) = record.node_id.clone() else {
        return Ok(Cut::Refused(Error::internal("an assigned execution has no node")));
    };
    if is_removed(shared, record).await? {
        return Ok(Cut::Refused(
            Error::new(ErrorCode::Lost, format!("{node_id} was removed; what became of it is not known"))
                .remedy("submit it again if it may run twice"),
        ));
    }
    let worker = match shared.nodes.worker(&node_id) {
        Ok(worker) => worker,
        Err(error) => return Ok(Cut::Away(error)),
    };
    let order = Order {
        execution_id: record.execution_id.clone(),
        attempt: record.attempt,
        manifest: record.manifest.clone(),
        input: record.input.clone(),
    };
    let events = match worker.forward(order, record.last_sequence).await {
        Ok(events) => events.ready_chunks(EVENTS_TOGETHER_MAX),
        Err(error) => return Ok(judge(record, error)),
    };
    let mut events = std::pin::pin!(events);
    let mut cancel = live.cancel.subscribe();
    let mut cancel_sent = false;
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return Ok(Cut::Stopped),
            reason = asked(&mut cancel), if !cancel_sent => {
                if let Err(error) = send_cancel(&worker, record, &reason).await {
                    return Ok(Cut::Away(error));
                }
                cancel_sent = true;
            }
            batch = events.next() => {
                // A stream that ends before the execution did is a cut like any other.
                let Some(batch) = batch else {
                    return Ok(Cut::Away(Error::new(ErrorCode::Unavailable, format!("the stream of {node_id} ended"))));
                };
                let error = store(shared, record, live, batch).await?;
                if record.state.is_final() {
                    return Ok(Cut::Ended);
                }
                if let Some(error) = error {
                    return Ok(judge(record, error));
                }
            }
        }
    }
}

/// Resolves with the reason once somebody asks for the end.
async fn asked(cancel: &mut watch::Receiver<Option<String>>) -> String {
    // Fails only with the sender, which lives as long as the driver.
    let reason = cancel.wait_for(Option::is_some).await;
    reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
}

async fn send_cancel(worker: &Worker, record: &ExecutionRecord, reason: &str) -> Result<()> {
    worker.cancel(&record.execution_id, record.attempt, reason).await.map(drop)
}

async fn is_removed(shared: &Shared, record: &ExecutionRecord) -> Result<bool> {
    let Some(node_id) = record.node_id.clone() else { return Ok(false) };
    match shared.controller.view(node_id).await {
        Ok(view) => Ok(view.status == PeerStatus::Removed),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// What a refusal means.
fn judge(record: &ExecutionRecord, error: Error) -> Cut {
    let untouched = record.state == State::Assigned && record.last_sequence == 0;
    match error.code() {
        // Storage: the node could not journal the order, so it did not begin.
        ErrorCode::FailedPrecondition | ErrorCode::ResourceExhausted | ErrorCode::Storage if untouched => {
            Cut::NotTaken(error)
        }
        ErrorCode::Forbidden
        | ErrorCode::InvalidArgument
        | ErrorCode::Lost
        | ErrorCode::Fenced
        | ErrorCode::Conflict
        | ErrorCode::NotOffered => Cut::Refused(error),
        _ => Cut::Away(error),
    }
}

/// Stores what is new of a batch, and what it shows of the execution, in one step.
async fn store(
    shared: &Shared,
    record: &mut ExecutionRecord,
    live: &Live,
    batch: Vec<Result<EventView>>,
) -> Result<Option<Error>> {
    let mut failure = None;
    let mut events = Vec::with_capacity(batch.len());
    for event in batch {
        match event {
            // An older attempt's events and repeated ones are dropped.
            Ok(event) if event.attempt == record.attempt && event.sequence > record.last_sequence => {
                events.push((event.sequence, encoding::encode(&record.execution_id, &event)));
                apply(record, &event);
            }
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    if !events.is_empty() {
        shared.store.write(Write::RecordEvents { record: Box::new(record.clone()), events }).await?;
        live.view.send_replace(record.view());
    }
    Ok(failure)
}

/// What an event shows of its execution. Pure.
pub(super) fn apply(record: &mut ExecutionRecord, event: &EventView) {
    record.last_sequence = event.sequence;
    let Some(next) = event.kind.state() else { return };
    if !record.state.may_become(next) {
        return;
    }
    record.state = next;
    match &event.kind {
        EventKind::IterationStarted { .. } => record.started_at_ms = Some(event.time_ms),
        EventKind::Completed { result } => {
            record.exit_code = Some(0);
            record.result.clone_from(result);
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
        EventKind::Started
        | EventKind::ImageProgress { .. }
        | EventKind::IterationCompleted { .. }
        | EventKind::IterationFailed { .. }
        | EventKind::Output { .. }
        | EventKind::Cancelled { .. }
        | EventKind::Reassigned { .. }
        | EventKind::Gap { .. } => {}
    }
    if next.is_final() {
        record.ended_at_ms = Some(event.time_ms);
        // A loss that turned out otherwise is none.
        if next == State::Succeeded {
            record.failure = None;
        }
    }
}

/// Tells readers why nothing comes; after a long silence, that the outcome is lost.
async fn tell_away(
    shared: &Shared,
    record: &mut ExecutionRecord,
    live: &Live,
    error: &Error,
    since: Instant,
) -> Result<()> {
    if since.elapsed() >= LOST_AFTER && record.state.may_become(State::Lost) {
        record.state = State::Lost;
        record.failure = Some(Failure {
            code: ErrorCode::Lost,
            message: format!(
                "its node has been away for {} s: {}",
                since.elapsed().as_secs(),
                error.message()
            ),
            remedy: Some(
                "the outcome is told when the node returns; submit it again if it may run twice".into(),
            ),
        });
        shared
            .store
            .write(Write::RecordEvents { record: Box::new(record.clone()), events: Vec::new() })
            .await?;
    }
    let mut view = record.view();
    view.waiting = Some(format!("{}; it goes on there if the machine does", error.message()));
    live.view.send_if_modified(|known| {
        let changed = *known != view;
        *known = view;
        changed
    });
    Ok(())
}

/// The end is stored: the node may forget it.
async fn release(shared: &Shared, record: &ExecutionRecord) {
    let Some(node_id) = &record.node_id else { return };
    let Ok(worker) = shared.nodes.worker(node_id) else { return };
    let ids = [record.execution_id.clone()];
    match tokio::time::timeout(RELEASE_TIMEOUT, worker.release(&ids)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%node_id, error = %error.chain(), "not released yet"),
        Err(_) => tracing::debug!(%node_id, "not released yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::request::{ExecutionRequest, Submission};

    fn record(state: State) -> ExecutionRecord {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let submission = Submission::check(request, None).unwrap();
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

    #[test]
    fn what_never_started_is_placed_anew_and_what_did_is_not() {
        let draining = || Error::new(ErrorCode::FailedPrecondition, "draining");
        assert!(matches!(judge(&record(State::Assigned), draining()), Cut::NotTaken(_)));
        assert!(matches!(judge(&record(State::Running), draining()), Cut::Away(_)));
        assert!(matches!(judge(&record(State::Running), Error::new(ErrorCode::Lost, "")), Cut::Refused(_)));
        assert!(matches!(
            judge(&record(State::Running), Error::new(ErrorCode::Unavailable, "")),
            Cut::Away(_)
        ));
    }
}
