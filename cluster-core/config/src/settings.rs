//! Settings of a node, checked and complete: from the file, the environment and the defaults.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use aegis_identity::{Fingerprint, PublicKey, TOKEN_LIFETIME_SECS, TransitSettings};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{image_reference::check_image, limits::IMAGE_DISK_PERCENT_MAX},
    gpu,
    ids::{NodeId, Tag},
    network,
    node::{Capabilities, Role},
    placement::PlacementStrategy,
    resources::Amounts,
    runtimes,
};

use super::{
    cluster_port::ClusterPort,
    endpoint::Endpoint,
    schema::{Auth, Confirm, Deploy, HttpTls, NodeConfig, NodeType, Policy, ResourcesConfig},
};
use crate::{audit::AuditSettings, executions::ExecutionSettings, hooks::Hooks};

pub const REST_PORT: u16 = 8088;
/// Port of ForwardExecution in the published documents, in addition to the cluster port.
pub const GRPC_PORT: u16 = 50051;
const HEARTBEAT_SECS: u64 = 30;
const TOKEN_REFRESH_MARGIN_SECS: u64 = 120;
/// Missed intervals before a node counts as unhealthy, as published.
const MISSED_HEARTBEATS: u64 = 3;

/// Interval of `spec.cluster` in seconds, with bounds that keep the cluster working.
struct Interval {
    key: &'static str,
    seconds_max: u64,
    why: &'static str,
}

/// Bounded above, since a node with rarer heartbeats could not be told from a lost node.
const HEARTBEAT: Interval = Interval {
    key: "heartbeat_interval_secs",
    seconds_max: 300,
    why: "a node that speaks less often would count as unhealthy",
};
const STALE: Interval = Interval {
    key: "stale_threshold_secs",
    seconds_max: 3_600,
    why: "a node that is gone would look active for longer",
};
const SWEEP: Interval = Interval {
    key: "sweep_interval_secs",
    seconds_max: 300,
    why: "a node that is gone would look active for longer",
};
/// Bounded above, since a token with a larger margin would be due at once.
const REFRESH_MARGIN: Interval = Interval {
    key: "token_refresh_margin_secs",
    seconds_max: TOKEN_LIFETIME_SECS.unsigned_abs() / 2,
    why: "it is half of a token's life, and nodes would attest over and over",
};

impl Interval {
    fn of(&self, given: Option<u64>, default: u64) -> Result<u64> {
        let seconds = given.unwrap_or(default);
        if (1..=self.seconds_max).contains(&seconds) {
            return Ok(seconds);
        }
        let Self { key, seconds_max, why } = self;
        Err(invalid(format!("spec.cluster.{key}: {seconds} is out of range 1 to {seconds_max}: {why}")))
    }
}

#[derive(Debug, Clone)]
pub struct ControllerSettings {
    pub endpoint: Endpoint,
    /// Token as written; `env:` and `file:` references are read when the token is needed.
    pub token: Option<String>,
    pub public_key: Option<PublicKey>,
    pub ca: Option<Fingerprint>,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    /// Id as configured; a generated id is kept in the data directory.
    pub node_id: Option<NodeId>,
    pub node_type: NodeType,
    pub role: Role,
    pub region: Option<String>,
    pub tags: Vec<Tag>,
    pub resources: ResourcesConfig,
    pub controller: Option<ControllerSettings>,
    pub node_keypair_path: Option<PathBuf>,
    /// Callers of the cluster port first receive proof that this node holds its key.
    pub prove_key: bool,
    /// Thumbprints of this node's revoked keys.
    pub revoked_keys: Vec<String>,
    /// File for the public key. By default in the directory of the node's socket, if it listens on one.
    pub public_key_path: Option<PathBuf>,
    pub cluster_port: ClusterPort,
    pub heartbeat_interval: Duration,
    pub stale_threshold: Duration,
    /// Whether the file sets the threshold. If so, it is a minimum for every node, also one with a short interval.
    pub is_stale_threshold_set: bool,
    pub sweep_interval: Duration,
    /// Nodes of the other implementation are admitted, over loopback only.
    pub allow_unsealed_context: bool,
    /// A worker also signs the bare challenge, for a controller of the other implementation.
    pub sign_bare_challenge: bool,
    pub token_refresh_margin: Duration,
    /// Listening address of HTTP.
    pub bind_address: IpAddr,
    pub http_tls: Option<HttpTls>,
    /// Configured port. With `None`, [`REST_PORT`] is used, or a free port on loopback if it is taken.
    pub rest_port: Option<u16>,
    /// The published second port of the cluster protocol. `None` means the default port, if it is free.
    pub grpc_port: Option<u16>,
    pub docker_socket: Option<PathBuf>,
    pub container_network: String,
    /// Images of agents that name a language: by `LANGUAGE:VERSION`, or by `LANGUAGE` for every version.
    pub images: BTreeMap<String, String>,
    pub placement: PlacementStrategy,
    pub policy: Policy,
    pub executions: ExecutionSettings,
    pub hooks: Hooks,
    pub deploy: Deploy,
    pub mcp: McpSettings,
    pub audit: AuditSettings,
    pub log_level: Option<String>,
    /// OpenBao's key for node security tokens. With `None`, the key in the data directory is used.
    pub transit: Option<TransitSettings>,
    /// The file and the environment that these settings came from, for later layers.
    pub local: Arc<Local>,
    /// Sections that are kept but not used.
    pub unused: Vec<&'static str>,
}

