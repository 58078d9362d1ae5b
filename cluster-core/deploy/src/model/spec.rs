//! Request and specification of a deployment.

use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

use aegis_ssh::SshTarget;
use aegis_types::{
    ids::{NodeId, Tag},
    link::LinkMode,
    principal::Origin,
    secret::Secret,
};

use super::{
    names::{ModelName, ProfileName, ServiceName},
    tunnel::TunnelSource,
};

pub const SSH_USER_DEFAULT: &str = "root";

/// Arguments of `deploy_edge_node`, before validation.
#[derive(Debug, Clone, Default)]
pub struct DeploymentRequest {
    pub host: String,
    pub ssh_port: Option<u32>,
    pub ssh_user: Option<String>,
    pub ssh_key_path: Option<String>,
    pub identity: Option<String>,
    pub tags: Vec<String>,
    /// Comma-separated parts of the embedded stack, or services of the operator's own.
    pub services: Option<String>,
    /// Profiles of the operator's stack.
    pub profiles: Vec<String>,
    /// Whether the machine becomes a node. If false, only its stack is started. Default: true.
    pub join: Option<bool>,
    /// Time for the stack to become healthy. Default: the configuration's.
    pub health_timeout_seconds: Option<u32>,
    /// Models for Ollama: `name[:tag]`.
    pub models: Vec<String>,
    pub tunnel_token: Option<Secret>,
    pub remote_llm_url: Option<String>,
    pub image: Option<String>,
    pub link: Option<String>,
    /// Digest of the plan that a dry run showed, in full or at least its first 12 digits.
    pub plan_digest: Option<String>,
    /// Seconds to wait for another deployment of the host to end, 0 to 600.
    pub lock_wait_seconds: Option<u64>,
    /// Replace a release of another cluster's controller.
    pub take_over: bool,
    pub idempotency_key: Option<String>,
}

/// A part of the embedded stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Node,
    Ollama,
    Cloudflared,
}

impl Service {
    pub const fn name(self) -> &'static str {
        match self {
            Service::Node => "node",
            Service::Ollama => "ollama",
            Service::Cloudflared => "cloudflared",
        }
    }

    const ALL: [Service; 3] = [Service::Node, Service::Ollama, Service::Cloudflared];

    pub fn is_embedded(name: &ServiceName) -> bool {
        Self::ALL.iter().any(|service| service.name() == name.as_str())
    }
}

impl Service {
    pub fn service_name(self) -> ServiceName {
        ServiceName::known(self.name())
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Validated deployment as it is recorded, without any secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeploymentSpec {
    pub target: SshTarget,
    pub node: NodeId,
    pub tags: Vec<Tag>,
    /// Parts of the embedded stack, or named services of the operator's stack. For the latter, an empty set means all
    /// services without a profile.
    pub services: BTreeSet<ServiceName>,
    #[serde(default)]
    pub profiles: BTreeSet<ProfileName>,
    /// Whether a node runs on the host.
    #[serde(default = "yes")]
    pub join: bool,
    #[serde(default = "health_timeout_default")]
    pub health_timeout_seconds: u32,
    #[serde(default)]
    pub models: Vec<ModelName>,
    pub tunnel: TunnelSource,
    pub remote_llm_url: Option<String>,
    /// Replaces the image that a foreign stack would build, or joins the embedded stack as `aithernode`.
    pub image: Option<String>,
    /// Compose file of the operator's stack, used instead of the embedded one.
    pub compose_file: Option<PathBuf>,
    pub base_dir: String,
    pub minimum_disk_gb: u64,
    /// Omitted for the default link, so that requests recorded before still count as the same.
    #[serde(default, skip_serializing_if = "LinkMode::is_usual")]
    pub link: LinkMode,
    pub origin: Origin,
    /// Digest of the only plan that may be carried out.
    #[serde(default)]
    pub plan_digest: Option<String>,
    #[serde(default)]
    pub lock_wait_seconds: u64,
    #[serde(default)]
    pub take_over: bool,
}

impl DeploymentSpec {
    /// Returns whether the embedded stack runs this service; `false` for an operator's stack.
    pub fn runs(&self, service: Service) -> bool {
        self.compose_file.is_none() && self.services.iter().any(|name| name.as_str() == service.name())
    }

    pub fn health_limit(&self) -> Duration {
        Duration::from_secs(self.health_timeout_seconds.into())
    }

    /// Makes the specification of an operation on a deployed node.
    pub fn of_deployed(node: NodeId, deployed: Deployed, lock_wait_seconds: u64, origin: Origin) -> Self {
        Self {
            link: LinkMode::default(),
            target: deployed.target,
            node,
            tags: Vec::new(),
            services: BTreeSet::from([Service::Node.service_name()]),
            profiles: BTreeSet::new(),
            join: deployed.join,
            health_timeout_seconds: HEALTH_TIMEOUT_SECONDS_DEFAULT,
            models: Vec::new(),
            tunnel: TunnelSource::None,
            remote_llm_url: None,
            image: None,
            compose_file: None,
            base_dir: deployed.base_dir,
            minimum_disk_gb: 0,
            origin,
            plan_digest: None,
            lock_wait_seconds,
            take_over: false,
        }
    }

    /// Returns the digest by which two requests count as the same. The secret contributes by its digest only. The plan
    /// digest is excluded: a retry may lack the confirmation that named it.
    pub fn digest(&self, tunnel_token: Option<&Secret>) -> String {
        let asked = Self { plan_digest: None, ..self.clone() };
        let json = serde_json::to_string(&asked).unwrap_or_default();
        let token = tunnel_token.map(Secret::reveal).unwrap_or_default();
        crate::hex_digest(format!("{json}\0{token}").as_bytes())
    }
}

/// Default for records of earlier versions.
const fn yes() -> bool {
    true
}

const fn health_timeout_default() -> u32 {
    HEALTH_TIMEOUT_SECONDS_DEFAULT
}

/// Validated deployment with its secret value. A named secret is opened later, by its name in the specification.
#[derive(Debug, Clone)]
pub struct Validated {
    pub spec: DeploymentSpec,
    pub tunnel_token: Option<Secret>,
}

pub const HEALTH_TIMEOUT_SECONDS_DEFAULT: u32 = 180;

/// Place of a deployed node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    pub target: SshTarget,
    pub base_dir: String,
    /// The node is drained already.
    pub drained: bool,
    /// Whether a node runs there; `false` for a stack alone.
    pub join: bool,
}
