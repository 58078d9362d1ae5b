//! Executions on a worker. Each accepted order is journaled, run by a task of its own, and kept until the controller
//! has stored its end.
//!
//! Tasks: one `run` task an execution (see [`super::run`]), and two that follow the engine (see [`crate::reaper`]). State:
//! a map of runs behind a mutex that is held for look-ups only. On disk: the [`Journal`], which is written before a
//! container is created, and an event log for each order.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicI64},
    },
};

use aegis_config::{policy, schema::Policy};
use aegis_content::blob_store::BlobStore;
use aegis_engine::{Engine, container_name, guard_name};
use aegis_fs::DataDirectory;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    execution::{
        manifest::NetworkMode,
        order::{Attempt, Held, Order, PREPARE_MS_MAX},
        view::EventView,
    },
    gpu::GpuId,
    ids::{ExecutionId, NodeId},
    resources::Amounts,
};
use arc_swap::ArcSwap;
use futures::Stream;
use tokio::{
    sync::{Notify, watch::Sender},
    time::Instant,
};

use super::{
    control::Control,
    disk, gpus,
    images::Images,
    journal::{Entry, Journal, drop_secrets},
    run,
    state::{MIB, Place, Shared},
    turns::{ExecutionLocks, Turn},
};
use crate::{
    capacity::{Capacity, NodeGpus},
    event_log::EventLog,
    incoming::ContentReceiver,
    journaled::JournaledAssignment,
    reaper,
    space::DISK_BYTES_MIN,
    state::{GIVEN_UP_GRACE, Run},
};

/// Executions that a worker holds, running and ended but not released.
const RUNS_MAX: usize = 4096;
const EVENTS_FILE: &str = "events";
/// Event logs of all executions that are held, those that still run counted as full.
const LOGS_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A cheap handle on the executions of this worker.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Shared>);

impl Supervisor {
    /// Reads the journal and takes up what it names: running containers are adopted by name, and what
    /// ended meanwhile is told.
    pub fn recover(
        data: &DataDirectory,
        node_id: NodeId,
        engine: Engine,
        policy: Policy,
        network: String,
        env: Vec<(String, String)>,
    ) -> Result<Self> {
        let journal = Journal::open(data.path().join("executions"))?;
        let control = Control::open(data)?;
        let kept = BlobStore::open(data.path().join("content"))?;
        let images = Arc::new(Images::open(data.path(), engine.clone())?);
        let shared = Shared {
            node_id,
            owner: control.owner().to_owned(),
            incoming: ContentReceiver::new(engine.clone(), kept, images.clone()),
            images,
            data_path: data.path().to_owned(),
            engine,
            engine_lost_ms: AtomicI64::new(0),
            policy: ArcSwap::from_pointee(policy),
            capacity: OnceLock::new(),
            network,
            guard_image: tokio::sync::OnceCell::new(),
            env,
            control,
            turns: ExecutionLocks::default(),
            beginning: Mutex::default(),
            runs: Mutex::default(),
            journal,
        };
        let supervisor = Self(Arc::new(shared));
        supervisor.take_up()?;
        supervisor.claim_content()?;
        reaper::spawn(&supervisor.0);
        disk::spawn(&supervisor.0);
        Ok(supervisor)
    }

    fn take_up(&self) -> Result<()> {
        for Entry { journaled, directory } in self.0.journal.entries()? {
            let run = self.hold(journaled, directory, false)?;
            if run.log.progress().borrow().ended {
                drop_secrets(&run.directory)?;
            } else {
                tracing::info!(execution_id = %run.journaled.order.execution_id, "resumed");
                run::spawn(self.0.clone(), run);
            }
        }
        Ok(())
    }

