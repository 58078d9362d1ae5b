//! Facts of a host, as the checks read them.

use std::collections::{BTreeMap, BTreeSet};

use aegis_types::{
    gpu::{self, GpuDevice},
    link::NodeLink,
    resources::Amounts,
};

use super::{
    ports::BoundSocket,
    release::{ReadyRecord, ReleaseManifest},
};
use crate::health::StackSnapshot;

impl HostFacts {
    /// Returns the GPUs that containers can use: an empty list without Docker's nvidia runtime.
    pub fn usable_gpus(&self) -> &[GpuDevice] {
        if self.nvidia_runtime { &self.gpus } else { &[] }
    }

    /// Returns what the host has for executions.
    pub fn size(&self) -> Amounts {
        let whole = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let gpus = self.usable_gpus();
        Amounts {
            cpu_millicores: self.cpus.saturating_mul(1000),
            // A node's configuration states at least 1 GB.
            memory_mb: whole(self.memory_total_mb.max(1024)),
            gpus: whole(gpus.len() as u64),
            vram_gb: gpu::memory_gb(gpus.iter()),
        }
    }
}

/// Typed output of the script. Facts that it could not determine are empty or zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub os: String,
    pub arch: String,
    pub uid: u32,
    pub gid: u32,
    pub user: String,
    /// The login lacks the rights itself, and works as root by `sudo -n`.
    pub sudo: bool,
    /// Sudo logs what it reads.
    pub sudo_logs_input: bool,
    /// Reason why sudo does not work, where it is needed.
    pub sudo_error: Option<String>,
    /// The host's clock minus the local clock.
    pub clock_skew_seconds: i64,
    pub cpus: u32,
    pub memory_total_mb: u64,
    pub memory_free_mb: u64,
    pub disk_total_mb: u64,
    pub disk_free_mb: u64,
    /// Docker's data directory, on the file system with that space.
    pub disk_path: String,
    pub has_flock: bool,
    pub docker_cli: bool,
    pub docker_version: Option<String>,
    pub docker_error: String,
    pub docker_socket: Option<String>,
    pub docker_gid: u32,
    pub compose_version: Option<String>,
    pub nvidia_runtime: bool,
    pub gpus: Vec<GpuDevice>,
    pub base_exists: bool,
    pub base_writable: bool,
    /// The base directory's file system is read-only.
    pub base_read_only: bool,
    /// That file system is in memory.
    pub base_volatile: bool,
    pub base_free_mb: u64,
    pub has_tar: bool,
    /// The login may write to the directory of the link's sockets.
    pub link_directory: bool,
    pub docker_selinux: bool,
    pub docker_rootless: bool,
    pub docker_snap: bool,
    /// The nvidia toolkit is installed, though Docker may not be configured for it.
    pub nvidia_toolkit: bool,
    /// TCP ports with a listener, at any address.
    pub listening: BTreeSet<u16>,
    /// Bound sockets, of TCP and UDP.
    pub bound: BTreeSet<BoundSocket>,
    /// The containers of the project, of any origin.
    pub look: StackSnapshot,
    /// Current SHA-256 of the files that the current release names.
    pub files: BTreeMap<String, String>,
    /// Names at the top of the base directory that should be links into the release but are not.
    pub replaced: BTreeSet<String>,
    pub images: BTreeSet<String>,
    pub release: Option<ReleaseManifest>,
    /// Mark of the current release, once it was good.
    pub ready: Option<ReadyRecord>,
    pub releases: Vec<String>,
    /// Link of the deployed node, unless it uses sockets.
    pub link: Option<NodeLink>,
    /// Reason why sshd forwards no sockets; `None` if it forwards them.
    pub sockets_error: Option<String>,
    /// Reason why sshd forwards neither sockets nor ports, so that no link is possible.
    pub forwarding_error: Option<String>,
}
