//! Settings of deployments, resolved from the configuration (`spec.deploy`).

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

use crate::model::{direct_offer::DirectOffer, spec::HEALTH_TIMEOUT_SECONDS_DEFAULT};

pub const BASE_DIR_DEFAULT: &str = "/opt/aitheros-edge";
pub const MINIMUM_DISK_GB_DEFAULT: u64 = 10;
/// Default heartbeat interval of a node.
pub const HEARTBEAT_INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
/// Time for 3 GB at 1.2 Mbit/s.
pub const IMAGE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(6 * 3600);
pub const MAX_PARALLEL_DEFAULT: usize = 8;
/// Read in addition to the files that the ssh configuration names.
pub(super) const SYSTEM_KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";
/// Location of the operator's own edge stack in a project.
const PROJECT_COMPOSE_FILE: &str = ".DEPLOYMENT/compose/docker-compose.edge.yml";

#[derive(Debug, Clone)]
pub struct DeploySettings {
    /// Compose file to use instead of the embedded stack.
    pub compose_file: Option<PathBuf>,
    /// The only directory whose compose file and `.env` are used.
    pub project_root: Option<PathBuf>,
    /// The operator's ssh configuration, for every caller. Never a file in a working directory.
    pub ssh_config: ConfigFile,
    /// Default for hosts whose ssh configuration names no files.
    pub known_hosts: Vec<PathBuf>,
    /// Logins of hosts at private registries.
    pub registries: Logins,
    /// Engine of this machine, whose images can be sent to hosts.
    pub engine: Option<Engine>,
    /// Passphrase of encrypted keys.
    pub key_passphrase: Option<KeyPassphrase>,
    pub host_key_policy: HostKeyPolicy,
    /// Directories in which an assistant may name keys.
    pub key_dirs: Vec<PathBuf>,
    /// Patterns (`*`, `?`, `!`) of hosts that need no approval by a person.
    pub approved_hosts: Vec<String>,
    pub allow_loopback: bool,
    /// Static `aegis` executables for other machines, by `uname -m`.
    pub node_binaries: BTreeMap<String, PathBuf>,
    pub max_parallel: usize,
    /// Base directory on the host.
    pub base_dir: String,
    pub minimum_disk_gb: u64,
    /// Default for requests without a health timeout.
    pub health_timeout_seconds: u32,
    /// Time limit of one image that a host pulls or is sent.
    pub image_timeout: Duration,
    /// Hosts pull their images at every deployment.
    pub always_pull: bool,
    /// Interval at which this controller expects heartbeats of its workers.
    pub heartbeat_interval: Duration,
    /// Home of the user that the controller runs as, for default identities and known_hosts.
    pub home: Option<PathBuf>,
    /// `SSH_AUTH_SOCK` of the controller.
    pub agent_socket: Option<PathBuf>,
    /// `CLOUDFLARE_TUNNEL_TOKEN` of the controller's environment.
    pub environment_tunnel_token: Option<aegis_types::secret::Secret>,
    /// `AITHER_EDGE_IMAGE` of the controller's environment.
    pub environment_image: Option<String>,
    /// The controller's own key for standing connections; `None` uses the login's keys.
    pub link_key: Option<LinkKey>,
    /// Address and certificates for `link: direct`.
    pub direct: DirectOffer,
    /// Name of this controller on hosts, for locks and sessions: the cluster's id.
    pub owner: String,
}

/// Passphrase for encrypted SSH keys.
#[derive(Debug, Clone)]
pub enum KeyPassphrase {
    Given(Passphrase),
    /// Name of an operator's secret, opened for each connection.
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
    /// Returns defaults with the usual paths below a home directory.
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

    /// Adds settings from the controller's own environment.
    #[must_use]
    pub fn with_environment(mut self) -> Self {
        let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.agent_socket = named("SSH_AUTH_SOCK").map(PathBuf::from);
        self.environment_tunnel_token =
            named("CLOUDFLARE_TUNNEL_TOKEN").map(aegis_types::secret::Secret::new);
        self.environment_image = named("AITHER_EDGE_IMAGE");
        self
    }

    /// Reads the ssh configuration as it is now.
    pub fn client_config(&self) -> Result<ClientConfig> {
        let home = self.home.clone().unwrap_or_else(|| PathBuf::from("/"));
        ClientConfig::read(&self.ssh_config, LocalUser::of(&home))
    }

    pub fn approves(&self, host: &HostAddress) -> bool {
        matches_any(self.approved_hosts.iter().map(String::as_str), host.as_str())
    }

    /// Returns the operator's own stack, if the configuration names one or the project has one.
    pub fn foreign_compose_file(&self) -> Option<PathBuf> {
        self.compose_file.clone().or_else(|| {
            let file = self.project_root.as_ref()?.join(PROJECT_COMPOSE_FILE);
            file.is_file().then_some(file)
        })
    }
}
