//! The manifest of an execution, which a worker runs, and its demand, by which a node is chosen.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{NodeId, Tag},
    resources::Amounts,
    secret::SecretName,
};

/// Network of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// No network at all, not even the node's own addresses.
    #[default]
    None,
    /// A network of the executions' own, with a way out.
    Allow,
}

/// Work for a worker. The controller has checked it: a worker checks its own policy alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    /// Variables whose values every reader of the execution may see.
    pub env: BTreeMap<String, String>,
    /// Variables whose values are the operator's secrets: their names alone are kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_env: BTreeMap<String, SecretName>,
    pub resources: Amounts,
    pub network: NetworkMode,
    /// Limit of the execution as a whole, from the start of its first container.
    pub timeout_seconds: u64,
    #[serde(default)]
    pub iterations: Iterations,
    /// Directory that is sent along, at `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceNote>,
    /// A volume at `/workspace` even when nothing is sent along.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_workspace: bool,
    /// Files and folders in `/workspace` that are kept when it has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// File in `/workspace` whose content is the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_file: Option<String>,
    #[serde(default)]
    pub relaxed: Relaxations,
}

impl Manifest {
    /// Whether its containers get a volume at `/workspace`.
    pub fn has_workspace(&self) -> bool {
        self.workspace.is_some()
            || self.empty_workspace
            || !self.artifacts.is_empty()
            || self.result_file.is_some()
    }
}

/// How often it is tried on one node until the container exits with 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iterations {
    pub max: u32,
    /// Timeout of each iteration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

impl Default for Iterations {
    fn default() -> Self {
        Self { max: 1, timeout_seconds: None }
    }
}

/// A packed directory, as the controller keeps it until the execution has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceNote {
    /// SHA-256 of the packed bytes, in hex.
    pub digest: String,
    pub bytes: u64,
}

/// Parts of the hardening that a manifest takes back, within the node's policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Relaxations {
    /// Makes the root file system writable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable_root: bool,
    /// Linux capabilities to keep, without CAP_ (default: []).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Most processes (default 512).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// MiB of /tmp, up to 16384 (default 64), counted as memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmp_mb: Option<u32>,
    /// Programs may run from /tmp (default: only with a workspace).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tmp_exec: bool,
    /// MiB of /dev/shm, up to 16384 (default 64), counted as memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_mb: Option<u32>,
}

/// Constraints on the node of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRequest {
    /// The node has all of these.
    pub tags: Vec<Tag>,
    /// Nodes that have more of these come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferred_tags: Vec<Tag>,
    pub node_id: Option<NodeId>,
    pub amounts: Amounts,
    /// Time that it may wait for a node, in seconds; 0: it does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
    /// Executions with a higher priority are placed first.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub priority: i32,
}

fn is_usual(priority: &i32) -> bool {
    *priority == 0
}
