//! The configuration's `spec.deploy`, with defaults from home directory and environment.

use std::{collections::BTreeMap, path::Path, time::Duration};

use aegis_config::{
    registries::{Logins, RegistryLogin},
    schema::{self, Deploy, HostKeyChoice, LinkKeyChoice, PullChoice},
};
use aegis_deploy::{DeploySettings, request::grammar, settings::KeyPassphrase};
use aegis_fs::SecretReference;
use aegis_ssh::{HostKeyPolicy, LINK_KEY_FILE, LinkKey, Passphrase, client_config::ConfigFile};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::ClusterId,
    registry::Registry,
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
    settings.registries = registries(&deploy.registries)?;
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
    if let Some(seconds) = deploy.image_timeout_secs {
        settings.image_timeout = image_timeout(seconds)?;
    }
    settings.always_pull = deploy.pull == Some(PullChoice::Always);
    Ok(settings)
}

fn image_timeout(seconds: u32) -> Result<Duration> {
    match seconds {
        60..=86_400 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(Error::new(
            ErrorCode::ConfigInvalid,
            format!("spec.deploy.image_timeout_secs {seconds} is not valid"),
        )
        .remedy("use 60 to 86400")),
    }
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

fn registries(configured: &BTreeMap<String, schema::RegistryLogin>) -> Result<Logins> {
    let login = |(host, login): (&String, &schema::RegistryLogin)| {
        let registry = Registry::parse(host)?;
        let key = |name: &str| format!("spec.deploy.registries.\"{registry}\".{name}");
        let username = login.username.clone();
        if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!("{} is empty, or holds ':' or control characters", key("username")),
            ));
        }
        let password = SecretReference::parse(&key("password"), &login.password)?;
        Ok((registry, RegistryLogin { username, password }))
    };
    configured.iter().map(login).collect()
}

/// Read at the start, so that a mistake shows then; a named secret may be set later.
fn passphrase(reference: &str) -> Result<KeyPassphrase> {
    Ok(match SecretReference::parse("spec.deploy.key_passphrase", reference)? {
        SecretReference::Named(name) => KeyPassphrase::Named(name),
        SecretReference::Place(place) => KeyPassphrase::Given(Passphrase::new(place.read()?.reveal())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_password_is_given_by_reference_only() {
        let of = |host: &str, username: &str, password: &str| {
            let login =
                schema::RegistryLogin { username: username.to_owned(), password: password.to_owned() };
            registries(&BTreeMap::from([(host.to_owned(), login)]))
        };
        let logins = of("GHCR.io", "me", "secret:ghcr").unwrap();
        assert!(logins.contains_key(&Registry::of("ghcr.io/x/y")));
        for (host, username, password) in [
            ("ghcr.io", "me", "hunter2"),
            ("ghcr.io", "", "secret:ghcr"),
            ("ghcr.io", "a:b", "secret:ghcr"),
            ("https://ghcr.io", "me", "secret:ghcr"),
        ] {
            let error = of(host, username, password).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ConfigInvalid);
            assert!(error.message().starts_with("spec.deploy.registries"), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn image_timeout_is_bounded() {
        assert_eq!(image_timeout(60).unwrap(), Duration::from_secs(60));
        for seconds in [0, 59, 86_401] {
            let error = image_timeout(seconds).unwrap_err();
            assert!(error.message().contains("image_timeout_secs"), "{error}");
        }
    }

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
