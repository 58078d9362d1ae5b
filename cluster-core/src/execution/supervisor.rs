//! Executions on a worker: each accepted order is journaled, run by a task of its own, and kept until
//! the controller says that it has stored the end.
//!
//! Tasks: one `run` task an execution (see [`super::run`]). State: a map of runs behind a mutex that is
//! held for look-ups only. On disk, a folder an execution: `order.json` (written before anything is
//! started) and `events`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use futures::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    log::EventLog,
    manifest::{Manifest, NetworkMode},
    run,
    view::EventView,
};
use crate::{
    clock::now_ms,
    config::schema::Policy,
    engine::{Engine, container_name},
    error::{Error, ErrorCode, Result},
    ids::{ExecutionId, NodeId},
    store::{DataDirectory, write_synced},
};

/// Executions that a worker holds, running and ended but not released.
const RUNS_MAX: usize = 4096;
const ORDER_FILE: &str = "order.json";
const EVENTS_FILE: &str = "events";
const CONTROL_FILE: &str = "worker.json";
const TIMEOUT_SECONDS_MAX_DEFAULT: u64 = 3600;

/// What the controller orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub manifest: Manifest,
    pub input: String,
}

/// An order as it is journaled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journaled {
    pub order: Order,
    pub accepted_at_ms: i64,
    pub deadline_ms: i64,
}

/// An execution that a worker holds, as a heartbeat reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub last_sequence: u64,
}

/// What the worker remembers of its controller's orders to itself.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Control {
    draining: bool,
    /// The highest epoch seen: an earlier controller is not obeyed.
    epoch: u64,
}

#[derive(Debug)]
pub(super) struct Run {
    pub journaled: Journaled,
    pub directory: PathBuf,
    pub log: EventLog,
    pub cancel: watch::Sender<Option<String>>,
}

