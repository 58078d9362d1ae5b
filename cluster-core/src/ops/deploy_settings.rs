//! The configuration's `spec.deploy`, with defaults from home directory and environment.

use std::path::Path;

use crate::{
    config::{
        resolve_secret,
        schema::{Deploy, HostKeyChoice, LinkKeyChoice},
    },
    deploy::{DeploySettings, grammar},
    error::{Error, ErrorCode, Result},
    ids::ClusterId,
    ssh::{HostKeyPolicy, LINK_KEY_FILE, LinkKey, Passphrase, client_config::ConfigFile},
};

/// `data` is where the controller keeps what is its own.
pub fn of(deploy: &Deploy, cluster_id: &ClusterId, data: &Path) -> Result<DeploySettings> {
    let base = match directories::BaseDirs::new() {
        Some(dirs) => DeploySettings::for_home(dirs.home_dir()),
        None => DeploySettings::default(),
    };
    let mut settings = base.with_environment();
    settings.owner = cluster_id.to_string();
    settings.link_key = match deploy.link_key.unwrap_or_default() {
        LinkKeyChoice::Login => None,
        LinkKeyChoice::Own => Some(LinkKey::load_or_create(&data.join(LINK_KEY_FILE))?),
    };
    settings.compose_file = deploy.compose_file.clone();
    settings.project_root = deploy.project_root.clone();
    settings.host_key_policy = match deploy.host_key_policy.unwrap_or_default() {
        HostKeyChoice::Strict => HostKeyPolicy::Strict,
        HostKeyChoice::AcceptNew => HostKeyPolicy::AcceptNew,
    };
    if let Some(known_hosts) = &deploy.known_hosts {
        settings.known_hosts = vec![known_hosts.clone()];
    }
    if let Some(ssh_config) = &deploy.ssh_config {
        settings.ssh_config = ConfigFile::Named(ssh_config.clone());
    }
    settings.key_passphrase = deploy.key_passphrase.as_deref().map(passphrase).transpose()?;
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
    if let Some(seconds) = deploy.health_timeout_secs {
        settings.health_timeout_seconds = health_timeout(seconds)?;
    }
    Ok(settings)
}

fn health_timeout(seconds: u32) -> Result<u32> {
    grammar::health_timeout(seconds).map_err(|_| {
        Error::new(
            ErrorCode::ConfigInvalid,
            format!("spec.deploy.health_timeout_secs {seconds} is not valid"),
        )
        .remedy("use 10 to 3600")
    })
}

/// A reference only: what stands in a configuration file is read by many.
fn passphrase(reference: &str) -> Result<Passphrase> {
    if !reference.starts_with("env:") && !reference.starts_with("file:") {
        return Err(Error::new(
            ErrorCode::ConfigInvalid,
            "spec.deploy.key_passphrase holds a value, and must be a reference",
        )
        .remedy("write env:NAME or file:PATH"));
    }
    Ok(Passphrase::new(resolve_secret(reference)?.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_given_by_reference_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        std::fs::write(&path, "hunter2\n").unwrap();
        assert!(passphrase(&format!("file:{}", path.display())).is_ok());
        for refused in ["hunter2", "", "env:AEGIS_SURELY_NOT_SET", "file:/no/such/file"] {
            let error = passphrase(refused).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ConfigInvalid);
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