/// Sources that override every pushed layer.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// The file, with one spelling of each key. Null without a file.
    pub document: serde_json::Value,
    pub overrides: Overrides,
}

#[derive(Debug, Clone)]
pub struct McpSettings {
    pub http: bool,
    pub allowed_hosts: Vec<String>,
    pub allowed_origins: Vec<String>,
    pub auth: Auth,
    pub read_only: bool,
    pub tools: Option<Vec<String>>,
    pub confirm: Confirm,
}

/// Overrides from the environment, read once at start.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    pub bind_address: Option<String>,
    pub port: Option<String>,
    pub log_level: Option<String>,
}

impl Overrides {
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            data_dir: text("AEGIS_DATA_DIR").map(PathBuf::from),
            bind_address: text("AEGIS_HOST"),
            port: text("AEGIS_PORT"),
            log_level: text("AEGIS_LOG_LEVEL"),
        }
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ConfigInvalid, message)
}

impl Settings {
    pub fn of(config: &NodeConfig, overrides: &Overrides) -> Result<Self> {
        let spec = &config.spec;
        let cluster = spec.cluster.clone().unwrap_or_default();
        let node_id = match (&spec.node.id, &cluster.node_id) {
            (Some(id), Some(other)) if id != other => {
                return Err(invalid(format!(
                    "spec.cluster.node_id is {other} and spec.node.id is {id}: they must be equal"
                )));
            }
            (id, other) => id.clone().or_else(|| other.clone()),
        };
        let enabled = cluster.enabled.unwrap_or(spec.cluster.is_some());
        let role = if enabled { cluster.role.unwrap_or(Role::Hybrid) } else { Role::Hybrid };
        check_stated(&spec.node)?;
        check_policy(&spec.runtime.policy)?;
        let controller = controller(&cluster.controller)?;
        if role == Role::Worker && controller.is_none() {
            return Err(invalid(
                "spec.cluster.role is worker and spec.cluster.controller.endpoint is missing",
            )
            .remedy("name the controller, for example http://127.0.0.1:50056"));
        }
        let named = |tls: &super::schema::Tls| {
            tls.cert_path.is_some() || tls.key_path.is_some() || tls.ca_cert.is_some()
        };
        if spec.network.tls.as_ref().is_some_and(named) {
            return Err(Error::new(
                ErrorCode::NotOffered,
                "spec.network.tls is not used: each listener has its own",
            )
            .remedy("name certificates in spec.mcp.tls for HTTP, in spec.cluster.tls for the cluster port"));
        }
        if let Some(url) = &spec.database.url
            && !url.starts_with("sqlite:")
        {
            return Err(Error::new(
                ErrorCode::NotOffered,
                "spec.database.url: only the embedded SQLite is offered; postgres:// comes with a later version",
            )
            .remedy("remove the key: the database is kept in the data directory"));
        }
        let heartbeat = HEARTBEAT.of(cluster.heartbeat_interval_secs, HEARTBEAT_SECS)?;
        let stale = STALE.of(cluster.stale_threshold_secs, MISSED_HEARTBEATS * heartbeat)?;
        let sweep = SWEEP.of(cluster.sweep_interval_secs, (heartbeat / 3).max(1))?;
        let margin = REFRESH_MARGIN.of(cluster.token_refresh_margin_secs, TOKEN_REFRESH_MARGIN_SECS)?;
        // Only a worker dials.
        let dialled = controller.as_ref().filter(|_| role == Role::Worker);
        let endpoint = dialled.map(|controller| &controller.endpoint);
        let cluster_port = ClusterPort::of(&cluster, &spec.network, endpoint)?;
        let bind_address = http_address(spec, overrides, cluster_port.advertise.is_none())?;
        let rest_port = match &overrides.port {
            Some(text) => {
                Some(text.parse().map_err(|_| invalid(format!("AEGIS_PORT \"{text}\" is not a port")))?)
            }
            None => spec.network.port,
        };
        let mcp = &spec.mcp;
        let unused = unused(spec);
        Ok(Self {
            data_dir: data_dir(overrides)?,
            node_id,
            node_type: spec.node.node_type,
            role,
            region: spec.node.region.clone(),
            tags: spec.node.tags.clone(),
            resources: spec.node.resources.clone(),
            cluster_port,
            controller,
            node_keypair_path: cluster.node_keypair_path.clone(),
            public_key_path: cluster.public_key_path.clone(),
            prove_key: cluster.prove_key.unwrap_or(false),
            revoked_keys: cluster.revoked_keys.clone(),
            heartbeat_interval: Duration::from_secs(heartbeat),
            stale_threshold: Duration::from_secs(stale),
            is_stale_threshold_set: cluster.stale_threshold_secs.is_some(),
            sweep_interval: Duration::from_secs(sweep),
            allow_unsealed_context: cluster.allow_unsealed_context.unwrap_or(false),
            sign_bare_challenge: cluster.sign_bare_challenge.unwrap_or(false),
            token_refresh_margin: Duration::from_secs(margin),
            bind_address,
            http_tls: mcp.tls.clone(),
            rest_port,
            grpc_port: spec.network.grpc_port,
            docker_socket: spec.runtime.docker_socket_path.clone(),
            container_network: spec
                .runtime
                .container_network_mode
                .clone()
                .unwrap_or_else(|| "aegis-net".to_owned()),
            images: images(&spec.runtime.images)?,
            placement: cluster.placement.unwrap_or_default(),
            policy: spec.runtime.policy.clone(),
            executions: ExecutionSettings::of(cluster.lost_after_secs, &spec.runtime)?,
            hooks: Hooks::of(&spec.runtime.hooks)?,
            deploy: spec.deploy.clone(),
            mcp: McpSettings {
                http: mcp.http.unwrap_or(true),
                allowed_hosts: mcp.allowed_hosts.clone().unwrap_or_default(),
                allowed_origins: mcp.allowed_origins.clone().unwrap_or_default(),
                auth: mcp.auth.unwrap_or_default(),
                read_only: mcp.read_only.unwrap_or(false),
                tools: mcp.tools.clone(),
                confirm: mcp.confirm.unwrap_or_default(),
            },
            audit: AuditSettings::of(&mcp.audit)?,
            log_level: overrides
                .log_level
                .clone()
                .or_else(|| spec.observability.logging.as_ref().and_then(|logging| logging.level.clone())),
            transit: super::secrets::transit(spec.secrets.as_ref())?,
            local: Arc::new(Local { document: config.document.clone(), overrides: overrides.clone() }),
            unused,
        })
    }
}