/// What all runs of a worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub node_id: NodeId,
    pub engine: Engine,
    pub policy: ArcSwap<Policy>,
    pub network: String,
    /// Variables that every container of this node gets.
    pub env: Vec<(String, String)>,
    directory: PathBuf,
    control_path: PathBuf,
    draining: AtomicBool,
    /// The process is to end once nothing runs. Not kept: a node that is started again works again.
    closing: AtomicBool,
    epoch: AtomicU64,
    runs: Mutex<HashMap<ExecutionId, Arc<Run>>>,
}

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
        let directory = data.path().join("executions");
        fs::create_dir_all(&directory).map_err(|e| unwritable(&directory, e))?;
        let control_path = data.path().join(CONTROL_FILE);
        let control: Control = match fs::read(&control_path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Error::new(ErrorCode::Storage, format!("{} cannot be read", control_path.display())).source(e)
            })?,
            Err(_) => Control::default(),
        };
        let shared = Shared {
            node_id,
            engine,
            policy: ArcSwap::from_pointee(policy),
            network,
            env,
            draining: AtomicBool::new(control.draining),
            closing: AtomicBool::new(false),
            epoch: AtomicU64::new(control.epoch),
            control_path,
            runs: Mutex::default(),
            directory,
        };
        let supervisor = Self(Arc::new(shared));
        supervisor.take_up()?;
        Ok(supervisor)
    }

    fn take_up(&self) -> Result<()> {
        let directory = &self.0.directory;
        for entry in fs::read_dir(directory).map_err(|e| unwritable(directory, e))? {
            let path = entry.map_err(|e| unwritable(directory, e))?.path();
            let Ok(bytes) = fs::read(path.join(ORDER_FILE)) else {
                // Without an order nothing was started.
                let _ = fs::remove_dir_all(&path);
                continue;
            };
            match serde_json::from_slice::<Journaled>(&bytes) {
                Ok(journaled) => {
                    let run = self.hold(journaled, path)?;
                    if !run.log.progress().borrow().ended {
                        tracing::info!(execution_id = %run.journaled.order.execution_id, "taken up again");
                        run::spawn(self.0.clone(), run);
                    }
                }
                Err(error) => tracing::error!(%error, path = %path.display(), "an order cannot be read"),
            }
        }
        Ok(())
    }

    fn hold(&self, journaled: Journaled, directory: PathBuf) -> Result<Arc<Run>> {
        let order = &journaled.order;
        let log = EventLog::open(&directory.join(EVENTS_FILE), order.execution_id.clone(), order.attempt)?;
        let run = Arc::new(Run { journaled, directory, log, cancel: watch::channel(None).0 });
        self.runs().insert(run.journaled.order.execution_id.clone(), run.clone());
        Ok(run)
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<ExecutionId, Arc<Run>>> {
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an order, or attaches to it again when it is known. `after_sequence` above 0 says that
    /// the controller has seen it run: then it is never started anew.
    pub fn accept(
        &self,
        order: Order,
        after_sequence: u64,
    ) -> Result<impl Stream<Item = Result<EventView>> + use<>> {
        let known = self.runs().get(&order.execution_id).cloned();
        let run = match known {
            Some(run) if run.journaled.order.attempt == order.attempt => run,
            Some(run) if run.journaled.order.attempt > order.attempt => {
                return Err(Error::new(
                    ErrorCode::Fenced,
                    format!("attempt {} of {} is fenced by a newer one", order.attempt, order.execution_id),
                ));
            }
            Some(run) => {
                return Err(Error::new(
                    ErrorCode::Conflict,
                    format!(
                        "attempt {} of {} is still held by this node",
                        run.journaled.order.attempt, order.execution_id
                    ),
                ));
            }
            None if after_sequence > 0 => {
                return Err(Error::new(
                    ErrorCode::Lost,
                    format!("this node has no record of {}", order.execution_id),
                )
                .remedy("its data directory was replaced; submit the execution again if it may run twice"));
            }
            None => self.begin(order)?,
        };
        Ok(follow(run, after_sequence))
    }

    fn begin(&self, order: Order) -> Result<Arc<Run>> {
        if self.is_draining() || self.is_closing() {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                "this node is draining and takes no new work",
            ));
        }
        check_policy(&order.manifest, &self.0.policy.load())?;
        if self.runs().len() >= RUNS_MAX {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("this node holds {RUNS_MAX} executions"),
            ));
        }
        let accepted_at_ms = now_ms();
        let timeout_ms =
            i64::try_from(order.manifest.timeout_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        let journaled =
            Journaled { deadline_ms: accepted_at_ms.saturating_add(timeout_ms), accepted_at_ms, order };
        let directory = self.0.directory.join(journaled.order.execution_id.as_str());
        let bytes = serde_json::to_vec(&journaled)
            .map_err(|e| Error::internal("an order cannot be written").source(e))?;
        fs::create_dir_all(&directory)
            .and_then(|()| write_synced(&directory.join(ORDER_FILE), &bytes))
            .map_err(|e| unwritable(&directory, e))?;
        let run = self.hold(journaled, directory)?;
        run::spawn(self.0.clone(), run.clone());
        Ok(run)
    }

    /// False when it had ended before.
    pub fn cancel(&self, execution_id: &ExecutionId, attempt: u32, reason: &str) -> Result<bool> {
        let run = self.runs().get(execution_id).cloned();
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
        run.cancel.send_modify(|asked| {
            asked.get_or_insert_with(|| reason.to_owned());
        });
        Ok(true)
    }

    /// The controller has stored the end of these: container and journal go.
    pub async fn release(&self, execution_ids: &[ExecutionId]) -> Result<()> {
        for execution_id in execution_ids {
            let Some(run) = self.runs().get(execution_id).cloned() else { continue };
            if !run.log.progress().borrow().ended {
                continue;
            }
            let name = container_name(&self.0.node_id, execution_id, run.journaled.order.attempt);
            self.0.engine.remove(&name).await?;
            self.runs().remove(execution_id);
            fs::remove_dir_all(&run.directory).map_err(|e| unwritable(&run.directory, e))?;
        }
        Ok(())
    }

    pub fn held(&self) -> Vec<Held> {
        self.runs()
            .values()
            .map(|run| Held {
                execution_id: run.journaled.order.execution_id.clone(),
                attempt: run.journaled.order.attempt,
                last_sequence: run.log.progress().borrow().last_sequence,
            })
            .collect()
    }

    /// Executions that have not ended.
    pub fn running(&self) -> usize {
        self.runs().values().filter(|run| !run.log.progress().borrow().ended).count()
    }

    pub fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::Acquire)
    }

    /// Takes no new work until the process ends.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Stored before it holds, so that a restart does not undo it.
    pub fn set_draining(&self, draining: bool) -> Result<()> {
        self.write_control(Control { draining, epoch: self.0.epoch.load(Ordering::Acquire) })?;
        self.0.draining.store(draining, Ordering::Release);
        Ok(())
    }

    /// Refuses a controller of an earlier epoch than one that was obeyed.
    pub fn check_epoch(&self, epoch: u64) -> Result<()> {
        let known = self.0.epoch.load(Ordering::Acquire);
        if epoch < known {
            return Err(Error::new(
                ErrorCode::Fenced,
                format!("the controller's epoch {epoch} is before {known}, which this node has obeyed"),
            ));
        }
        if epoch > known {
            self.write_control(Control { draining: self.is_draining(), epoch })?;
            self.0.epoch.fetch_max(epoch, Ordering::AcqRel);
        }
        Ok(())
    }

    fn write_control(&self, control: Control) -> Result<()> {
        let bytes = serde_json::to_vec(&control)
            .map_err(|e| Error::internal("the worker's state cannot be written").source(e))?;
        write_synced(&self.0.control_path, &bytes).map_err(|e| unwritable(&self.0.control_path, e))
    }

    /// For what is accepted or started from now on.
    pub fn set_policy(&self, policy: Policy) {
        self.0.policy.store(Arc::new(policy));
    }

    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Storage, format!("{} cannot be written", path.display()))
        .remedy("free some disk space on the node")
        .source(error)
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
            match run.log.read_after(sequence) {
                Ok(events) if !events.is_empty() => batch = events.into_iter(),
                Ok(_) if seen.ended => return None,
                Ok(_) => progress.changed().await.ok()?,
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}

