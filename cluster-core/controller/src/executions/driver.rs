//! The controller's side of one assigned execution: hand it to its node, store what the node tells,
//! come back after every cut, and end with what is known, or begin again where its caller allowed that.

use std::{sync::Arc, time::Duration};

use aegis_config::registries::login_for;
use aegis_rpc::{event_encoding, node_worker::NodeWorker, status::may_have_arrived};
use aegis_store::{ExecutionWrite, Write};
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Failure, Result},
    execution::{
        lifecycle::{Input, State, Step},
        order::{Order, SecretEnv},
        record::{ExecutionRecord, OrderContent},
        view::{EventKind, EventView},
    },
    fail_point::{FailPoint, reached},
    ids::{ExecutionId, NodeId},
    secret::SecretName,
};
use futures::StreamExt as _;
use tokio::{sync::watch, time::Instant};

use super::{
    event_budget::{Admission, EventBudget},
    exclusion, feedback,
    patience::{Due, Patience},
    projection::{Continuation, apply, continuation},
};
use crate::executions::open::{Live, Shared};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Pause before an execution is requeued that its node rejected or lost.
const REPLACE_PAUSE: Duration = Duration::from_secs(1);
/// Before what could not be stored is asked for again.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Silence of a node after which a cancelled execution is reported as ended. The node ends it when it returns.
const CANCEL_PATIENCE: Duration = Duration::from_secs(15);
/// Events that are ready together are stored together.
const EVENTS_TOGETHER_MAX: usize = 256;
/// A node that refuses the release is told again with its next heartbeat.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// How one connection to the node ended.
enum Disconnect {
    /// The execution has ended.
    Ended,
    /// The node will not run it, and nothing ran: another may.
    NotTaken(Error),
    /// Its end was asked for before its node was heard to have taken it.
    Cancelled(String),
    /// The node's policy refuses it; nothing ran, and another node may take it.
    Declined(Error),
    /// No node will run it.
    Refused(Error),
    /// The outcome of the attempt is unknown and cannot be learned any more.
    Gone(Error),
    /// Its node is to blame for its end, and its caller allowed another attempt.
    GivenUp(String),
    /// Its program failed, and its caller allowed a retry.
    Retried(Failure, Option<i32>),
    /// Its node cannot get its image, and another node may.
    PassedOn(Failure),
    /// The node is away; it goes on there if it goes on at all.
    Away(Error),
    /// The controller stops.
    Stopped,
}

/// Whether the node of an attempt may have received its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handed {
    /// No connection has carried the order.
    No,
    /// An open connection may have carried it; so may a connection of an earlier process.
    Perhaps,
}

pub(super) fn spawn(shared: Arc<Shared>, record: ExecutionRecord, live: Arc<Live>, handed: Handed) {
    tokio::spawn(async move {
        let execution_id = record.execution_id.clone();
        let (mut record, mut handed) = (record, handed);
        // Only the store fails here: a full disk, say. What was not stored is asked of the node again.
        while let Err(error) = drive(&shared, &mut record, &live, &mut handed).await {
            tracing::error!(%execution_id, error = %error.chain(), "an execution could not be stored");
            match shared.stop.run_until_cancelled(read_again(&shared, &execution_id)).await {
                Some(Some(stored)) => record = stored,
                Some(None) | None => return,
            }
        }
    });
}

/// Reloads the record after a failed write; the record in memory is ahead of the store. Returns `None` if the record was
/// deleted.
async fn read_again(shared: &Shared, execution_id: &ExecutionId) -> Option<ExecutionRecord> {
    loop {
        tokio::time::sleep(STORE_RETRY).await;
        match shared.store.execution(execution_id).await {
            Ok(stored) => return stored,
            Err(error) => tracing::warn!(%execution_id, error = %error.chain(), "not read yet"),
        }
    }
}

