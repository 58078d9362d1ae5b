//! What a worker's engine does by itself: containers that end, vanish or hit their memory limit, told by
//! the engine's events; and containers that nobody here knows any more, which are removed.
//!
//! Both tasks end with the supervisor.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::Ordering::{Relaxed, Release},
    },
    time::{Duration, Instant},
};

use futures::StreamExt as _;

use super::supervisor::Shared;
use crate::{
    clock::now_ms,
    engine::{Change, Engine},
};

const ENGINE_RETRY: Duration = Duration::from_secs(2);
const ORPHANS_INTERVAL: Duration = Duration::from_secs(60);
/// An order is journaled before its container is made, so that none is unknown for longer than a moment.
const ORPHANS_GRACE: Duration = Duration::from_secs(120);

pub(super) fn spawn(shared: &Arc<Shared>) {
    let (engine, owner) = (shared.engine.clone(), shared.owner.clone());
    tokio::spawn(follow(Arc::downgrade(shared), engine.clone(), owner.clone()));
    tokio::spawn(reap(Arc::downgrade(shared), engine, owner));
}

/// Wakes the run that an event concerns. After a gap all are woken, since engines forget their events.
async fn follow(shared: Weak<Shared>, engine: Engine, owner: String) {
    let mut since_ns = now_ms().saturating_mul(1_000_000);
    loop {
        let mut events = std::pin::pin!(engine.events(&owner, since_ns));
        while let Some(Ok(event)) = events.next().await {
            let Some(shared) = shared.upgrade() else { return };
            since_ns = since_ns.max(event.time_ns.saturating_add(1));
            let runs = shared.runs();
            let Some(run) = runs.get(&event.attempt.execution_id) else { continue };
            if run.journaled.order.attempt == event.attempt.number {
                run.out_of_memory.fetch_or(event.change == Change::OutOfMemory, Relaxed);
                run.changed.notify_one();
            }
        }
        let Some(shared) = shared.upgrade() else { return };
        // The engine stopped, or refuses: what ends about now ends with it.
        shared.engine_lost_ms.store(now_ms(), Release);
        for run in shared.runs().values() {
            run.changed.notify_one();
        }
        drop(shared);
        tokio::time::sleep(ENGINE_RETRY).await;
    }
}

async fn reap(shared: Weak<Shared>, engine: Engine, owner: String) {
    let mut unknown: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(ORPHANS_INTERVAL).await;
        let Ok(containers) = engine.ours(&owner).await else { continue };
        let Some(shared) = shared.upgrade() else { return };
        let mut still = HashMap::new();
        for container in containers {
            let is_known = shared
                .runs()
                .get(&container.attempt.execution_id)
                .is_some_and(|run| run.journaled.order.attempt == container.attempt.number);
            if is_known {
                continue;
            }
            let first = unknown.get(&container.name).copied().unwrap_or_else(Instant::now);
            if first.elapsed() < ORPHANS_GRACE {
                still.insert(container.name, first);
                continue;
            }
            tracing::warn!(container = %container.name, "nobody knows it any more: removed");
            if let Err(error) = engine.remove(&container.name).await {
                tracing::warn!(container = %container.name, error = %error.chain(), "not removed");
                still.insert(container.name, first);
            }
        }
        unknown = still;
    }
}
