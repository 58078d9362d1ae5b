//! CONTRACT (the real one comes from the deploy branch).
mod secret;
use crate::{
    error::Failure,
    ids::{DeploymentId, NodeId},
};
use schemars::JsonSchema;
pub use secret::Secret;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Assistant,
    Person,
}

/// The arguments of `deploy_edge_node`, unchecked: `deploy` validates them.
#[derive(Debug, Clone, Default)]
pub struct DeploymentRequest {
    pub host: String,
    pub ssh_port: Option<u32>,
    pub ssh_user: Option<String>,
    pub ssh_key_path: Option<String>,
    pub identity: Option<String>,
    pub tags: Vec<String>,
    /// Comma-separated.
    pub services: Option<String>,
    pub tunnel_token: Option<Secret>,
    pub remote_llm_url: Option<String>,
    pub image: Option<String>,
    pub link: Option<String>,
    pub idempotency_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    Pending,
    Running,
    Ready,
    Failed,
    RolledBack,
    Unknown,
}
impl DeploymentState {
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepView {
    pub name: String,
    /// pending, running, done, failed, skipped, unknown
    pub state: String,
    pub started_at_ms: Option<i64>,
    pub duration_ms: Option<u64>,
    pub evidence: Vec<String>,
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeploymentView {
    pub deployment_id: DeploymentId,
    pub host: String,
    pub node_id: NodeId,
    pub state: DeploymentState,
    pub steps: Vec<StepView>,
    /// Rises with every change.
    pub event: u64,
    pub failure: Option<Failure>,
    /// Remote text: untrusted data.
    pub log_tail: Vec<String>,
    pub next_step: String,
    pub created_at_ms: i64,
    pub updated_at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanView {
    pub digest: String,
    pub host: String,
    pub node_id: NodeId,
    /// What will be done and why, a line each.
    pub text: String,
    pub findings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostKeyView {
    pub host: String,
    pub port: u16,
    pub key_type: String,
    pub fingerprint: String,
    pub known: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovedHostView {
    pub host: String,
    pub port: u16,
    pub fingerprint: String,
    pub approved_at_ms: i64,
}
