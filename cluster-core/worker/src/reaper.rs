//! Two tasks that follow a worker's engine. One forwards its events: containers that end, vanish or hit their memory
//! limit. The other removes containers and volumes without an execution.
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

use aegis_engine::{Change, Engine};
use aegis_types::clock::now_ms;
use futures::StreamExt as _;

use crate::state::Shared;

const ENGINE_RETRY: Duration = Duration::from_secs(2);
const ORPHANS_INTERVAL: Duration = Duration::from_secs(60);
/// Grace period for a container without an execution. An order is journaled before its container is created, so that a
/// container is unknown for a moment at most.
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
        // Containers first: a volume goes when none uses it.
        let (Ok(containers), Ok(volumes)) = (engine.ours(&owner).await, engine.our_volumes(&owner).await)
        else {
            continue;
        };
        let Some(shared) = shared.upgrade() else { return };
        let mut still = HashMap::new();
        let of_volumes = containers.len();
        for (place, part) in containers.into_iter().chain(volumes).enumerate() {
            let is_known = shared
                .runs()
                .get(&part.attempt.execution_id)
                .is_some_and(|run| run.journaled.order.attempt == part.attempt.number);
            if is_known {
                continue;
            }
            let first = unknown.get(&part.name).copied().unwrap_or_else(Instant::now);
            if first.elapsed() < ORPHANS_GRACE {
                still.insert(part.name, first);
                continue;
            }
            tracing::warn!(name = %part.name, "nobody knows it any more: removed");
            let removed = match place < of_volumes {
                true => engine.remove(&part.name).await,
                false => engine.remove_volume(&part.name).await,
            };
            if let Err(error) = removed {
                tracing::warn!(name = %part.name, error = %error.chain(), "not removed");
                still.insert(part.name, first);
            }
        }
        unknown = still;
    }
}
