//! Orders of a controller to a worker, and the executions that a worker reports.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::{
    ids::{ExecutionId, GpuUuid},
    registry::PullLogin,
};

/// Time from the order to the start of the first container, in milliseconds: pulling the image and filling the workspace.
pub const PREPARE_MS_MAX: i64 = 1_800_000;

/// One assignment of an execution to a node. The number fences: a higher one ends a lower one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub execution_id: ExecutionId,
    pub number: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub manifest: Manifest,
    pub input: String,
    /// The values of [`Manifest::secret_env`].
    #[serde(default, skip_serializing_if = "SecretEnv::is_empty")]
    pub secrets: SecretEnv,
    /// Login at the image's registry. Lies in a file of the journal until the image is there.
    #[serde(skip)]
    pub login: Option<PullLogin>,
}

impl Order {
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }
}

/// Variables whose values are never shown. They lie in a file of the worker's journal (0600) until the execution
/// has ended, since each iteration creates a container; the engine's own record of a container has them as long as
/// the container.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretEnv(pub BTreeMap<String, String>);

impl SecretEnv {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// An execution that a worker holds, as a heartbeat reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub last_sequence: u64,
    /// Devices that it has, until it has ended. Empty where the node knows no devices.
    pub gpus: Vec<GpuUuid>,
}

impl Held {
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }
}
