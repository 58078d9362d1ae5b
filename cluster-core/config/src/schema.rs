//! Schema of the configuration file: `apiVersion: 100monkeys.ai/v1`, `kind: NodeConfig`.
//!
//! These types define all known keys: unknown keys are found by walking a file along their JSON schema. Fields that
//! this version reads but does not use are kept, so that a file for the wider platform loads unchanged.

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
    /// The document as written, onto which pushed layers are merged. Null for the defaults.
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

    // Sections of the wider platform: accepted and kept, but not used by this node.
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

/// Role of a node for agents, separate from its coordination.
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
    pub resources: ResourcesConfig,
}

/// Resources as stated; a stated value overrides the detected value.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ResourcesConfig {
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

impl ResourcesConfig {
    /// Returns the number of stated GPUs: 1 if only `gpu` is stated. `None` if nothing is stated.
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
    /// Whether callers of the cluster port first receive proof that the node holds its key. Used for loopback ports at
    /// the end of an SSH link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prove_key: Option<bool>,
    /// Thumbprints of this node's revoked keys. A revoked key in the data directory is replaced at start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revoked_keys: Vec<String>,
    /// File to which the node writes its public key, for the deployment that pins it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_grpc_port: Option<u16>,
    /// Address for other nodes. `https://host:port` enables TLS, and off loopback no other scheme is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_threshold_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep_interval_secs: Option<u64>,
    /// Seconds without contact to the node after which an execution is reported as lost. It is restarted on another
    /// node if its caller allowed that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_after_secs: Option<u64>,
    /// A worker refreshes its token at half of its life, and at the latest this many seconds before its end; default
    /// 120.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_refresh_margin_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_unsealed_context: Option<bool>,
    /// A worker also signs the bare challenge, which a controller of the other implementation checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_bare_challenge: Option<bool>,
    /// Order of the nodes that fit.
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
    /// Base64 of the controller's Ed25519 key. Written by a deployment, so that the worker can authenticate its
    /// controller from the first call on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// SHA-256 of the controller's CA, in hexadecimal. Replaces the fingerprint of an enrolment token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_fingerprint: Option<String>,
}

/// The operator's own certificates: either all three PEM files or no file. Changed files are reloaded.
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
    /// Hooks by name: addresses and commands that are notified when an execution has ended.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, Hook>,
}

/// Hook for ended executions: an address gets a POST, a command gets the event on its stdin.
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

/// Retention of ended executions. The bound that is reached first applies.
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
    /// Size of all their events together, in MiB; default 2048. The oldest lose their events first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_mb: Option<u32>,
    /// Size of the events of one execution, in MiB; default 256. Events beyond it are dropped, except the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_events_mb: Option<u32>,
}

/// Policy of this node for executions.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Policy {
    /// Image references or prefixes that end in `*`. Without a list, registries named by IP address are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_root_filesystem_writes: Option<bool>,
    /// Default true. Network mode `allow` reaches the internet. The node's own addresses, private networks and
    /// 169.254.0.0/16 are closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_network: Option<bool>,
    /// Local networks that containers with a network may still reach, like `10.1.0.0/16`; default: empty. `0.0.0.0/0`
    /// opens everything.
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
    /// Linux capabilities that a manifest may keep, without `CAP_`; default: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_capabilities: Option<Vec<String>>,
    /// Maximum number of processes of one container; default 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_processes: Option<u32>,
    /// Maximum output kept of one execution, in MiB; default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_mb: Option<u32>,
    /// Size of one workspace, in MiB; default 10240. It is measured every few seconds, and an execution with a larger
    /// workspace is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_workspace_mb: Option<u32>,
    /// Share of the engine's disk for images pulled for executions, in percent: 1 to 95, default 50. Above it, the
    /// least recently used ones are removed. Images that the engine had before are never removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_image_disk_percent: Option<u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Database {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Location of secrets that are not this node's own.
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
    /// Mount path of the Transit engine: `transit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// Name of the signing key: `aegis-node-tokens`.
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

/// Key for the standing connection of a deployed node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKeyChoice {
    /// Use the keys of the deployment's login.
    #[default]
    Login,
    /// Use the controller's own key, which a deployment installs and which may only forward.
    Own,
}

/// Treatment of a host key that is not approved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyChoice {
    #[default]
    Strict,
    AcceptNew,
}

/// Login of hosts at a private registry.
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
    /// Passphrase of encrypted SSH keys: `secret:NAME`, `env:NAME` or `file:PATH`.
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
    /// Logins of private registries, by `HOST[:PORT]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registries: BTreeMap<String, RegistryLogin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,
    /// Directory of a stack on its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_dir: Option<PathBuf>,
    /// Free disk that a host must have, in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free_disk_gb: Option<u32>,
    /// Time for a stack to become healthy, in seconds: 10 to 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_timeout_secs: Option<u32>,
    /// Time limit to pull one image on a host or send it there, in seconds: 60 to 86400.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_timeout_secs: Option<u32>,
    /// When a host pulls an image that it already has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullChoice>,
}

/// When a host pulls an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullChoice {
    /// If the host has no image of this name, or its service has a `pull_policy` that requires it.
    #[default]
    Missing,
    /// At every deployment, so that a tag such as `latest` is current.
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

/// Calls of assistants that need a confirmation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    Never,
    /// Drains, removals, first deployments to a host, deployments to a host that runs work.
    #[default]
    Destructive,
    /// Every call that changes something.
    Always,
    /// The same calls as `destructive`, but only a person's own answer counts.
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
    /// Listening address of HTTP, if not `spec.network.bind_address`; off loopback with `tls` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<String>,
    /// HTTPS instead of HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<HttpTls>,
    /// Retention of the audit log.
    pub audit: AuditRetention,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Confirm>,
}

/// PEM files, checked for changes once a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpTls {
    /// Certificate chain, starting with the server's own certificate.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Retention of the audit log. The bound that is reached first applies.
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