async fn drive(
    shared: &Arc<Shared>,
    record: &mut ExecutionRecord,
    live: &Live,
    handed: &mut Handed,
) -> Result<()> {
    let mut away_since: Option<Instant> = None;
    let mut pause = RETRY_MIN;
    let mut patience = Patience::new(record, Instant::now());
    // Read again after a store that failed: its end may be stored, or the attempt given up.
    if record.state.is_final() {
        live.view.send_replace(record.view());
        shared.retire(record).await;
        return Ok(());
    }
    if record.state == State::Pending {
        place_anew(shared, record).await;
        return Ok(());
    }
    loop {
        let before = record.last_sequence;
        let cut = connection(shared, record, live, handed, &mut patience).await?;
        record.cancel_reason.clone_from(&live.cancel.borrow());
        match cut {
            Disconnect::Stopped => return Ok(()),
            Disconnect::Ended => {
                reached(FailPoint::EndStored).await;
                shared.retire(record).await;
                release(shared, record).await;
                return Ok(());
            }
            Disconnect::Cancelled(reason) => {
                shared.end(record, live, EventKind::Cancelled { reason }).await?;
                // It may have taken it all the same.
                release(shared, record).await;
                return Ok(());
            }
            Disconnect::Refused(error) => {
                let failed = EventKind::Failed { failure: Failure::from(&error), exit_code: None };
                return shared.end(record, live, failed).await;
            }
            Disconnect::Gone(error) => return gone(shared, record, live, &error).await,
            Disconnect::GivenUp(reason) => return give_up(shared, record, live, reason).await,
            Disconnect::Retried(failure, exit_code) => {
                return retry(shared, record, live, failure, exit_code).await;
            }
            Disconnect::PassedOn(failure) => return pass_on(shared, record, live, failure).await,
            Disconnect::Declined(error) => {
                tracing::info!(execution_id = %record.execution_id, reason = %error, "node refused; placed elsewhere");
                if let Some(node_id) = &record.node_id {
                    live.exclusion().refuse(node_id, &Failure::from(&error));
                }
                shared.controller.release(record.execution_id.clone()).await?;
                shared.enqueue(record.clone()).await;
                return Ok(());
            }
            Disconnect::NotTaken(error) => {
                tracing::info!(execution_id = %record.execution_id, reason = %error.code(), "placed anew");
                if let Some(node_id) = record.node_id.clone() {
                    if !may_have_arrived(&error) {
                        // Until its watcher reaches the node again, it gets no other work either.
                        shared.controller.set_link(node_id.clone(), false).await?;
                    }
                    let id = record.execution_id.clone();
                    shared.controller.refused(node_id, id, error).await?;
                }
                place_anew(shared, record).await;
                return Ok(());
            }
            Disconnect::Away(error) => {
                if record.last_sequence > before {
                    (away_since, pause) = (None, RETRY_MIN);
                }
                let since = *away_since.get_or_insert_with(Instant::now);
                if away(shared, record, live, &error, since.elapsed()).await? {
                    return Ok(());
                }
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
async fn connection(
    shared: &Arc<Shared>,
    record: &mut ExecutionRecord,
    live: &Live,
    handed: &mut Handed,
    patience: &mut Patience,
) -> Result<Disconnect> {
    let Some(node_id) = record.node_id.clone() else {
        return Ok(Disconnect::Refused(Error::internal("an assigned execution has no node")));
    };
    if is_removed(shared, &node_id).await? {
        return Ok(Disconnect::Gone(
            Error::new(ErrorCode::Lost, format!("{node_id} was removed; what became of it is not known"))
                .remedy("submit it again if it may run twice"),
        ));
    }
    let worker = match shared.nodes.worker(&node_id) {
        Ok(worker) => worker,
        Err(error) => return Ok(unreached(record, *handed, error)),
    };
    let order = match order(shared, record).await {
        Ok(order) => order,
        Err(error) if error.code() == ErrorCode::Storage => return Err(error),
        Err(error) => return Ok(Disconnect::Refused(error)),
    };
    reached(FailPoint::Assigned).await;
    let stored = match record.last_sequence {
        0 => 0,
        _ => shared.store.event_bytes(&record.execution_id).await?,
    };
    let mut budget = EventBudget::new(shared.settings.event_bytes_max, stored);
    let mut cancel = live.cancel.subscribe();
    let after_sequence = record.last_sequence - record.sequence_base;
    let events = tokio::select! {
        () = shared.stop.cancelled() => return Ok(Disconnect::Stopped),
        events = shared.sending.forward(&*worker, order, after_sequence) => match events {
            Ok(events) => {
                *handed = Handed::Perhaps;
                events.ready_chunks(EVENTS_TOGETHER_MAX)
            }
            Err(error) if !may_have_arrived(&error) => return Ok(unreached(record, *handed, error)),
            Err(error) => {
                let cut = judge(record, error);
                if !matches!(cut, Disconnect::NotTaken(_)) {
                    *handed = Handed::Perhaps;
                }
                return Ok(cut);
            }
        },
        // Its content may take long to be sent.
        reason = asked(&mut cancel), if is_untouched(record) => return Ok(Disconnect::Cancelled(reason)),
    };
    reached(FailPoint::Forwarded).await;
    let mut events = std::pin::pin!(events);
    let mut cancel_sent = false;
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return Ok(Disconnect::Stopped),
            reason = asked(&mut cancel), if !cancel_sent => {
                if let Err(error) = send_cancel(&*worker, record, &reason).await {
                    return Ok(Disconnect::Away(error));
                }
                cancel_sent = true;
            }
            due = patience.passed() => match due {
                Due::Cancel => {
                    tracing::warn!(execution_id = %record.execution_id, %node_id, "its end was not told: cancelled");
                    let reason = "its node has not told its end in time";
                    if let Err(error) = send_cancel(&*worker, record, reason).await {
                        return Ok(Disconnect::Away(error));
                    }
                    patience.cancel(Instant::now());
                }
                Due::GiveUp => {
                    let message = format!("{node_id} did not tell its end in time, and did not end it when asked");
                    return Ok(Disconnect::Gone(Error::new(ErrorCode::Lost, message).remedy("see the node's own log")));
                }
            },
            batch = events.next() => {
                // A stream that ends before the execution did is a cut like any other.
                let Some(batch) = batch else {
                    let ended = format!("the stream of {node_id} ended");
                    return Ok(Disconnect::Away(Error::new(ErrorCode::Unavailable, ended)));
                };
                record.cancel_reason.clone_from(&live.cancel.borrow());
                if ends(&batch) {
                    patience.end();
                }
                if ends(&batch) && record.has_artifacts && !goes_on(record, &batch) {
                    let fetch = shared.sending.fetch(&*worker, record);
                    match shared.stop.run_until_cancelled(fetch).await {
                        None => return Ok(Disconnect::Stopped),
                        Some(Err(error)) if error.code() == ErrorCode::Storage => return Err(error),
                        Some(Err(error)) => return Ok(Disconnect::Away(error)),
                        Some(Ok(artifacts)) => record.artifacts = artifacts,
                    }
                }
                let told = store(shared, record, live, &mut budget, batch).await?;
                patience.note(record, Instant::now());
                if record.state.is_final() {
                    return Ok(Disconnect::Ended);
                }
                match told {
                    BatchOutcome::All => {}
                    BatchOutcome::GoesOn(Continuation::GivenUp(reason)) => return Ok(Disconnect::GivenUp(reason)),
                    BatchOutcome::GoesOn(Continuation::Retried { failure, exit_code }) => {
                        return Ok(Disconnect::Retried(failure, exit_code));
                    }
                    BatchOutcome::PassedOn(failure) => return Ok(Disconnect::PassedOn(failure)),
                    // It was taken.
                    BatchOutcome::Broken(error) => return Ok(Disconnect::Away(error)),
                }
            }
        }
    }
}

/// Returns the order for the node. It has no secrets once the node has reported an event: the node has them by then.
async fn order(shared: &Shared, record: &ExecutionRecord) -> Result<Order> {
    let content = match shared.orders.take(&record.execution_id) {
        Some(content) => Some(content),
        None => shared.store.order_content(&record.execution_id).await?,
    };
    let OrderContent { manifest, input } =
        content.ok_or_else(|| Error::not_found("execution", record.execution_id.as_str()))?;
    let (mut secrets, mut login) = (SecretEnv::default(), None);
    if record.last_sequence == record.sequence_base {
        let use_secret = async |name: &SecretName, purpose: &str| shared.secrets.use_for(name, purpose).await;
        login = login_for(&manifest.image, &shared.logins, use_secret).await?;
        for (variable, name) in &manifest.secret_env {
            let value = shared.secrets.use_for(name, "an execution's environment").await?;
            secrets.0.insert(variable.clone(), value.reveal().to_owned());
        }
    }
    let (execution_id, attempt) = (record.execution_id.clone(), record.attempt);
    Ok(Order { execution_id, attempt, manifest, input, secrets, login })
}

/// Resolves with the reason once a caller asks for the end.
async fn asked(cancel: &mut watch::Receiver<Option<String>>) -> String {
    // Fails only with the sender, which lives as long as the driver.
    let reason = cancel.wait_for(Option::is_some).await;
    reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
}

async fn send_cancel(worker: &dyn NodeWorker, record: &ExecutionRecord, reason: &str) -> Result<()> {
    worker.cancel(&record.execution_id, record.attempt, reason).await.map(drop)
}

async fn is_removed(shared: &Shared, node_id: &NodeId) -> Result<bool> {
    let node_id = node_id.clone();
    shared.controller.with_placement(move |membership| membership.is_removed(&node_id)).await
}

/// Its node has not been heard to have begun.
fn is_untouched(record: &ExecutionRecord) -> bool {
    record.state == State::Assigned && record.last_sequence == record.sequence_base
}

fn ends(batch: &[Result<EventView>]) -> bool {
    batch.iter().flatten().any(|event| event.kind.state().is_some_and(State::is_final))
}

/// Whether a batch ends an attempt that is followed by another: what it left behind is not fetched.
fn goes_on(record: &ExecutionRecord, batch: &[Result<EventView>]) -> bool {
    batch.iter().flatten().any(|event| continuation(record, event).is_some())
}

/// Classifies a node that could not be reached: without the order it runs nothing, and another node may.
fn unreached(record: &ExecutionRecord, handed: Handed, error: Error) -> Disconnect {
    match handed {
        Handed::No if is_untouched(record) => Disconnect::NotTaken(error),
        Handed::No | Handed::Perhaps => Disconnect::Away(error),
    }
}

/// Decides what a refusal of the node means for the attempt.
fn judge(record: &ExecutionRecord, error: Error) -> Disconnect {
    match error.code() {
        // Storage: the node could not journal the order, so it did not begin.
        ErrorCode::FailedPrecondition
        | ErrorCode::ResourceExhausted
        | ErrorCode::Storage
        | ErrorCode::ContentMissing
        // The engine failed before the order was journaled.
        | ErrorCode::Engine
        // The node obeys a later controller or attempt: no fault of the execution.
        | ErrorCode::Fenced
            if is_untouched(record) =>
        {
            Disconnect::NotTaken(error)
        }
        ErrorCode::Lost => Disconnect::Gone(error),
        code if exclusion::is_refusal(code) && is_untouched(record) => Disconnect::Declined(error),
        ErrorCode::Forbidden
        | ErrorCode::InvalidArgument
        | ErrorCode::Conflict
        | ErrorCode::NotOffered => Disconnect::Refused(error),
        _ => Disconnect::Away(error),
    }
}

/// Outcome of a batch of events.
enum BatchOutcome {
    All,
    /// The end that the node told is not taken as one.
    GoesOn(Continuation),
    /// The node cannot get the image. Its end is not taken as one.
    PassedOn(Failure),
    /// The stream broke behind what was stored.
    Broken(Error),
}

/// Stores what is new of a batch, and what it shows of the execution, in one step.
async fn store(
    shared: &Shared,
    record: &mut ExecutionRecord,
    live: &Live,
    budget: &mut EventBudget,
    batch: Vec<Result<EventView>>,
) -> Result<BatchOutcome> {
    let mut told = BatchOutcome::All;
    let mut events = Vec::with_capacity(batch.len());
    for event in batch {
        let mut event = match event {
            Ok(event) => event,
            Err(error) => {
                told = BatchOutcome::Broken(error);
                break;
            }
        };
        // Its node counts each attempt from 1.
        event.sequence = event.sequence.saturating_add(record.sequence_base);
        if let EventKind::Gap { first, last } = &mut event.kind {
            *first = first.saturating_add(record.sequence_base);
            *last = last.saturating_add(record.sequence_base);
        }
        // An older attempt's events and repeated ones are dropped.
        if event.attempt != record.attempt || event.sequence <= record.last_sequence {
            continue;
        }
        feedback::rate_node(shared, record, &event.kind).await?;
        if let Some(failure) = feedback::declined(shared, record, live, &mut event).await? {
            told = BatchOutcome::PassedOn(failure);
            break;
        }
        if let Some(continuation) = continuation(record, &event) {
            told = BatchOutcome::GoesOn(continuation);
            break;
        }
        let encoded = event_encoding::encode(&record.execution_id, &event);
        match budget.admit(&event, encoded.len()) {
            Admission::Whole => events.push((event.sequence, encoded)),
            Admission::Nothing => {
                apply(record, &event, now_ms());
                continue;
            }
            Admission::Mark(mark) => {
                note_excess(shared, record).await?;
                event = mark;
                events.push((event.sequence, event_encoding::encode(&record.execution_id, &event)));
            }
            Admission::AfterGap(gap) => {
                events.push((gap.sequence, event_encoding::encode(&record.execution_id, &gap)));
                events.push((event.sequence, encoded));
            }
        }
        apply(record, &event, now_ms());
    }
    if !events.is_empty() {
        let write = ExecutionWrite::Record { record: Box::new(record.clone()), events };
        shared.store.write(Write::Execution(write)).await?;
        reached(FailPoint::EventsStored).await;
        live.view.send_replace(record.view());
    }
    Ok(told)
}

/// Tells operators that a node sends more of an execution than is stored.
async fn note_excess(shared: &Shared, record: &ExecutionRecord) -> Result<()> {
    let Some(node_id) = record.node_id.clone() else { return Ok(()) };
    let (execution_id, bytes_max) = (record.execution_id.clone(), shared.settings.event_bytes_max);
    tracing::warn!(%execution_id, %node_id, bytes_max, "the node sends more events than are stored");
    shared.controller.note_excess(node_id, execution_id).await
}

/// Handles an unknown outcome: starts another attempt if the caller allowed one, and ends the execution otherwise.
async fn gone(shared: &Shared, record: &mut ExecutionRecord, live: &Live, error: &Error) -> Result<()> {
    match record.life().next(Input::Gone) {
        Step::GiveUp => give_up(shared, record, live, error.message().to_owned()).await,
        Step::Become(_) | Step::Stay | Step::PassOn | Step::Retry => {
            let failed = EventKind::Failed { failure: Failure::from(error), exit_code: None };
            shared.end(record, live, failed).await
        }
    }
}

/// The attempt is over as far as the controller goes; should its node return with it, it is told to let go.
async fn give_up(shared: &Shared, record: &mut ExecutionRecord, live: &Live, reason: String) -> Result<()> {
    let Some(node_id) = record.node_id.clone() else { return Ok(()) };
    live.exclusion().fail(&node_id);
    let next = ExecutionRecord { queued_at_ms: now_ms(), ..record.clone() };
    begin_again(shared, record, live, next, EventKind::Reassigned { node_id, reason }).await?;
    place_anew(shared, record).await;
    Ok(())
}

/// The attempt never ran and does not count. The next node may be asked at once.
async fn pass_on(shared: &Shared, record: &mut ExecutionRecord, live: &Live, failure: Failure) -> Result<()> {
    let Some(node_id) = record.node_id.clone() else { return Ok(()) };
    let next = ExecutionRecord {
        max_attempts: record.max_attempts.saturating_add(1),
        queued_at_ms: now_ms(),
        ..record.clone()
    };
    let event = EventKind::Reassigned { node_id, reason: failure.message };
    begin_again(shared, record, live, next, event).await?;
    shared.enqueue(record.clone()).await;
    Ok(())
}

/// The program failed, and runs again after the pause that its policy states. The attempt does not count.
async fn retry(
    shared: &Shared,
    record: &mut ExecutionRecord,
    live: &Live,
    failure: Failure,
    exit_code: Option<i32>,
) -> Result<()> {
    let pause = record.retry.as_ref().map_or(Duration::ZERO, |retry| retry.pause(record.retries));
    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    let next = ExecutionRecord {
        max_attempts: record.max_attempts.saturating_add(1),
        retries: record.retries.saturating_add(1),
        queued_at_ms: now_ms().saturating_add_unsigned(pause_ms),
        ..record.clone()
    };
    begin_again(shared, record, live, next, EventKind::Retried { failure, exit_code, pause_ms }).await?;
    shared.enqueue(record.clone()).await;
    Ok(())
}

/// Stores that another attempt may begin, and frees the node of this one.
async fn begin_again(
    shared: &Shared,
    record: &mut ExecutionRecord,
    live: &Live,
    mut next: ExecutionRecord,
    event: EventKind,
) -> Result<()> {
    tracing::warn!(execution_id = %record.execution_id, attempt = record.attempt, ?event, "attempt ended early");
    let held = record.clone();
    next.state = State::Pending;
    next.lost_attempts += 1;
    next.node_id = None;
    (next.failure, next.exit_code, next.artifacts, next.usage) = (None, None, None, None);
    next.iteration = 0;
    // The next node's events come after this one's and after the word of the change.
    next.sequence_base = next.last_sequence + 1;
    shared.tell(&mut next, live, event).await?;
    *record = next;
    shared.controller.release(record.execution_id.clone()).await?;
    release(shared, &held).await;
    Ok(())
}

/// A node that refuses or fails for a moment must not be asked as fast as it can answer.
async fn place_anew(shared: &Shared, record: &ExecutionRecord) {
    if shared.stop.run_until_cancelled(tokio::time::sleep(REPLACE_PAUSE)).await.is_some() {
        shared.enqueue(record.clone()).await;
    }
}

/// Tells readers why nothing comes, and after a long silence what that comes to. True when it is over for
/// this driver.
async fn away(
    shared: &Arc<Shared>,
    record: &mut ExecutionRecord,
    live: &Live,
    error: &Error,
    silent: Duration,
) -> Result<bool> {
    if let Some(reason) = record.cancel_reason.clone()
        && (record.state == State::Lost || silent >= CANCEL_PATIENCE)
    {
        let reason = format!("{reason}; its node is away, and ends it when it returns");
        shared.end(record, live, EventKind::Cancelled { reason }).await?;
        return Ok(true);
    }
    let message = format!("its node has been away for {} s: {}", silent.as_secs(), error.message());
    // While most nodes are late at once, the fault is more likely the controller's own.
    if silent >= shared.settings.lost_after && !shared.controller.doubts_silence() {
        match record.life().next(Input::Silent) {
            Step::GiveUp => {
                give_up(shared, record, live, message).await?;
                return Ok(true);
            }
            Step::Become(state) => {
                let remedy = "the outcome is told when the node returns; submit it again if it may run twice";
                let mut lost = record.clone();
                lost.state = state;
                lost.failure =
                    Some(Failure { code: ErrorCode::Lost, message, remedy: Some(remedy.to_owned()) });
                let write = ExecutionWrite::Record { record: Box::new(lost.clone()), events: Vec::new() };
                shared.store.write(Write::Execution(write)).await?;
                *record = lost;
            }
            Step::Stay | Step::PassOn | Step::Retry => {}
        }
    }
    let is_forgotten = now_ms().saturating_sub(record.created_at_ms) > shared.settings.kept.age_ms;
    if record.state == State::Lost && is_forgotten {
        let never = Error::new(ErrorCode::Lost, "its node never came back; what became of it is not known");
        gone(shared, record, live, &never).await?;
        return Ok(true);
    }
    let mut view = record.view();
    view.waiting = Some(format!("{}; it goes on there if the machine does", error.message()));
    live.view.send_if_modified(|known| {
        let changed = *known != view;
        *known = view;
        changed
    });
    Ok(false)
}

/// The node may forget it.
async fn release(shared: &Shared, record: &ExecutionRecord) {
    let Some(node_id) = &record.node_id else { return };
    let Ok(worker) = shared.nodes.worker(node_id) else { return };
    let attempts = [record.attempt()];
    match tokio::time::timeout(RELEASE_TIMEOUT, worker.release(&attempts)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%node_id, error = %error.chain(), "not released yet"),
        Err(_) => tracing::debug!(%node_id, "not released yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executions::projection::tests::record;
    use aegis_rpc::status::NotSent;

    #[test]
    fn order_that_never_left_is_placed_elsewhere() {
        let refused = || Error::new(ErrorCode::Unavailable, "connection refused").source(NotSent);
        assert!(!may_have_arrived(&refused()));
        let assigned = record(State::Assigned);
        assert!(matches!(unreached(&assigned, Handed::No, refused()), Disconnect::NotTaken(_)));
        assert!(matches!(unreached(&assigned, Handed::Perhaps, refused()), Disconnect::Away(_)));
        assert!(matches!(unreached(&record(State::Running), Handed::No, refused()), Disconnect::Away(_)));
    }

    #[test]
    fn what_never_started_is_placed_anew_and_what_did_is_not() {
        let draining = || Error::new(ErrorCode::FailedPrecondition, "draining");
        assert!(matches!(judge(&record(State::Assigned), draining()), Disconnect::NotTaken(_)));
        assert!(matches!(judge(&record(State::Running), draining()), Disconnect::Away(_)));
        let engine = || Error::new(ErrorCode::Engine, "");
        assert!(matches!(judge(&record(State::Assigned), engine()), Disconnect::NotTaken(_)));
        assert!(matches!(judge(&record(State::Running), engine()), Disconnect::Away(_)));
        for code in [ErrorCode::Forbidden, ErrorCode::ImageNotFound] {
            assert!(matches!(judge(&record(State::Assigned), Error::new(code, "")), Disconnect::Declined(_)));
            assert!(!matches!(judge(&record(State::Running), Error::new(code, "")), Disconnect::Declined(_)));
        }
        let fenced = || Error::new(ErrorCode::Fenced, "");
        assert!(matches!(judge(&record(State::Assigned), fenced()), Disconnect::NotTaken(_)));
        assert!(matches!(judge(&record(State::Running), fenced()), Disconnect::Away(_)));
        assert!(matches!(
            judge(&record(State::Running), Error::new(ErrorCode::Lost, "")),
            Disconnect::Gone(_)
        ));
        assert!(matches!(
            judge(&record(State::Running), Error::new(ErrorCode::Unavailable, "")),
            Disconnect::Away(_)
        ));
    }
}