fn controller(given: &super::schema::Controller) -> Result<Option<ControllerSettings>> {
    let Some(endpoint) = &given.endpoint else { return Ok(None) };
    let endpoint = Endpoint::parse("spec.cluster.controller.endpoint", endpoint)?;
    let public_key = given
        .public_key
        .as_deref()
        .map(PublicKey::from_base64)
        .transpose()
        .map_err(|e| invalid(format!("spec.cluster.controller.public_key: {}", e.message())))?;
    let ca = match given.ca_fingerprint.as_deref() {
        None => None,
        Some(text) => Some(Fingerprint::parse(text).ok_or_else(|| {
            invalid("spec.cluster.controller.ca_fingerprint is not 64 lower-case hexadecimal digits")
        })?),
    };
    Ok(Some(ControllerSettings { endpoint, token: given.token.clone(), public_key, ca }))
}

/// Checks the node's own statements. Its controller rejects larger values, so a layer with such values would keep nodes
/// out of the cluster.
fn check_stated(node: &super::schema::Node) -> Result<()> {
    let resources = &node.resources;
    let max = Amounts::MAX;
    for (key, stated, max) in [
        ("cpu_cores", resources.cpu_cores, max.cpu_millicores / 1000),
        ("memory_gb", resources.memory_gb, max.memory_mb / 1024),
        ("disk_gb", resources.disk_gb, Capabilities::DISK_GB_MAX),
        ("gpu_count", resources.gpu_count, max.gpus),
        ("vram_gb", resources.vram_gb, max.vram_gb),
    ] {
        if let Some(stated) = stated.filter(|stated| *stated > max) {
            return Err(invalid(format!("spec.node.resources.{key}: {stated} is above {max}")));
        }
    }
    gpu::check_devices(&resources.gpu_devices)
        .map_err(|error| invalid(format!("spec.node.resources.gpu_devices: {}", error.message())))?;
    if node.tags.len() > Capabilities::TAGS_MAX {
        let (count, max) = (node.tags.len(), Capabilities::TAGS_MAX);
        return Err(invalid(format!("spec.node.tags: {count} tags are given, and at most {max} are kept")));
    }
    Ok(())
}