    fn hold(&self, journaled: JournaledAssignment, directory: PathBuf, is_new: bool) -> Result<Arc<Run>> {
        let order = &journaled.order;
        let log = EventLog::open(
            &directory.join(EVENTS_FILE),
            order.execution_id.clone(),
            order.attempt,
            self.output_bytes_max(),
        )?;
        let run = Arc::new(Run {
            deadline: journaled.deadline(now_ms(), Instant::now()),
            journaled,
            is_new,
            directory,
            log: Arc::new(log),
            cancel: Sender::new(None),
            no_room: Sender::new(None),
            is_freed: AtomicBool::new(false),
            changed: Notify::new(),
            out_of_memory: AtomicBool::new(false),
            usage: Mutex::default(),
        });
        self.0.runs().insert(run.journaled.order.execution_id.clone(), run.clone());
        Ok(run)
    }

    fn output_bytes_max(&self) -> u64 {
        u64::from(self.0.output_mb()) * MIB
    }

    /// Starts an order, or attaches to a known one. An `after_sequence` above 0 means that the controller has seen it run,
    /// and an unknown order is refused then.
    pub async fn accept(
        &self,
        order: Order,
        after_sequence: u64,
    ) -> Result<impl Stream<Item = Result<EventView>> + use<>> {
        let turn = self.0.turns.take(&order.execution_id).await;
        let known = self.0.run(&order.execution_id);
        let run = match known {
            Some(run) if run.journaled.order.attempt == order.attempt => run,
            Some(run) if run.journaled.order.attempt > order.attempt => {
                return Err(Error::new(
                    ErrorCode::Fenced,
                    format!("attempt {} of {} is fenced by a newer one", order.attempt, order.execution_id),
                ));
            }
            Some(older) => {
                self.make_way(&older).await?;
                self.begin(order, turn).await?
            }
            None if after_sequence > 0 => {
                return Err(Error::new(
                    ErrorCode::Lost,
                    format!("this node has no record of {}", order.execution_id),
                )
                .remedy("its data directory was replaced; submit the execution again if it may run twice"));
            }
            None => self.begin(order, turn).await?,
        };
        run.log.ensure_reaches(after_sequence).await?;
        Ok(follow(run, after_sequence))
    }

