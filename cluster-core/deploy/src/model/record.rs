//! Stored records of deployments and hosts.

use aegis_ssh::{HostAddress, HostKey};
use aegis_types::ids::DeploymentId;

use super::{operation::Action, spec::DeploymentSpec, view::DeploymentView};

/// Deployment as it is stored: without secrets, and sufficient to resume it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct DeploymentRecord {
    pub view: DeploymentView,
    #[serde(default)]
    pub action: Action,
    pub spec: DeploymentSpec,
    /// Previous content of the host; `None` until the host was examined. Changes are allowed once it is set.
    #[serde(default)]
    pub before: Option<PreviousRelease>,
    /// The node was a member before, and stays one after a failure.
    #[serde(default)]
    pub was_member: bool,
    /// Images that the host lacked and that were fetched for this deployment.
    #[serde(default)]
    pub fetched: Vec<String>,
    pub idempotency_key: Option<String>,
    pub request_digest: String,
}

/// Content that a deployment found on its host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviousRelease {
    Nothing,
    /// Containers of the project, without a release that accounts for them.
    Stack,
    Release(DeploymentId),
}

/// Approved host with its pinned key. The approval comes from a person or from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct ApprovedHost {
    pub host: HostAddress,
    pub port: u16,
    pub key: HostKey,
    /// `host approve`, `deploy`, `configuration`, `jump host`.
    pub approved_by: String,
    pub approved_at_ms: i64,
}

impl ApprovedHost {
    /// Returns whether the host may be deployed to, or only used as a jump host.
    pub fn is_target(&self) -> bool {
        self.approved_by != JUMP_HOST
    }
}

/// Approval of hosts that were pinned on the way to another host.
pub const JUMP_HOST: &str = "jump host";

#[derive(Debug, Clone, Default)]
pub struct DeploymentFilter {
    pub state: Option<crate::model::state::DeploymentState>,
    pub host: Option<String>,
    pub limit: usize,
    pub offset: usize,
}
