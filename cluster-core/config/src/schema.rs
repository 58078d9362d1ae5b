//! The configuration file as it is written: `apiVersion: 100monkeys.ai/v1`, `kind: NodeConfig`.
//!
//! These types are the one source of what is a key and what is not: unknown keys are found by walking
//! a file along their JSON schema. Fields that this version reads but does not act on are kept so
//! that a file made for the wider platform loads as it stands.

use std::{collections::BTreeMap, path::PathBuf};

use aegis_types::{
    execution::lifecycle::State,
    gpu::GpuDevice,
    ids::{NodeId, Tag},
    node::Role,
    placement::PlacementStrategy,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const API_VERSION: &str = "100monkeys.ai/v1";
pub const KIND: &str = "NodeConfig";

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeConfig {
    #[serde(rename = "apiVersion", skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    pub spec: Spec,
    /// The same as it was written: what pushed layers are merged below. Null for the defaults.
    #[serde(skip)]
    #[schemars(skip)]
    pub document: Value,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Metadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Spec {
    pub node: Node,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    pub network: Network,
    pub runtime: Runtime,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Value>,
    pub database: Database,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secrets>,
    pub deploy: Deploy,
    pub mcp: Mcp,
    pub observability: Observability,

    // Sections of the wider platform: accepted, kept, not used by this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_providers: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_selection: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smcp: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_contexts: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin_dispatchers: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_auth: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temporal: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cortex: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smcp_gateway: Option<Value>,
}

/// What a node does for agents, apart from how it coordinates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeType {
    /// API and scheduling; never runs containers.
    Orchestrator,
    /// Runs containers; no public API.
    Edge,
    #[default]
    Hybrid,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Node {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<NodeId>,
    #[serde(rename = "type")]
    pub node_type: NodeType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    pub resources: Resources,
}

/// A stated value wins over the detected one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_gb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_count: Option<u32>,
    /// Sum of the GPUs' memory, in GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_gb: Option<u32>,
    /// GPUs and MIG devices one by one, for a node that cannot run `nvidia-smi` itself. Written by deployments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_devices: Vec<GpuDevice>,
}

impl Resources {
    /// Returns how many GPUs are stated: one where only `gpu` is. `None` where nothing is stated.
    pub fn gpus(&self) -> Option<u32> {
        self.gpu_count.or(self.gpu.map(u32::from))
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cluster {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Must be equal to `spec.node.id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    pub controller: Controller,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_keypair_path: Option<PathBuf>,
    /// Whoever connects to the cluster port is first shown that the node holds its key; for a port of
    /// loopback that is the end of an SSH link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prove_key: Option<bool>,
    /// Thumbprints of keys of this node that were revoked. A key of the data directory that is one of them is
    /// replaced at the start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revoked_keys: Vec<String>,
    /// Where the node writes its public key, for the deployment that pins it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_grpc_port: Option<u16>,
    /// Where others reach this node: `https://host:port` turns TLS on, and off loopback nothing else is
    /// taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_threshold_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep_interval_secs: Option<u64>,
    /// After so long without a word from its node, an execution is told as lost, or begun again elsewhere
    /// where its caller allowed that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_after_secs: Option<u64>,
    /// A worker refreshes its token at half of its life, and at the latest so long before its end; default 120.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_refresh_margin_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_unsealed_context: Option<bool>,
    /// A worker signs the bare challenge too, which a controller of the other implementation checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_bare_challenge: Option<bool>,
    /// Which of the nodes that fit comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementStrategy>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Controller {
    /// `https://host:port`, `http://host:port` on loopback, or `unix:///path` inside the SSH link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Enrolment token, for the first contact only: a value, `env:NAME` or `file:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Base64 of the controller's Ed25519 key; written by a deployment, so that the worker knows who
    /// may speak to it from the first call on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// SHA-256 of the controller's CA, in hexadecimal: what an enrolment token says where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_fingerprint: Option<String>,
}

/// The operator's own certificates, all three or none: PEM files, taken up anew when they change.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tls {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_path: Option<PathBuf>,
    /// One or more CAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Network {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Plaintext off loopback, on the cluster port and for HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_insecure_bind: Option<bool>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Runtime {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_isolation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_socket_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_network_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orchestrator_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nfs_server_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nfs_port: Option<u16>,
    /// Images of agents that name a language: `"python:3.12": registry.example/python:3.12`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, String>,
    /// Executions that one caller may have open at a time, 1-10000 (default 5000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_executions_per_caller: Option<u32>,
    pub policy: Policy,
    pub retention: Retention,
    /// Addresses and commands that are told when an execution has ended, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, Hook>,
}

/// Told when an execution has ended: an address gets a POST, a command gets the event on its stdin.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hook {
    /// Address of the POST.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Key that signs the POST: `secret:NAME`, `env:NAME` or `file:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Absolute path of a program, and its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `succeeded`, `failed`, `cancelled` (default: all).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<State>,
    /// false: only executions that name it in `notify` (default true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
}

/// How long a controller keeps what has ended; whichever bound is reached first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Retention {
    /// Default 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Executions; default 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executions: Option<u32>,
    /// Size of all their artifacts together, in MiB; default 20480. The oldest lose their artifacts first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts_mb: Option<u32>,
    /// Of all their events together, in MiB; default 2048. The oldest lose their events first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_mb: Option<u32>,
    /// Size of the events of one execution, in MiB; default 256. Events beyond it are left out, but for the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_events_mb: Option<u32>,
}

