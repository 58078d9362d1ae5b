//! State shared by the supervisor and the tasks of its executions.
//!
//! [`Shared`] has the parts of the worker and its executions by id. [`Run`] is one execution, from its journaled order to
//! its release.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64},
    },
    time::Duration,
};

use aegis_config::schema::Policy;
use aegis_engine::{Engine, VolumeOf, container_name};
use aegis_types::{
    execution::{limits::OUTPUT_MB_DEFAULT, order::Attempt, usage::UsageMeter},
    gpu::GpuId,
    ids::{ExecutionId, GpuUuid, NodeId},
};
use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch::Sender},
    time::Instant,
};

use super::{control::Control, gpus, images::Images, journal::Journal, turns::ExecutionLocks};
use crate::{
    capacity::Capacity, event_log::EventLog, incoming::ContentReceiver, journaled::JournaledAssignment,
};

#[derive(Debug)]
pub struct Run {
    pub journaled: JournaledAssignment,
    /// When its preparation has taken too long, whatever is done to the wall clock meanwhile.
    pub deadline: Instant,
    /// It began in this process: no container of its can be there before it is created.
    pub is_new: bool,
    pub directory: PathBuf,
    pub log: Arc<EventLog>,
    pub cancel: Sender<Option<String>>,
    /// Why it is ended for room on the disk.
    pub no_room: Sender<Option<String>>,
    /// Its container and workspace were removed for room.
    pub is_freed: AtomicBool,
    /// The engine told something of its container.
    pub changed: Notify,
    pub out_of_memory: AtomicBool,
    pub usage: Mutex<UsageMeter>,
}

impl Run {
    pub fn held_gpus(&self) -> gpus::Held {
        let has_ended = self.log.progress().borrow().ended;
        gpus::Held { gpus: self.journaled.gpus.clone(), has_ended }
    }

    /// Returns the devices that it has, until it has ended.
    pub fn gpus_in_use(&self) -> Vec<GpuUuid> {
        let uuid = |gpu: &GpuId| match gpu {
            GpuId::Uuid(uuid) => Some(uuid.clone()),
            GpuId::Index(_) => None,
        };
        match self.log.progress().borrow().ended {
            true => Vec::new(),
            false => self.journaled.gpus.iter().filter_map(uuid).collect(),
        }
    }

    /// Asks for the end for room on the disk. The first reason counts.
    pub(super) fn end_for_room(&self, reason: String) {
        self.no_room.send_modify(|asked| {
            asked.get_or_insert(reason);
        });
    }

    /// The first reason counts.
    pub fn ask_for_the_end(&self, reason: &str) {
        self.cancel.send_modify(|asked| {
            asked.get_or_insert_with(|| reason.to_owned());
        });
    }
}

/// State shared by all runs of a worker.
#[derive(Debug)]
pub(super) struct Shared {
    pub node_id: NodeId,
    pub owner: String,
    pub engine: Engine,
    /// When the engine was last seen to stop, in Unix milliseconds.
    pub engine_lost_ms: AtomicI64,
    pub policy: ArcSwap<Policy>,
    pub incoming: ContentReceiver,
    pub images: Arc<Images>,
    pub data_path: PathBuf,
    /// Capacity of the node, which knows its GPUs. Set once it is measured.
    pub capacity: OnceLock<Capacity>,
    pub network: String,
    /// Image of this program, once the engine has it: guards of networks run it.
    pub guard_image: tokio::sync::OnceCell<String>,
    /// Variables that every container of this node gets.
    pub env: Vec<(String, String)>,
    pub journal: Journal,
    pub control: Control,
    pub turns: ExecutionLocks,
    /// Orders that are being journaled, with their GPUs: they count as if they ran.
    pub beginning: Mutex<HashMap<ExecutionId, Vec<GpuId>>>,
    pub runs: Mutex<HashMap<ExecutionId, Arc<Run>>>,
}

impl Shared {
    pub(super) fn runs(&self) -> MutexGuard<'_, HashMap<ExecutionId, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn beginning(&self) -> MutexGuard<'_, HashMap<ExecutionId, Vec<GpuId>>> {
        self.beginning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn run(&self, execution_id: &ExecutionId) -> Option<Arc<Run>> {
        self.runs().get(execution_id).cloned()
    }

    /// Returns the name of the latest iteration's container.
    pub(super) fn container_of(&self, run: &Run) -> String {
        let iteration = run.log.progress().borrow().iteration.max(1);
        container_name(&self.node_id, &run.journaled.order.attempt(), iteration)
    }

    /// Returns the key of an attempt's workspace volume.
    pub(super) fn volume<'a>(&'a self, attempt: &'a Attempt) -> VolumeOf<'a> {
        VolumeOf { node_id: &self.node_id, owner: &self.owner, attempt }
    }

    /// Output kept of one execution.
    pub(super) fn output_mb(&self) -> u32 {
        self.policy.load().max_output_mb.unwrap_or(OUTPUT_MB_DEFAULT)
    }
}

pub const MIB: u64 = 1024 * 1024;

/// Grace period for a container whose execution has already ended.
pub const GIVEN_UP_GRACE: Duration = Duration::ZERO;

/// Room and GPUs that an order takes while it is journaled. Dropping this releases them; the run counts by then.
#[derive(Debug)]
pub(super) struct Place {
    pub shared: Arc<Shared>,
    pub execution_id: ExecutionId,
    pub gpus: Vec<GpuId>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.beginning().remove(&self.execution_id);
    }
}
