//! The task that holds the membership: runs decisions one after the other, stores what they change, applies
//! it, and only then answers. It also sweeps for silent nodes and for drains that are overdue.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aegis_identity::PublicKey;
use aegis_store::{Store, Write};
use aegis_types::{
    clock::Clock,
    error::Result,
    ids::{ExecutionId, NodeId},
    node::{Desired, NodeRecord},
    node_event::NodeEventKind,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Standing, Standings, admission};
use crate::{
    clock_watch::ClockWatch,
    events::{NodeEvents, event_of},
    membership::{Change, Membership, Staleness},
};

/// The owner looks at its clock every second; after a longer pause its process was stopped, or its disk
/// held it up, and heartbeats wait to be taken.
const PAUSE_NOTICED_MS: i64 = 10_000;
/// Between looks at drain deadlines.
const DEADLINE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) type Stored = Box<dyn FnOnce(Result<()>) + Send>;
pub(super) type Decide = Box<dyn FnOnce(&mut Membership, i64) -> (Vec<Change>, Stored) + Send>;

pub(super) struct Decision {
    pub decide: Decide,
    /// It changes what others may wait for, beyond the changes it returns.
    pub stirs: bool,
}

pub(super) fn set_standing(standings: &Standings, record: &NodeRecord) {
    let standing = match (record.desired, &record.public_key) {
        (Desired::Removed, _) | (_, None) => None,
        (_, Some(key)) => match PublicKey::parse(key) {
            Ok(key) => Some(Standing { role: record.role, key, sealed: record.sealed }),
            Err(error) => {
                tracing::error!(node_id = %record.node_id, %error, "a stored key cannot be used");
                None
            }
        },
    };
    let mut standings = standings.write().unwrap_or_else(PoisonError::into_inner);
    standings.insert(record.node_id.clone(), standing);
}

/// The task that holds the membership.
pub(super) struct Owner {
    pub id: NodeId,
    pub membership: Membership,
    pub events: NodeEvents,
    pub standings: Standings,
    pub store: Store,
    pub version: watch::Sender<u64>,
    pub overdue: watch::Sender<Vec<ExecutionId>>,
    pub doubts_silence: Arc<AtomicBool>,
    pub staleness: Staleness,
    pub clock: Clock,
}

impl Owner {
    /// Ends when told to, or with the last handle.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Decision>,
        sweep: Duration,
        stop: CancellationToken,
    ) {
        let mut sweep = tokio::time::interval(sweep);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut deadlines = tokio::time::interval(DEADLINE_INTERVAL);
        deadlines.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watch = ClockWatch::new(self.clock);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                decision = queue.recv() => match decision {
                    Some(decision) => {
                        self.look_at_clock(&mut watch).await;
                        self.take(decision).await;
                    }
                    None => return,
                },
                _ = sweep.tick() => {
                    self.look_at_clock(&mut watch).await;
                    self.sweep().await;
                }
                _ = deadlines.tick() => {
                    self.look_at_clock(&mut watch).await;
                    self.finish_removals().await;
                    self.look_at_deadlines();
                    if self.membership.forget_refusals(self.clock.now_ms()) {
                        self.version.send_modify(|version| *version += 1);
                    }
                }
            }
        }
    }

    /// Corrects silences and deadlines, which are counted in wall time, after a jump of the wall clock or a pause of this
    /// process.
    async fn look_at_clock(&mut self, watch: &mut ClockWatch) {
        let passed = watch.look();
        let missed_ms = if passed.real_ms > PAUSE_NOTICED_MS { passed.real_ms } else { 0 };
        if passed.jump_ms == 0 && missed_ms == 0 {
            return;
        }
        let now_ms = self.clock.now_ms();
        let changes = self.membership.rebase(passed.jump_ms, missed_ms, now_ms);
        if passed.is_jump() {
            let seconds = passed.jump_ms / 1000;
            tracing::warn!(seconds, "the wall clock jumped: silence and deadlines are counted on");
            self.events.append(NodeEventKind::ClockJumped, self.id.clone(), now_ms);
        }
        if let Err(error) = self.store_and_apply(changes).await {
            tracing::error!(error = %error.chain(), "deadlines could not be stored after a jump of the clock");
        }
    }

    async fn take(&mut self, decision: Decision) {
        let (changes, stored) = (decision.decide)(&mut self.membership, self.clock.now_ms());
        let stirred = decision.stirs || !changes.is_empty();
        let result = self.store_and_apply(changes).await;
        if stirred {
            self.finish_removals().await;
            self.version.send_modify(|version| *version += 1);
        }
        stored(result);
    }

    /// Stores what one decision changes together: a crash never leaves half of it.
    async fn store_and_apply(&mut self, changes: Vec<Change>) -> Result<()> {
        let now_ms = self.clock.now_ms();
        let mut writes: Vec<_> = changes.iter().map(|change| change.to_write(now_ms)).collect();
        match (writes.len(), changes.first()) {
            (0, _) => return Ok(()),
            (1, Some(Change::Enrol { .. })) => {
                if self.store.write(writes.remove(0)).await? == 0 {
                    return Err(admission::token_is_gone());
                }
            }
            (1, _) => drop(self.store.write(writes.remove(0)).await?),
            _ => drop(self.store.write(Write::Together(writes)).await?),
        }
        for change in changes {
            let node_id = change.node_id().clone();
            let before = self.membership.record(&node_id).cloned();
            self.membership.apply(change, now_ms);
            let after = self.membership.record(&node_id);
            if let Some(after) = after {
                set_standing(&self.standings, after);
            }
            if let Some(kind) = after.and_then(|after| event_of(before.as_ref(), after)) {
                tracing::info!(%node_id, event = kind.name(), "node event");
                self.events.append(kind, node_id, now_ms);
            }
        }
        Ok(())
    }

    async fn finish_removals(&mut self) {
        let removals = self.membership.finished_removals();
        if removals.is_empty() {
            return;
        }
        if let Err(error) = self.store_and_apply(removals).await {
            tracing::error!(error = %error.chain(), "a removal could not be stored");
        }
        self.version.send_modify(|version| *version += 1);
    }

    async fn sweep(&mut self) {
        let changes = self.membership.sweep(self.staleness, self.clock.now_ms());
        self.doubts_silence.store(self.membership.guard_is_on(), Ordering::Release);
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.store_and_apply(changes).await {
            tracing::error!(error = %error.chain(), "the sweep could not be stored");
        }
        self.version.send_modify(|version| *version += 1);
    }

    fn look_at_deadlines(&self) {
        let overdue = self.membership.overdue(self.clock.now_ms());
        self.overdue.send_if_modified(|known| {
            let changed = *known != overdue;
            *known = overdue;
            changed
        });
    }
}
