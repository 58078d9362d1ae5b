//! A node: its capabilities, its desired and its observed state, and its stored record.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gpu::GpuDevice;
use crate::{
    error::{ErrorCode, Failure},
    ids::{ExecutionId, GpuUuid, NodeId, Tag, UserName},
    link::NodeLink,
    resources::Amounts,
};

/// How a node coordinates with the others (`spec.cluster.role`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Controller,
    Worker,
    Hybrid,
}

impl Role {
    pub const fn is_controller(self) -> bool {
        matches!(self, Role::Controller | Role::Hybrid)
    }

    pub const fn runs_executions(self) -> bool {
        matches!(self, Role::Worker | Role::Hybrid)
    }
}

/// State that an operator wants of a node. Registering again never changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Schedulable,
    Draining,
    /// Drained, then removed.
    Removing,
    Removed,
}

/// State that follows from the heartbeats of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Observed {
    /// Admitted, without a heartbeat so far.
    Expected,
    Active,
    /// Missed its heartbeats.
    Unhealthy,
    /// Deregistered by itself.
    Offline,
}

/// Both at once, as a person reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerStatus {
    Active,
    Draining,
    Expected,
    Unhealthy,
    Offline,
    Removed,
}

impl PeerStatus {
    pub const ALL: [Self; 6] =
        [Self::Active, Self::Draining, Self::Expected, Self::Unhealthy, Self::Offline, Self::Removed];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Expected => "expected",
            Self::Unhealthy => "unhealthy",
            Self::Offline => "offline",
            Self::Removed => "removed",
        }
    }

    pub const fn of(desired: Desired, observed: Observed) -> Self {
        match (desired, observed) {
            (Desired::Removed, _) => Self::Removed,
            (_, Observed::Unhealthy) => Self::Unhealthy,
            (_, Observed::Offline) => Self::Offline,
            (_, Observed::Expected) => Self::Expected,
            (Desired::Draining | Desired::Removing, Observed::Active) => Self::Draining,
            (Desired::Schedulable, Observed::Active) => Self::Active,
        }
    }
}

impl Capabilities {
    pub const DISK_GB_MAX: u32 = 100_000_000;
    pub const TAGS_MAX: usize = 64;
}

/// Resources, tags and software that a node reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub total: Amounts,
    /// GPUs one by one. Empty where the node knows their number alone: they count as alike then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuDevice>,
    pub disk_gb: u32,
    pub memory_mb_free: u32,
    pub runtimes: Vec<String>,
    pub tags: Vec<Tag>,
    pub models: Vec<String>,
    /// "docker 26.1.5"; empty when the engine does not answer.
    pub engine: String,
    pub os: String,
    pub arch: String,
}

/// The host that a node was deployed to, and how it is reached over SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHost {
    pub host: String,
    pub port: u16,
    pub user: UserName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_path: Option<PathBuf>,
    /// Directory of the stack on the host.
    pub base_dir: String,
    #[serde(default, skip_serializing_if = "NodeLink::is_usual")]
    pub link: NodeLink,
    /// A person deployed it: their own keys may be used for its connection.
    pub by_person: bool,
    /// Whether the link's own key may be in the login's `authorized_keys`. Records of earlier versions do
    /// not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_key: Option<bool>,
}

/// How the controller and a node reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// The controller itself.
    Local,
    /// Inside the SSH connection that deployed it.
    Ssh,
    /// The node dials the controller.
    Direct,
}

/// Treatment of running work when the deadline of a drain passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDeadline {
    /// Running work goes on, and the drain ends when it has ended.
    #[default]
    Leave,
    /// Running work is cancelled.
    Cancel,
}

/// A drain as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainView {
    pub node_id: NodeId,
    /// `draining` while work runs, `drained` when no work is left, `schedulable` when not draining,
    /// `removed` when the node is no member any more.
    pub state: DrainState,
    /// Executions that still hold the node.
    pub blockers: Vec<ExecutionId>,
    /// Seconds until the deadline; absent without a deadline and once it has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_in_seconds: Option<u64>,
    pub on_deadline: OnDeadline,
    /// Whether the node itself has acknowledged.
    pub acknowledged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    Schedulable,
    Draining,
    Drained,
    Removed,
}

impl PeerView {
    /// The fields whose text is the node's own word. Their length and grammar are bounded, and nothing else
    /// is known of them: they are material for a reader, and never instructions.
    pub const NODE_SUPPLIED: [&str; 6] =
        ["tags", "gpu_devices", "version", "engine", "models", "config_error"];
}

/// A GPU or a MIG device of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuView {
    pub uuid: GpuUuid,
    pub name: String,
    /// 0 where its driver does not tell.
    pub memory_mb: u32,
    /// An execution has it.
    pub in_use: bool,
}

/// A node as `list_peers` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerView {
    pub node_id: NodeId,
    pub role: Role,
    pub status: PeerStatus,
    pub desired: Desired,
    pub tags: Vec<Tag>,
    /// Resources for executions in all, and those left after reservations.
    pub capacity: Amounts,
    pub free: Amounts,
    /// GPUs one by one, where the node knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_devices: Vec<GpuView>,
    /// Executions that run there now.
    pub running: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_age_ms: Option<u64>,
    pub link: LinkKind,
    /// False while the connection to the node is down.
    pub link_up: bool,
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// The host it was deployed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// False for a node of the other implementation, admitted without sealed contexts.
    pub sealed: bool,
    /// Version of the pushed configuration that it runs; absent until it has reported one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_version: Option<String>,
    /// Why it does not run the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
    /// Why the link is down or the node cannot be used, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Failure>,
}

impl PeerView {
    /// Returns the problem that holds up what runs on the node: its connection, its engine, or its silence. Other
    /// problems concern work that is still to be placed.
    pub fn holds_up(&self) -> Option<&str> {
        let problem = self.problem.as_ref()?;
        (!self.link_up || problem.code == ErrorCode::Unavailable).then_some(problem.message.as_str())
    }
}

/// A node as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    pub node_id: NodeId,
    pub role: Role,
    /// Ed25519, pinned at admission.
    pub public_key: Option<[u8; 32]>,
    pub desired: Desired,
    pub observed: Observed,
    pub capabilities: Capabilities,
    pub address: String,
    pub link: LinkKind,
    /// Host of a deployed node.
    pub site: Option<NodeHost>,
    pub version: String,
    pub sealed: bool,
    pub registered_at_ms: Option<i64>,
    pub last_heartbeat_ms: Option<i64>,
    pub drain_deadline_ms: Option<i64>,
    pub on_deadline: OnDeadline,
    /// Tags that the node may claim. `None` allows any.
    pub bound_tags: Option<Vec<Tag>>,
    /// Resources that the node may claim. `None` allows any.
    pub bound_size: Option<Amounts>,
}

impl NodeRecord {
    /// A node that is admitted and not heard of yet.
    pub fn expected(node_id: NodeId, role: Role, public_key: [u8; 32], link: LinkKind) -> Self {
        Self {
            node_id,
            role,
            public_key: Some(public_key),
            desired: Desired::Schedulable,
            observed: Observed::Expected,
            capabilities: Capabilities::default(),
            address: String::new(),
            link,
            site: None,
            version: String::new(),
            sealed: true,
            registered_at_ms: None,
            last_heartbeat_ms: None,
            drain_deadline_ms: None,
            on_deadline: OnDeadline::default(),
            bound_tags: None,
            bound_size: None,
        }
    }
}