/// Checks the bounds of a policy that the node itself relies on.
fn check_policy(policy: &Policy) -> Result<()> {
    network::parse_open(policy.allowed_networks.as_deref().unwrap_or_default())
        .map_err(|error| invalid(format!("spec.runtime.policy.allowed_networks: {}", error.message())))?;
    match policy.max_image_disk_percent {
        Some(percent) if !(1..=IMAGE_DISK_PERCENT_MAX).contains(&percent) => Err(invalid(format!(
            "spec.runtime.policy.max_image_disk_percent: {percent} is out of range 1 to {IMAGE_DISK_PERCENT_MAX}"
        ))),
        _ => Ok(()),
    }
}

fn images(given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    for (runtime, image) in given {
        let at = |e: Error| {
            let key = aegis_types::text::shown(runtime);
            let error = invalid(format!("spec.runtime.images.\"{key}\": {}", e.message()));
            error.remedy(e.remedy_text().unwrap_or("write \"python:3.12\": registry.example/python:3.12"))
        };
        runtimes::check_key(runtime).map_err(at)?;
        check_image(image).map_err(at)?;
    }
    Ok(given.clone())
}

/// Returns the address of HTTP. Off loopback it uses TLS, unless the file allows plaintext explicitly. With a direct
/// link, `spec.network.bind_address` applies to the cluster port only.
fn http_address(spec: &super::schema::Spec, overrides: &Overrides, shares_address: bool) -> Result<IpAddr> {
    let given = [
        ("AEGIS_HOST", overrides.bind_address.as_ref()),
        ("spec.mcp.bind_address", spec.mcp.bind_address.as_ref()),
        ("spec.network.bind_address", spec.network.bind_address.as_ref().filter(|_| shares_address)),
    ];
    let given = given.into_iter().find_map(|(key, text)| Some((key, text?)));
    let Some((key, text)) = given else { return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) };
    let address = if text == "localhost" { "127.0.0.1" } else { text.as_str() };
    let address: IpAddr = address
        .parse()
        .map_err(|_| invalid(format!("{key} \"{}\" is not an IP address", aegis_types::text::shown(text))))?;
    let admitted = spec.mcp.tls.is_some() || spec.network.allow_insecure_bind == Some(true);
    if !address.is_loopback() && !admitted {
        return Err(invalid(format!("{key} {address}: HTTP is served without TLS on loopback only")).remedy(
            "name a certificate in spec.mcp.tls.{cert, key}; or, where everybody on the network may read along \
             and take tokens, set spec.network.allow_insecure_bind: true",
        ));
    }
    Ok(address)
}

fn data_dir(overrides: &Overrides) -> Result<PathBuf> {
    if let Some(path) = &overrides.data_dir {
        return std::path::absolute(path).map_err(|e| invalid("AEGIS_DATA_DIR is not a path").source(e));
    }
    directories::BaseDirs::new()
        .map(|dirs| dirs.home_dir().join(".aegis"))
        .ok_or_else(|| invalid("there is no home directory").remedy("set AEGIS_DATA_DIR"))
}

fn unused(spec: &super::schema::Spec) -> Vec<&'static str> {
    [
        ("storage", spec.storage.is_some()),
        ("llm_providers", spec.llm_providers.is_some()),
        ("llm_selection", spec.llm_selection.is_some()),
        ("mcp_servers", spec.mcp_servers.is_some()),
        ("smcp", spec.smcp.is_some()),
        ("seal", spec.seal.is_some()),
        ("security_contexts", spec.security_contexts.is_some()),
        ("builtin_dispatchers", spec.builtin_dispatchers.is_some()),
        ("iam", spec.iam.is_some()),
        ("grpc_auth", spec.grpc_auth.is_some()),
        ("temporal", spec.temporal.is_some()),
        ("cortex", spec.cortex.is_some()),
        ("smcp_gateway", spec.smcp_gateway.is_some()),
        ("observability.metrics", spec.observability.metrics.is_some()),
        ("observability.tracing", spec.observability.tracing.is_some()),
        ("runtime.default_isolation", spec.runtime.default_isolation.is_some()),
        ("runtime.orchestrator_url", spec.runtime.orchestrator_url.is_some()),
        ("runtime.nfs_server_host", spec.runtime.nfs_server_host.is_some()),
        ("runtime.nfs_port", spec.runtime.nfs_port.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect()
}
