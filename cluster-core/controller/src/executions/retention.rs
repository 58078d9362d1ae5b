//! Ended executions are kept for a time and within bounds. The oldest lose their events first, then their records.
//! Readers of deleted events get a gap.

use std::{sync::Arc, time::Duration};

use aegis_config::executions::Kept;
use aegis_store::{ExecutionWrite, Write};
use aegis_types::{
    clock::{Clock, now_ms},
    error::Result,
    execution::{artifacts::Artifacts, record::Ended},
    ids::ExecutionId,
};

use crate::{clock_watch::ClockWatch, executions::open::Shared};

const INTERVAL: Duration = Duration::from_secs(600);
/// Executions that one commit deletes, so that other writes need not wait for long.
const TOGETHER_MAX: usize = 100;

#[derive(Debug, Default, PartialEq, Eq)]
struct Gone {
    forget: Vec<ExecutionId>,
    drop_events: Vec<ExecutionId>,
    drop_artifacts: Vec<ExecutionId>,
}

/// Chooses what to delete of the ended executions, which come newest first.
fn choose(ended: &[Ended], kept: Kept, now_ms: i64) -> Gone {
    let mut gone = Gone::default();
    let (mut bytes, mut artifacts_bytes) = (0_u64, 0_u64);
    for (place, execution) in (0u32..).zip(ended) {
        bytes = bytes.saturating_add(execution.events_bytes);
        artifacts_bytes = artifacts_bytes.saturating_add(execution.artifacts_bytes);
        let is_old = now_ms.saturating_sub(execution.ended_at_ms) > kept.age_ms;
        if is_old || place >= kept.executions {
            gone.forget.push(execution.execution_id.clone());
            continue;
        }
        if bytes > kept.events_bytes && execution.events_bytes > 0 {
            gone.drop_events.push(execution.execution_id.clone());
        }
        if artifacts_bytes > kept.artifacts_bytes && execution.artifacts_bytes > 0 {
            gone.drop_artifacts.push(execution.execution_id.clone());
        }
    }
    gone
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watch = ClockWatch::new(Clock::default());
    while shared.stop.run_until_cancelled(interval.tick()).await.is_some() {
        if watch.look().is_jump() {
            tracing::warn!("the wall clock jumped: nothing is forgotten in this round");
            continue;
        }
        if let Err(error) = sweep(&shared).await {
            tracing::warn!(error = %error.chain(), "what ended long ago could not be forgotten");
        }
    }
}

async fn sweep(shared: &Shared) -> Result<()> {
    let ended = shared.store.ended_executions().await?;
    let gone = choose(&ended, shared.settings.kept, now_ms());
    if gone != Gone::default() {
        let (forgotten, emptied) = (gone.forget.len(), gone.drop_events.len());
        tracing::info!(forgotten, emptied, "executions that ended long ago go");
    }
    for ids in gone.forget.chunks(TOGETHER_MAX) {
        shared.store.write(Write::Execution(ExecutionWrite::Forget(ids.to_vec()))).await?;
        for id in ids {
            shared.sending.forget(id);
        }
    }
    for ids in gone.drop_events.chunks(TOGETHER_MAX) {
        shared.store.write(Write::Execution(ExecutionWrite::DropEvents(ids.to_vec()))).await?;
    }
    for ids in gone.drop_artifacts.chunks(TOGETHER_MAX) {
        let artifacts = Artifacts::none_because("the artifacts of newer executions took their room");
        let write = ExecutionWrite::DropArtifacts { execution_ids: ids.to_vec(), artifacts };
        shared.store.write(Write::Execution(write)).await?;
        // A file that stays after a crash is removed at the next start.
        for id in ids {
            shared.sending.forget(id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_number_and_size_are_each_a_bound() {
        let ended = |id: &str, ended_at_ms, events_bytes| Ended {
            execution_id: ExecutionId::parse(id).unwrap(),
            ended_at_ms,
            events_bytes,
            artifacts_bytes: events_bytes,
        };
        let list = [ended("a", 100, 10), ended("b", 90, 10), ended("c", 80, 10), ended("d", 10, 0)];
        let kept = |age_ms, executions, events_bytes| Kept {
            age_ms,
            executions,
            events_bytes,
            artifacts_bytes: 1000,
        };
        let names = |ids: &[ExecutionId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>();
        let all = choose(&list, kept(1000, 10, 1000), 100);
        assert_eq!(all, Gone::default());
        let old = choose(&list, kept(50, 10, 1000), 100);
        assert_eq!(names(&old.forget), ["d"]);
        let many = choose(&list, kept(1000, 2, 1000), 100);
        assert_eq!(names(&many.forget), ["c", "d"]);
        let large = choose(&list, kept(1000, 10, 20), 100);
        assert_eq!((names(&large.forget), names(&large.drop_events)), (vec![], vec!["c".to_owned()]));
        let heavy = choose(&list, Kept { artifacts_bytes: 15, ..kept(1000, 10, 1000) }, 100);
        assert_eq!(
            (names(&heavy.drop_events), names(&heavy.drop_artifacts)),
            (vec![], vec!["b".into(), "c".into()])
        );
    }
}