    async fn begin(&self, order: Order, turn: Turn) -> Result<Arc<Run>> {
        if self.0.control.takes_no_work() {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                "this node is draining and takes no new work",
            ));
        }
        policy::check(&order.manifest, &self.0.policy.load())?;
        let on_node = self.gpus_for(order.manifest.resources).await;
        let place = self.take_place(&order, &on_node)?;
        self.stop_ended(&place.gpus).await?;
        if let Some(note) = &order.manifest.workspace {
            self.incoming().kept().claim(&note.digest, &order.execution_id)?;
        }
        // A caller may go at any time; an order that is in the journal then runs all the same.
        let supervisor = self.clone();
        let begun = tokio::spawn(async move { supervisor.journal(order, turn, place).await });
        begun.await.map_err(|error| Error::internal("taking an order ended").source(error))?
    }

    async fn journal(&self, order: Order, _turn: Turn, place: Place) -> Result<Arc<Run>> {
        let accepted_at_ms = now_ms();
        // From its start on, its own timeout counts.
        let deadline_ms = accepted_at_ms.saturating_add(PREPARE_MS_MAX);
        let mut journaled =
            JournaledAssignment { deadline_ms, accepted_at_ms, gpus: place.gpus.clone(), order };
        let directory = self.0.journal.put(&mut journaled).await?;
        let run = match self.hold(journaled, directory.clone(), true) {
            Ok(run) => run,
            Err(error) => {
                // The caller places a refused order elsewhere: it must not run here at the next start.
                self.0.journal.remove(&directory).await?;
                return Err(error);
            }
        };
        run::spawn(self.0.clone(), run.clone());
        Ok(run)
    }

    /// Returns the GPUs of this node, where an order needs some.
    async fn gpus_for(&self, need: Amounts) -> NodeGpus {
        match self.0.capacity.get().filter(|_| need.gpus > 0) {
            Some(capacity) => capacity.gpus().await,
            None => NodeGpus::NONE,
        }
    }

    /// Reserves what an order takes of this worker while it is journaled.
    fn take_place(&self, order: &Order, on_node: &NodeGpus) -> Result<Place> {
        let mut beginning = self.0.beginning();
        self.check_room(beginning.len())?;
        if self.0.runs().len() + beginning.len() >= RUNS_MAX {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("this node holds {RUNS_MAX} executions"),
            ));
        }
        let begun = beginning.values().map(|gpus| gpus::Held { gpus: gpus.clone(), has_ended: false });
        let held: Vec<gpus::Held> = self.0.runs().values().map(|run| run.held_gpus()).chain(begun).collect();
        let gpus = gpus::choose(order.manifest.resources, on_node, &held)?;
        beginning.insert(order.execution_id.clone(), gpus.clone());
        Ok(Place { shared: self.0.clone(), execution_id: order.execution_id.clone(), gpus })
    }

    /// Sees to it that what had one of these GPUs, and has ended, runs no more.
    async fn stop_ended(&self, gpus: &[GpuId]) -> Result<()> {
        let had_one = |run: &&Arc<Run>| run.journaled.gpus.iter().any(|gpu| gpus.contains(gpu));
        let runs: Vec<Arc<Run>> = self.0.runs().values().filter(had_one).cloned().collect();
        for run in runs {
            self.0.engine.stop(&self.0.container_of(&run), GIVEN_UP_GRACE).await?;
        }
        Ok(())
    }

    /// Fences an older attempt of an execution that is to start here again. The controller has given it up.
    async fn make_way(&self, older: &Run) -> Result<()> {
        let order = &older.journaled.order;
        if older.log.progress().borrow().ended {
            return self.forget(older).await;
        }
        older.ask_for_the_end("a newer attempt takes its place");
        let message = format!("attempt {} of {} is ended here first", order.attempt, order.execution_id);
        Err(Error::new(ErrorCode::Unavailable, message))
    }

    /// Checks that there is room for the logs of all executions, counting those that have not ended as full.
    fn check_room(&self, beginning: usize) -> Result<()> {
        let full = |what: String| {
            Err(Error::new(ErrorCode::ResourceExhausted, what)
                .remedy("free some disk space on the node, or wait until executions have ended"))
        };
        let budget = self.output_bytes_max();
        let begun = budget.saturating_mul(beginning as u64 + 1);
        let logs = self.0.runs().values().fold(begun, |sum, run| {
            let length = run.log.length();
            sum + if run.log.progress().borrow().ended { length } else { length.max(budget) }
        });
        if logs > LOGS_BYTES_MAX {
            return full(format!("the logs of this node's executions may take {} MiB", logs / MIB));
        }
        let free = nix::sys::statvfs::statvfs(self.0.journal.path())
            .map_or(u64::MAX, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        if free < DISK_BYTES_MIN {
            return full(format!("this node's disk has {} MiB left", free / MIB));
        }
        Ok(())
    }

    /// False when it had ended before.
    pub fn cancel(&self, execution_id: &ExecutionId, attempt: u32, reason: &str) -> Result<bool> {
        let run = self.0.run(execution_id);
        let run = run.ok_or_else(|| Error::not_found("execution", execution_id.as_str()))?;
        if run.journaled.order.attempt != attempt {
            return Err(Error::new(
                ErrorCode::Fenced,
                format!("attempt {attempt} is not the one that runs here"),
            ));
        }
        if run.log.progress().borrow().ended {
            return Ok(false);
        }
        run.ask_for_the_end(reason);
        Ok(true)
    }

    /// The controller wants nothing more of these: what runs is ended, and what has ended goes, container
    /// and journal. What cannot be removed holds up no other; the first error is returned.
    pub async fn release(&self, attempts: &[Attempt]) -> Result<()> {
        let mut outcome = Ok(());
        for attempt in attempts {
            let Some(run) = self.0.run(&attempt.execution_id) else { continue };
            if run.journaled.order.attempt != attempt.number {
                continue;
            }
            if run.log.progress().borrow().ended {
                if let Err(error) = self.forget(&run).await {
                    tracing::warn!(execution_id = %attempt.execution_id, error = %error.chain(), "not removed yet");
                    outcome = outcome.and(Err(error));
                }
            } else {
                run.ask_for_the_end("the controller wants nothing more of it");
            }
        }
        outcome
    }

    async fn forget(&self, run: &Run) -> Result<()> {
        let Order { execution_id, manifest, .. } = &run.journaled.order;
        let attempt = run.journaled.order.attempt();
        self.0.engine.remove(&self.0.container_of(run)).await?;
        if manifest.network == NetworkMode::Allow {
            self.0.engine.remove(&guard_name(&self.0.node_id, &attempt)).await?;
        }
        // One that was made for the next iteration, and of which the log does not know.
        let next = run.log.progress().borrow().iteration + 1;
        if next <= manifest.iterations.max {
            self.0.engine.remove(&container_name(&self.0.node_id, &attempt, next)).await?;
        }
        if manifest.has_workspace() {
            self.0.engine.remove_workspace(self.0.volume(&attempt)).await?;
        }
        if let Some(note) = &manifest.workspace {
            self.incoming().kept().unclaim(&note.digest, execution_id);
        }
        self.0.runs().remove(&run.journaled.order.execution_id);
        self.0.journal.remove(&run.directory).await
    }

    pub fn held(&self) -> Vec<Held> {
        self.0
            .runs()
            .values()
            .map(|run| Held {
                execution_id: run.journaled.order.execution_id.clone(),
                attempt: run.journaled.order.attempt,
                last_sequence: run.log.progress().borrow().last_sequence,
                gpus: run.gpus_in_use(),
            })
            .collect()
    }

    /// Executions that have not ended.
    pub fn running(&self) -> usize {
        self.0.runs().values().filter(|run| !run.log.progress().borrow().ended).count()
    }

    /// Sets the policy for orders that are accepted and containers that are started from now on.
    pub fn set_policy(&self, policy: Policy) {
        self.0.policy.store(Arc::new(policy));
    }

    /// Names what measures this node. The first one counts.
    pub fn set_capacity(&self, capacity: Capacity) {
        let _ = self.0.capacity.set(capacity);
    }

    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Returns the owner in the labels of this worker's containers.
    pub fn owner(&self) -> &str {
        &self.0.owner
    }

    /// Returns the worker's own state, as its controller has set it.
    pub fn control(&self) -> &Control {
        &self.0.control
    }
}

/// Returns events after a number, once they are on disk.
async fn read_synced(log: &EventLog, after_sequence: u64) -> Result<Vec<EventView>> {
    let events = log.read_after(after_sequence)?;
    if let Some(last) = events.last() {
        log.sync(last.sequence).await?;
    }
    Ok(events)
}

/// Events from a number on, to the end.
fn follow(run: Arc<Run>, after_sequence: u64) -> impl Stream<Item = Result<EventView>> + use<> {
    let progress = run.log.progress();
    let state = (run, progress, after_sequence, Vec::<EventView>::new().into_iter());
    futures::stream::unfold(Some(state), |state| async move {
        let (run, mut progress, mut sequence, mut batch) = state?;
        loop {
            if let Some(event) = batch.next() {
                sequence = event.sequence;
                return Some((Ok(event), Some((run, progress, sequence, batch))));
            }
            // Before the read, so that what comes during it is not missed.
            let seen = *progress.borrow_and_update();
            match read_synced(&run.log, sequence).await {
                Ok(events) if !events.is_empty() => batch = events.into_iter(),
                Ok(_) if seen.ended => return None,
                Ok(_) => progress.changed().await.ok()?,
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}

mod content;
mod node_worker;

#[cfg(test)]
mod tests;
