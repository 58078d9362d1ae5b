//! What the configuration says about deployments (`spec.deploy`), resolved.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use aegis_config::registries::Logins;
use aegis_engine::Engine;
use aegis_ssh::{
    HostAddress, HostKeyPolicy, LinkKey, Passphrase,
    client_config::{ClientConfig, ConfigFile, LocalUser},
    known_hosts::matches_any,
};
use aegis_types::{error::Result, secret::SecretName};

use super::direct::DirectOffer;

pub const BASE_DIR_DEFAULT: &str = "/opt/aitheros-edge";
pub const MINIMUM_DISK_GB_DEFAULT: u64 = 10;
pub const HEALTH_TIMEOUT_SECONDS_DEFAULT: u32 = 180;
/// Interval of a node whose configuration names none.
pub const HEARTBEAT_INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
/// 3 GB at 1.2 Mbit/s.
pub const IMAGE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(6 * 3600);
pub const MAX_PARALLEL_DEFAULT: usize = 8;
/// Counts beside whatever the ssh configuration names.
pub(super) const SYSTEM_KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";
/// Where the operator's own edge stack lies in a project.
const PROJECT_COMPOSE_FILE: &str = ".DEPLOYMENT/compose/docker-compose.edge.yml";

#[derive(Debug, Clone)]
pub struct DeploySettings {
    /// A stack instead of the embedded one.
    pub compose_file: Option<PathBuf>,
    /// The one directory whose compose file and `.env` count.
    pub project_root: Option<PathBuf>,
    /// The operator's own, whoever asks; never one that lies in a working directory.
    pub ssh_config: ConfigFile,
    /// Where the ssh configuration names none for a host.
    pub known_hosts: Vec<PathBuf>,
    /// How hosts log in at private registries.
    pub registries: Logins,
    /// Of this machine: its images can be sent to hosts.
    pub engine: Option<Engine>,
    /// Opens encrypted keys.
    pub key_passphrase: Option<KeyPassphrase>,
    pub host_key_policy: HostKeyPolicy,
    /// Where an assistant may name keys.
    pub key_dirs: Vec<PathBuf>,
    /// Patterns (`*`, `?`, `!`) of hosts that need no approval by a person.
    pub approved_hosts: Vec<String>,
    pub allow_loopback: bool,
    /// Static `aegis` executables for other machines, by `uname -m`.
    pub node_binaries: BTreeMap<String, PathBuf>,
    pub max_parallel: usize,
    /// On the host.
    pub base_dir: String,
    pub minimum_disk_gb: u64,
    /// Where a request does not say it.
    pub health_timeout_seconds: u32,
    /// Time limit of one image that a host pulls or is sent.
    pub image_timeout: Duration,
    /// A host pulls its images at every deployment.
    pub always_pull: bool,
    /// Interval at which this controller expects its workers to beat.
    pub heartbeat_interval: Duration,
    /// Of the user the controller runs as: default identities and known_hosts.
    pub home: Option<PathBuf>,
    /// `SSH_AUTH_SOCK` of the controller.
    pub agent_socket: Option<PathBuf>,
    /// `CLOUDFLARE_TUNNEL_TOKEN` of the controller's environment.
    pub environment_tunnel_token: Option<aegis_types::secret::Secret>,
    /// `AITHER_EDGE_IMAGE` of the controller's environment.
    pub environment_image: Option<String>,
    /// The controller's own key for standing connections; the login's way where there is none.
    pub link_key: Option<LinkKey>,
    /// For `link: direct`.
    pub direct: DirectOffer,
    /// Names this controller on hosts (locks, sessions): the cluster's id.
    pub owner: String,
}

/// What opens encrypted SSH keys.
#[derive(Debug, Clone)]
pub enum KeyPassphrase {
    Given(Passphrase),
    /// One of the operator's own secrets, opened for each connection.
    Named(SecretName),
}

impl Default for DeploySettings {
    fn default() -> Self {
        Self {
            compose_file: None,
            project_root: None,
            ssh_config: ConfigFile::None,
            known_hosts: Vec::new(),
            registries: Logins::new(),
            engine: None,
            key_passphrase: None,
            host_key_policy: HostKeyPolicy::Strict,
            key_dirs: Vec::new(),
            approved_hosts: Vec::new(),
            allow_loopback: false,
            node_binaries: BTreeMap::new(),
            max_parallel: MAX_PARALLEL_DEFAULT,
            base_dir: BASE_DIR_DEFAULT.to_owned(),
            minimum_disk_gb: MINIMUM_DISK_GB_DEFAULT,
            health_timeout_seconds: HEALTH_TIMEOUT_SECONDS_DEFAULT,
            image_timeout: IMAGE_TIMEOUT_DEFAULT,
            always_pull: false,
            heartbeat_interval: HEARTBEAT_INTERVAL_DEFAULT,
            home: None,
            agent_socket: None,
            environment_tunnel_token: None,
            environment_image: None,
            link_key: None,
            direct: DirectOffer::default(),
            owner: "aegis".to_owned(),
        }
    }
}

impl DeploySettings {
    /// With everything that lies below a home directory in its usual place.
    pub fn for_home(home: &Path) -> Self {
        let ssh = home.join(".ssh");
        Self {
            ssh_config: ConfigFile::Usual(ssh.join("config")),
            known_hosts: vec![ssh.join("known_hosts"), PathBuf::from(SYSTEM_KNOWN_HOSTS)],
            key_dirs: vec![ssh],
            home: Some(home.to_owned()),
            ..Self::default()
        }
    }

    /// Takes what the controller's own environment says.
    #[must_use]
    pub fn with_environment(mut self) -> Self {
        let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.agent_socket = named("SSH_AUTH_SOCK").map(PathBuf::from);
        self.environment_tunnel_token =
            named("CLOUDFLARE_TUNNEL_TOKEN").map(aegis_types::secret::Secret::new);
        self.environment_image = named("AITHER_EDGE_IMAGE");
        self
    }

    /// The ssh configuration as it is at this moment.
    pub fn client_config(&self) -> Result<ClientConfig> {
        let home = self.home.clone().unwrap_or_else(|| PathBuf::from("/"));
        ClientConfig::read(&self.ssh_config, LocalUser::of(&home))
    }

    pub fn approves(&self, host: &HostAddress) -> bool {
        matches_any(self.approved_hosts.iter().map(String::as_str), host.as_str())
    }

    /// The foreign stack, when the configuration names one or the project has one.
    pub fn foreign_compose_file(&self) -> Option<PathBuf> {
        self.compose_file.clone().or_else(|| {
            let file = self.project_root.as_ref()?.join(PROJECT_COMPOSE_FILE);
            file.is_file().then_some(file)
        })
    }
}
