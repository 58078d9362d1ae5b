//! Executions that may not be placed yet: they retry after a pause, or run after others.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use aegis_store::{ExecutionWrite, Write};
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Failure, Result},
    execution::{
        dependencies::{Dependencies, Readiness},
        lifecycle::State,
        manifest::WorkspaceNote,
        record::{ExecutionRecord, Unblocked},
        retry::BACKOFF_SECONDS_MAX,
        view::EventKind,
    },
    ids::ExecutionId,
};
use tokio::time::Instant;

use crate::executions::open::Shared;

/// Pause after the store refused what was decided (a full disk, say).
const STORE_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Entry {
    record: Box<ExecutionRecord>,
    /// End of the pause before a retry. `None`: it runs after others.
    due: Option<Instant>,
}

/// The blocked executions. The task of the queue owns them.
#[derive(Debug)]
pub(super) struct Blocked {
    shared: Arc<Shared>,
    entries: Vec<Entry>,
    /// Something happened that may free one before its time.
    is_stale: bool,
}

/// How a blocked execution goes on.
#[derive(Debug)]
enum Decision {
    Stay {
        reason: String,
    },
    Place,
    /// The executions that it ran after have ended as they should.
    Unblock(Dependencies),
    End(EventKind),
}

impl Blocked {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, entries: Vec::new(), is_stale: false }
    }

    /// Takes an execution that is blocked, and gives back one that is not.
    pub fn admit(&mut self, record: Box<ExecutionRecord>) -> Option<Box<ExecutionRecord>> {
        let due = match &record.dependencies {
            Some(_) => None,
            None => match pause(record.queued_at_ms, now_ms()) {
                Duration::ZERO => return Some(record),
                pause => Some(Instant::now() + pause),
            },
        };
        self.is_stale = true;
        self.entries.push(Entry { record, due });
        None
    }

    /// Notes that an execution has ended, or that the end of one was asked for.
    pub fn recheck(&mut self) {
        self.is_stale = true;
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns when the next pause ends.
    pub fn due(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.due).min()
    }

    /// Returns the executions that may be placed now. Those whose new state must be stored first come back as words
    /// to the queue.
    ///
    /// # Errors
    ///
    /// The store cannot be read. The rest is still blocked.
    pub async fn release(&mut self) -> (Vec<Box<ExecutionRecord>>, Result<()>) {
        let now = Instant::now();
        let is_stale = std::mem::take(&mut self.is_stale);
        let (mut released, mut outcome) = (Vec::new(), Ok(()));
        if !is_stale && self.due().is_none_or(|due| due > now) {
            return (released, outcome);
        }
        let mut states = States { shared: self.shared.clone(), known: HashMap::new() };
        for entry in std::mem::take(&mut self.entries) {
            // After an error the store fails for this one as well.
            if outcome.is_err() {
                self.entries.push(entry);
                continue;
            }
            match decide(&entry, now, &mut states).await {
                Ok(Decision::Place) => released.push(entry.record),
                Ok(Decision::Stay { reason }) => {
                    if let Some(live) = self.shared.live(&entry.record.execution_id) {
                        live.tell_waiting(&reason);
                    }
                    self.entries.push(entry);
                }
                Ok(decision) => {
                    tokio::spawn(settle(self.shared.clone(), entry.record, decision));
                }
                Err(error) => {
                    (outcome, self.is_stale) = (Err(error), true);
                    self.entries.push(entry);
                }
            }
        }
        (released, outcome)
    }
}

/// Returns the rest of a pause. A wall clock that was set back does not make it longer than a pause can be.
fn pause(queued_at_ms: i64, now_ms: i64) -> Duration {
    let ms = u64::try_from(queued_at_ms.saturating_sub(now_ms)).unwrap_or(0);
    Duration::from_millis(ms).min(Duration::from_secs(u64::from(BACKOFF_SECONDS_MAX)))
}

/// States of executions, each read once a look.
struct States {
    shared: Arc<Shared>,
    known: HashMap<ExecutionId, Option<State>>,
}

impl States {
    async fn get(&mut self, id: &ExecutionId) -> Result<Option<State>> {
        Ok(match self.known.entry(id.clone()) {
            hash_map::Entry::Occupied(known) => *known.get(),
            hash_map::Entry::Vacant(place) => {
                *place.insert(self.shared.known(id).await?.map(|view| view.state))
            }
        })
    }
}

