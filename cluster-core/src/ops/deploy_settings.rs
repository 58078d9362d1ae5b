//! The configuration's `spec.deploy`, with defaults from home directory and environment.

use crate::{
    config::schema::{Deploy, HostKeyChoice},
    deploy::DeploySettings,
    ids::ClusterId,
    ssh::HostKeyPolicy,
};

pub fn of(deploy: &Deploy, cluster_id: &ClusterId) -> DeploySettings {
    let base = match directories::BaseDirs::new() {
        Some(dirs) => DeploySettings::for_home(dirs.home_dir()),
        None => DeploySettings::default(),
    };
    let mut settings = base.with_environment();
    settings.owner = cluster_id.to_string();
    settings.compose_file = deploy.compose_file.clone();
    settings.project_root = deploy.project_root.clone();
    settings.host_key_policy = match deploy.host_key_policy.unwrap_or_default() {
        HostKeyChoice::Strict => HostKeyPolicy::Strict,
        HostKeyChoice::AcceptNew => HostKeyPolicy::AcceptNew,
    };
    if let Some(known_hosts) = &deploy.known_hosts {
        settings.known_hosts = vec![known_hosts.clone()];
    }
    if let Some(key_dirs) = &deploy.key_dirs {
        settings.key_dirs = key_dirs.clone();
    }
    settings.approved_hosts = deploy.approved_hosts.clone().unwrap_or_default();
    settings.allow_loopback = deploy.allow_loopback.unwrap_or(false);
    settings.node_binaries = deploy.node_binaries.clone();
    if let Some(parallel) = deploy.max_parallel {
        settings.max_parallel = usize::try_from(parallel.max(1)).unwrap_or(1);
    }
    if let Some(base_dir) = &deploy.base_dir {
        settings.base_dir = base_dir.to_string_lossy().into_owned();
    }
    if let Some(gb) = deploy.min_free_disk_gb {
        settings.minimum_disk_gb = u64::from(gb);
    }
    settings
}
