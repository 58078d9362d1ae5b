//! Plan of a deployment: what it would change on the host.

use std::fmt;

use aegis_types::{gpu::GpuDevice, ids::NodeId};

use super::{drift::Drift, tunnel::TunnelSource};
use crate::model::state::StepName;

const NAMES_SHOWN: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Create,
    Update,
    Unchanged,
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct FileChange {
    pub name: String,
    pub change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageAction {
    Present,
    /// Built by the controller and sent over the connection.
    Load,
    /// Sent over the connection from the controller's own engine.
    Push,
    Pull,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct ImagePlan {
    pub reference: String,
    pub action: ImageAction,
    /// Digest of layers and configuration, for an image from the controller's own engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct PlannedStep {
    pub name: StepName,
    pub action: String,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Plan {
    /// `user@host:port`
    pub target: String,
    pub node_id: NodeId,
    pub base_dir: String,
    pub first_deployment: bool,
    /// Services to start.
    pub services: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    pub tunnel_token_from: TunnelSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_llm_url: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    pub files: Vec<FileChange>,
    /// The node's own image, built by the controller; `None` if the stack runs no node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_image: Option<String>,
    pub images: Vec<ImagePlan>,
    pub steps: Vec<PlannedStep>,
    /// GPUs that executions on the node may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuDevice>,
    /// Differences between the host and its current release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<Drift>,
    /// Digest of all fields above and of the files' contents.
    pub digest: String,
}

impl Plan {
    /// Returns the node's image, which is built by the controller and not pulled; `None` if the stack runs no node.
    pub fn node_image(&self) -> Option<&str> {
        self.node_image.as_deref()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.first_deployment { "first deployment" } else { "redeployment" };
        writeln!(f, "{kind} of {} to {} ({})", self.node_id, self.target, self.base_dir)?;
        writeln!(f, "services: {}", self.services.join(", "))?;
        if !self.profiles.is_empty() {
            writeln!(f, "profiles: {}", self.profiles.join(", "))?;
        }
        for gpu in &self.gpus {
            writeln!(f, "gpu: {}, {} MiB", gpu.name, gpu.memory_mb)?;
        }
        for step in &self.steps {
            writeln!(f, "  {:<8} {}", step.name.name(), step.action)?;
        }
        for drift in &self.drift {
            writeln!(f, "drift: {drift}")?;
        }
        write!(f, "plan {}", &self.digest[..12.min(self.digest.len())])
    }
}

/// Joins as many names as fit on a line.
pub fn few(names: &[&str]) -> String {
    match names.len().checked_sub(NAMES_SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..NAMES_SHOWN].join(", ")),
    }
}