fn check_policy(manifest: &Manifest, policy: &Policy) -> Result<()> {
    let refused = |rule: &str, why: String| {
        Err(Error::new(ErrorCode::Forbidden, format!("this node's policy refuses it: {why}"))
            .remedy(format!("the operator sets spec.runtime.policy.{rule} on the node")))
    };
    if let Some(allowed) = &policy.allowed_images {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => manifest.image.starts_with(prefix),
            None => manifest.image == *pattern,
        };
        if !allowed.iter().any(fits) {
            return refused("allowed_images", format!("image {} is not on its list", manifest.image));
        }
    }
    if policy.require_digests.unwrap_or(false) && !manifest.image.contains("@sha256:") {
        return refused("require_digests", format!("image {} has no digest", manifest.image));
    }
    if manifest.network == NetworkMode::Allow && !policy.allow_network.unwrap_or(true) {
        return refused("allow_network", "network mode allow is not permitted".into());
    }
    let timeout_max = policy.max_timeout_seconds.unwrap_or(TIMEOUT_SECONDS_MAX_DEFAULT);
    if manifest.timeout_seconds > timeout_max {
        let why = format!("timeout {} s is above {timeout_max} s", manifest.timeout_seconds);
        return refused("max_timeout_seconds", why);
    }
    if policy.max_cpu.is_some_and(|max| f64::from(manifest.resources.cpu_millicores) > max * 1000.0) {
        return refused(
            "max_cpu",
            format!("{} cpu millicores are too many", manifest.resources.cpu_millicores),
        );
    }
    if policy.max_memory_mb.is_some_and(|max| manifest.resources.memory_mb > max) {
        return refused("max_memory_mb", format!("{} MiB memory are too much", manifest.resources.memory_mb));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
