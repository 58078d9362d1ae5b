//! Files and records of a release on a host.

use std::collections::BTreeMap;

use aegis_types::ids::{DeploymentId, NodeId};

pub const NOTE_FILE: &str = "release.json";

/// Names of the files whose values must not be logged, one a line. Not among the release's digests.
pub const PRIVATE_FILE: &str = "private.list";

pub const READY_FILE: &str = "ready.json";

pub const COMPOSE_FILE: &str = "docker-compose.yml";

/// The operator's own override.
pub const OPERATOR_FILE: &str = "docker-compose.operator.yml";

pub const OVERRIDE_FILE: &str = "docker-compose.override.yml";

pub const ENV_FILE: &str = ".env";

pub const CONFIG_FILE: &str = "aegis-config.yaml";

/// The node's service in a stack.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeService {
    pub service: String,
    /// Port of the node's `/health` on the host's loopback.
    pub port: u16,
    pub image: String,
}

/// Services and images that a release runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReleaseContents {
    pub services: Vec<String>,
    pub node: Option<NodeService>,
    /// References of all images.
    pub images: Vec<String>,
    /// The embedded cloudflared, whose readiness is probed.
    #[serde(default)]
    pub cloudflared: bool,
}

/// `release.json` of a release directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReleaseManifest {
    pub deployment_id: DeploymentId,
    pub node_id: NodeId,
    /// SHA-256 of each file.
    pub files: BTreeMap<String, String>,
    pub services: Vec<String>,
    /// Owner of the release. Releases of earlier versions do not record it, nor their goal.
    #[serde(default)]
    pub cluster: Option<String>,
    #[serde(default)]
    pub goal: Option<ReleaseContents>,
}

/// `ready.json` of a good release: the node was Active and had run a container.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReadyRecord {
    pub at_ms: i64,
    /// Image ids by reference: a tag may mean another image later.
    pub images: BTreeMap<String, String>,
}

/// Release on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRelease {
    pub note: ReleaseManifest,
    pub ready: Option<ReadyRecord>,
    pub current: bool,
}
