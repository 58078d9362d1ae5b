//! Compares the executions that nodes report with the controller's records. Repeats messages that were lost, and ends
//! executions that are not wanted any more.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_types::{
    error::Result,
    execution::{
        order::{Attempt, Held},
        view::ExecutionView,
    },
    ids::NodeId,
};
use tokio::sync::mpsc;

use crate::executions::open::Shared;

/// Grace period for an execution without a record. A database from a backup may lack it by mistake.
const UNKNOWN_GRACE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is as it should be.
    Keep,
    /// It has ended here, or another attempt took its place.
    LetGo,
    Unknown,
}

/// Pure.
fn judge(node_id: &NodeId, held: &Held, known: Option<&ExecutionView>) -> Verdict {
    match known {
        None => Verdict::Unknown,
        Some(view)
            if !view.state.is_final()
                && view.attempt == held.attempt
                && view.node_id.as_ref() == Some(node_id) =>
        {
            Verdict::Keep
        }
        Some(_) => Verdict::LetGo,
    }
}

/// Compares each report until the controller stops.
pub(super) async fn run(shared: Arc<Shared>, mut reports: mpsc::Receiver<(NodeId, Vec<Held>)>) {
    let mut unknown: HashMap<NodeId, HashMap<Attempt, Instant>> = HashMap::new();
    while let Some(Some((node_id, held))) = shared.stop.run_until_cancelled(reports.recv()).await {
        let since = unknown.remove(&node_id).unwrap_or_default();
        match compare(&shared, &node_id, held, &since).await {
            Ok((let_go, still_unknown)) => {
                if !still_unknown.is_empty() {
                    unknown.insert(node_id.clone(), still_unknown);
                }
                release(&shared, &node_id, &let_go).await;
            }
            Err(error) => {
                tracing::warn!(%node_id, error = %error.chain(), "a report could not be compared");
                unknown.insert(node_id, since);
            }
        }
    }
}

async fn compare(
    shared: &Shared,
    node_id: &NodeId,
    held: Vec<Held>,
    since: &HashMap<Attempt, Instant>,
) -> Result<(Vec<Attempt>, HashMap<Attempt, Instant>)> {
    let (mut let_go, mut unknown, mut gpus) = (Vec::new(), HashMap::new(), Vec::new());
    for held in held {
        let known = shared.known(&held.execution_id).await?;
        let attempt = held.attempt();
        match judge(node_id, &held, known.as_ref()) {
            Verdict::Keep if held.gpus.is_empty() => {}
            Verdict::Keep => gpus.push((held.execution_id, held.gpus)),
            Verdict::LetGo => let_go.push(attempt),
            Verdict::Unknown => {
                let first = since.get(&attempt).copied().unwrap_or_else(Instant::now);
                if first.elapsed() >= UNKNOWN_GRACE {
                    tracing::warn!(%node_id, execution_id = %attempt.execution_id, "nobody knows it: ended");
                    let_go.push(attempt);
                } else {
                    unknown.insert(attempt, first);
                }
            }
        }
    }
    if !gpus.is_empty() {
        shared.controller.note_gpus(node_id.clone(), gpus).await?;
    }
    Ok((let_go, unknown))
}

/// The next report asks again for what this does not reach.
async fn release(shared: &Shared, node_id: &NodeId, attempts: &[Attempt]) {
    if attempts.is_empty() {
        return;
    }
    if let Ok(worker) = shared.nodes.worker(node_id)
        && let Err(error) = worker.release(attempts).await
    {
        tracing::debug!(%node_id, error = %error.chain(), "not released; the next heartbeat tries again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::execution::{
        lifecycle::State,
        record::ExecutionRecord,
        request::{ExecutionRequest, Submission},
    };

    #[test]
    fn only_the_attempt_that_is_meant_is_kept() {
        let (here, there) = (NodeId::parse("here").unwrap(), NodeId::parse("there").unwrap());
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let submission = Submission::check(request).unwrap();
        let record = ExecutionRecord {
            state: State::Running,
            attempt: 2,
            node_id: Some(here.clone()),
            ..ExecutionRecord::pending(&submission, String::new(), 0)
        };
        let held = |attempt| Held {
            execution_id: record.execution_id.clone(),
            attempt,
            last_sequence: 0,
            gpus: Vec::new(),
        };
        let running = record.view();
        assert_eq!(judge(&here, &held(2), Some(&running)), Verdict::Keep);
        assert_eq!(judge(&here, &held(1), Some(&running)), Verdict::LetGo);
        assert_eq!(judge(&there, &held(2), Some(&running)), Verdict::LetGo);
        assert_eq!(judge(&here, &held(2), None), Verdict::Unknown);
        let given_up = ExecutionView { node_id: None, state: State::Pending, ..running.clone() };
        assert_eq!(judge(&here, &held(2), Some(&given_up)), Verdict::LetGo);
        let lost = ExecutionView { state: State::Lost, ..running.clone() };
        assert_eq!(judge(&here, &held(2), Some(&lost)), Verdict::Keep);
        let ended = ExecutionView { state: State::Cancelled, ..running };
        assert_eq!(judge(&here, &held(2), Some(&ended)), Verdict::LetGo);
    }
}