/// What this node lets executions do.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Policy {
    /// Image references or prefixes that end in `*`. Without a list, registries named by IP address are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_root_filesystem_writes: Option<bool>,
    /// Default true. Network mode `allow` reaches the internet; the node's own addresses, private networks and
    /// 169.254.0.0/16 are closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_network: Option<bool>,
    /// Networks of the node's surroundings that containers with a network reach all the same, like `10.1.0.0/16`;
    /// default: none. With `0.0.0.0/0` nothing is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_networks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_timeout_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_digests: Option<bool>,
    /// Linux capabilities that a manifest may keep, without `CAP_`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_capabilities: Option<Vec<String>>,
    /// Processes of one container; default 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_processes: Option<u32>,
    /// Output kept of one execution, in MiB; default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_mb: Option<u32>,
    /// Size of one workspace, in MiB; default 10240. It is measured every few seconds, and an execution whose workspace
    /// is larger is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_workspace_mb: Option<u32>,
    /// Share of the engine's disk for images that executions brought, in percent: 1 to 95, default 50. Beyond it the
    /// least recently used ones are removed; an image that the engine had before is never removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_image_disk_percent: Option<u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Database {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Where secrets are kept that are not this node's own.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Secrets {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<SecretsBackend>,
}

/// OpenBao, whose Transit engine signs node security tokens. Values may be `env:NAME` and `file:PATH`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecretsBackend {
    /// `https://openbao.internal:8200`; `http://` on loopback only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_method: Option<SecretsAuth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approle: Option<AppRole>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Of the Transit engine: `transit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// Of the signing key: `aegis-node-tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretsAuth {
    #[serde(rename = "approle", alias = "app_role")]
    AppRole,
    Token,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AppRole {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<String>,
}

/// By which key a deployed node's standing connection is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKeyChoice {
    /// As the deployment logs in.
    #[default]
    Login,
    /// By the controller's own, which a deployment installs and which may only forward.
    Own,
}

/// What happens with a host key that nobody has approved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyChoice {
    #[default]
    Strict,
    AcceptNew,
}

/// With what hosts pull from a private registry.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryLogin {
    pub username: String,
    /// `secret:NAME`, `env:NAME` or `file:PATH`.
    pub password: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Deploy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_root: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_config: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
    /// Opens encrypted SSH keys: `secret:NAME`, `env:NAME` or `file:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_passphrase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_key_policy: Option<HostKeyChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_key: Option<LinkKeyChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_dirs: Option<Vec<PathBuf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_roots: Option<Vec<PathBuf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_hosts: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_loopback: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_binaries: BTreeMap<String, PathBuf>,
    /// By `HOST[:PORT]`, of private registries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registries: BTreeMap<String, RegistryLogin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,
    /// Where a stack lives on its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_dir: Option<PathBuf>,
    /// Free disk that a host must have, in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free_disk_gb: Option<u32>,
    /// How long a stack may take to become healthy, in seconds: 10 to 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_timeout_secs: Option<u32>,
    /// How long one image may take to be pulled by a host or sent to it, in seconds: 60 to 86400.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_timeout_secs: Option<u32>,
    /// When a host pulls an image that it has already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullChoice>,
}

/// When a host pulls an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullChoice {
    /// When the host has no image of this name, or its service has a `pull_policy` that asks for it.
    #[default]
    Missing,
    /// At every deployment, so that a tag such as `latest` is that of today.
    Always,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    #[default]
    Token,
    /// Only on loopback.
    None,
}

/// Which calls of assistants need a confirmation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    Never,
    /// Drains, removals, first deployments to a host, deployments to a host that runs work.
    #[default]
    Destructive,
    /// Whatever changes something.
    Always,
    /// As `destructive`, and only a person's own answer counts.
    HumanOnly,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Mcp {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_hosts: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_origins: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// Where HTTP listens, if not on `spec.network.bind_address`; off loopback with `tls` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<String>,
    /// HTTPS in place of HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<HttpTls>,
    /// Of the audit log.
    pub audit: AuditRetention,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Confirm>,
}

/// PEM files, looked at once a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpTls {
    /// The chain, our own certificate first.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How long a controller keeps who did what; whichever bound is reached first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AuditRetention {
    /// Default 90.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Default 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Observability {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Logging {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}