async fn decide(entry: &Entry, now: Instant, states: &mut States) -> Result<Decision> {
    let record = &entry.record;
    let cancelled = states.shared.live(&record.execution_id).and_then(|live| live.cancel.borrow().clone());
    if let Some(reason) = cancelled {
        return Ok(Decision::End(EventKind::Cancelled { reason }));
    }
    if let Some(due) = entry.due {
        let retries_max = record.retry.as_ref().map_or(0, |retry| retry.max);
        let reason = format!("its program failed; retry {} of {retries_max} follows a pause", record.retries);
        return Ok(if due > now { Decision::Stay { reason } } else { Decision::Place });
    }
    let Some(dependencies) = &record.dependencies else { return Ok(Decision::Place) };
    let mut found = Vec::with_capacity(dependencies.after.len());
    for id in &dependencies.after {
        found.push(states.get(id).await?);
    }
    Ok(match dependencies.readiness(&found) {
        Readiness::Ready => Decision::Unblock(dependencies.clone()),
        Readiness::Blocked(reason) => Decision::Stay { reason },
        Readiness::Impossible(failure) => Decision::End(EventKind::Failed { failure, exit_code: None }),
    })
}

/// Carries a decision out, and tries again while the store refuses it.
async fn settle(shared: Arc<Shared>, mut record: Box<ExecutionRecord>, decision: Decision) {
    while let Err(error) = try_settle(&shared, &mut record, &decision).await {
        tracing::error!(execution_id = %record.execution_id, error = %error.chain(), "a blocked execution could not be stored");
        if shared.stop.run_until_cancelled(tokio::time::sleep(STORE_RETRY)).await.is_none() {
            return;
        }
    }
}

async fn try_settle(shared: &Shared, record: &mut ExecutionRecord, decision: &Decision) -> Result<()> {
    let Some(live) = shared.live(&record.execution_id) else { return Ok(()) };
    let end = match decision {
        Decision::End(end) => end.clone(),
        Decision::Unblock(dependencies) => match unblock(shared, record, dependencies).await? {
            None => {
                shared.enqueue(record.clone()).await;
                return Ok(());
            }
            Some(failure) => EventKind::Failed { failure, exit_code: None },
        },
        Decision::Stay { .. } | Decision::Place => return Ok(()),
    };
    shared.end(record, &live, end).await
}

/// Stores that an execution waits for a node from now on, with the workspace that it takes over. Returns why there is
/// no workspace to take over.
async fn unblock(
    shared: &Shared,
    record: &mut ExecutionRecord,
    dependencies: &Dependencies,
) -> Result<Option<Failure>> {
    let id = &record.execution_id;
    let workspace = match &dependencies.workspace_from {
        None => None,
        Some(source) => match take_over(shared, source, id).await? {
            Ok(workspace) => Some(workspace),
            Err(failure) => return Ok(Some(failure)),
        },
    };
    let unblocked = Unblocked { queued_at_ms: now_ms(), workspace };
    let write = ExecutionWrite::Unblock { execution_id: id.clone(), unblocked: unblocked.clone() };
    if let Err(error) = shared.store.write(Write::Execution(write)).await {
        shared.sending.let_go(unblocked.workspace.as_ref(), id);
        return Err(error);
    }
    record.unblock(unblocked);
    Ok(None)
}

async fn take_over(
    shared: &Shared,
    source: &ExecutionId,
    user: &ExecutionId,
) -> Result<Result<WorkspaceNote, Failure>> {
    let artifacts = shared.store.execution(source).await?.and_then(|record| record.artifacts);
    let why = match artifacts {
        None => "it left none".to_owned(),
        Some(artifacts) => match artifacts.problem {
            Some(problem) => problem,
            None => match shared.sending.reuse(source, user).await {
                Ok(workspace) => return Ok(Ok(workspace)),
                Err(error) => error.to_string(),
            },
        },
    };
    let message = format!("the artifacts of {source} cannot be its workspace: {why}");
    let remedy = format!("run {source} again with artifacts, then this one");
    let error = Error::new(ErrorCode::FailedPrecondition, message).remedy(remedy);
    Ok(Err(Failure::from(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_ends_with_its_time_and_never_exceeds_an_hour() {
        assert_eq!(pause(10_000, 4_000), Duration::from_secs(6));
        assert_eq!(pause(4_000, 10_000), Duration::ZERO);
        assert_eq!(pause(i64::MAX, 0), Duration::from_secs(3600), "the clock was set back");
        assert_eq!(pause(0, i64::MAX), Duration::ZERO);
    }
}
