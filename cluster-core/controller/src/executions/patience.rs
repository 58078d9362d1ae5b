//! How long the controller waits for the end of an execution that its node does not tell: a worker may have lost the
//! task that runs it. Counted by the monotonic clock, from the start of the driver again after a restart.

use std::time::Duration;

use aegis_types::execution::{lifecycle::State, order::PREPARE_MS_MAX, record::ExecutionRecord};
use tokio::time::Instant;

/// Beyond the time that the node itself allows: stopping the container, its last output, its artifacts.
const MARGIN: Duration = Duration::from_secs(600);
/// After the cancel.
const CANCEL_MARGIN: Duration = Duration::from_secs(120);

/// Action that is due when the wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Cancel,
    GiveUp,
}

/// The wait of one attempt.
#[derive(Debug)]
pub(super) struct Patience {
    until: Instant,
    is_running: bool,
    is_cancelled: bool,
    has_ended: bool,
}

impl Patience {
    pub fn new(record: &ExecutionRecord, now: Instant) -> Self {
        let is_running = record.state == State::Running;
        Self { until: now + limit(record, is_running), is_running, is_cancelled: false, has_ended: false }
    }

    /// Takes note of a stored event of the node.
    pub fn note(&mut self, record: &ExecutionRecord, now: Instant) {
        if record.state == State::Running && !self.is_running {
            self.is_running = true;
            self.until = now + limit(record, true);
        }
    }

    /// The end has come, and its artifacts may take long to fetch.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Resolves when something is due.
    pub async fn passed(&self) -> Due {
        if self.has_ended {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.until).await;
        if self.is_cancelled { Due::GiveUp } else { Due::Cancel }
    }

    /// The node was told to end it.
    pub fn cancel(&mut self, now: Instant) {
        self.is_cancelled = true;
        self.until = now + CANCEL_MARGIN;
    }
}

fn limit(record: &ExecutionRecord, is_running: bool) -> Duration {
    let timeout = Duration::from_secs(record.timeout_seconds) + MARGIN;
    let prepare = Duration::from_millis(PREPARE_MS_MAX.unsigned_abs());
    if is_running { timeout } else { timeout + prepare }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executions::projection::tests::record;

    async fn due_after(patience: &Patience) -> (Due, u64) {
        let since = Instant::now();
        (patience.passed().await, since.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn end_that_is_never_told_is_cancelled_and_then_given_up() {
        let mut record = record(State::Assigned);
        record.timeout_seconds = 60;
        let mut patience = Patience::new(&record, Instant::now());
        assert_eq!(due_after(&patience).await, (Due::Cancel, 1_800 + 60 + 600), "the image counts apart");
        record.state = State::Running;
        patience.note(&record, Instant::now());
        assert_eq!(due_after(&patience).await, (Due::Cancel, 660));
        // More events of a running one change nothing.
        patience.note(&record, Instant::now());
        assert_eq!(due_after(&patience).await, (Due::Cancel, 0));
        patience.cancel(Instant::now());
        assert_eq!(due_after(&patience).await, (Due::GiveUp, 120));
        patience.end();
        let waits = tokio::time::timeout(Duration::from_secs(86_400), patience.passed());
        assert!(waits.await.is_err(), "its artifacts are fetched");
    }
}
