//! The door to hosts: who may be connected to, with which keys, and what is pinned then.

use std::sync::Arc;

use super::{
    now_ms,
    settings::DeploySettings,
    spec::Origin,
    world::{ApprovedHost, Journal},
};
use crate::{
    error::{Error, ErrorCode, Result},
    ssh::{
        ConnectOptions, Connection, Credentials, Dialer, HostAddress, HostKey, HostKeyRules, SshTarget,
        Timeouts,
        host_keys::{Accepted, host_argument},
        known_hosts::KnownHosts,
        probe,
    },
};

/// A cheap handle.
#[derive(Clone)]
pub struct Hosts {
    settings: Arc<DeploySettings>,
    journal: Arc<dyn Journal>,
}

impl std::fmt::Debug for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hosts")
    }
}

impl Hosts {
    pub fn new(settings: Arc<DeploySettings>, journal: Arc<dyn Journal>) -> Self {
        Self { settings, journal }
    }

    pub fn settings(&self) -> &Arc<DeploySettings> {
        &self.settings
    }

    /// A host is approved by its record, or by a pattern of the configuration; what a person asks for
    /// is approved by that.
    pub async fn require_approval(&self, target: &SshTarget, origin: Origin) -> Result<()> {
        let approved = origin == Origin::Person
            || self.settings.approves(&target.host)
            || self.journal.host(&target.host, target.port).await?.is_some();
        if approved {
            return Ok(());
        }
        let argument = host_argument(&target.host, target.port);
        Err(Error::new(
            ErrorCode::HostNotApproved,
            format!("the host {} is not approved by a person yet", target.host),
        )
        .remedy(format!("ask the person to run: aegis host approve {argument}")))
    }

    /// Connects to an approved host, and pins its key where that was not done before.
    pub async fn connect(&self, target: &SshTarget, origin: Origin) -> Result<Connection> {
        self.require_approval(target, origin).await?;
        let recorded = self.journal.host(&target.host, target.port).await?;
        let options = self.options(recorded.as_ref().map(|host| host.key.clone()), origin)?;
        let connection = Connection::open(target, &options).await?;
        let pin = match (recorded.is_some(), connection.host_key_accepted(), origin) {
            (true, _, _) => None,
            (false, _, Origin::Person) => Some("deploy"),
            (false, Accepted::New, Origin::Assistant) => Some("configuration"),
            (false, Accepted::Known | Accepted::Pinned, Origin::Assistant) => None,
        };
        if let Some(approved_by) = pin {
            self.record(&target.host, target.port, connection.host_key().clone(), approved_by).await?;
        }
        Ok(connection)
    }

    /// For the standing link: the rules are read anew each time.
    pub fn dialer(&self, target: SshTarget, origin: Origin) -> Dialer {
        let hosts = self.clone();
        Arc::new(move || {
            let (hosts, target) = (hosts.clone(), target.clone());
            Box::pin(async move { hosts.connect(&target, origin).await })
        })
    }

    /// The key that a host shows now, for a person to compare.
    pub async fn probe(&self, host: &HostAddress, port: u16) -> Result<HostKey> {
        probe::host_key(host, port, &self.options(None, Origin::Person)?).await
    }

    /// Pins the key that the host shows. With a fingerprint, only that key; a host that is pinned to
    /// another one must be forgotten first.
    pub async fn approve(
        &self,
        host: &HostAddress,
        port: u16,
        fingerprint: Option<&str>,
    ) -> Result<ApprovedHost> {
        let key = self.probe(host, port).await?;
        if let Some(expected) = fingerprint.map(str::trim).filter(|expected| *expected != key.fingerprint) {
            return Err(Error::new(
                ErrorCode::HostKeyChanged,
                format!("{host} shows the key {}, not {}", key.fingerprint, crate::ids::shown(expected)),
            )
            .remedy("compare with the host itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"));
        }
        if let Some(known) = self.journal.host(host, port).await?
            && known.key != key
        {
            return Err(Error::new(
                ErrorCode::HostKeyChanged,
                format!("{host} is pinned to {} and now shows {}", known.key.fingerprint, key.fingerprint),
            )
            .remedy(format!(
                "if the change is meant, run: aegis host forget {}",
                host_argument(host, port)
            )));
        }
        self.record(host, port, key, "host approve").await
    }

    pub async fn list(&self) -> Result<Vec<ApprovedHost>> {
        self.journal.hosts().await
    }

    pub async fn forget(&self, host: &HostAddress, port: u16) -> Result<()> {
        match self.journal.forget_host(host, port).await? {
            true => Ok(()),
            false => Err(Error::not_found("approved host", host.as_str())),
        }
    }

    async fn record(
        &self,
        host: &HostAddress,
        port: u16,
        key: HostKey,
        approved_by: &str,
    ) -> Result<ApprovedHost> {
        let approved = ApprovedHost {
            host: host.clone(),
            port,
            key,
            approved_by: approved_by.to_owned(),
            approved_at_ms: now_ms(),
        };
        self.journal.put_host(&approved).await?;
        Ok(approved)
    }

    fn options(&self, pinned: Option<HostKey>, origin: Origin) -> Result<ConnectOptions> {
        let settings = &self.settings;
        let rules = HostKeyRules {
            pinned,
            known: KnownHosts::read(&settings.known_hosts)?,
            policy: settings.host_key_policy,
        };
        let credentials = Credentials {
            key_path: None,
            confined_to: (origin == Origin::Assistant).then(|| settings.key_dirs.clone()),
            agent_socket: settings.agent_socket.clone(),
            identities_dir: settings.home.as_ref().map(|home| home.join(".ssh")),
        };
        Ok(ConnectOptions {
            rules: Arc::new(rules),
            credentials,
            allow_loopback: settings.allow_loopback,
            timeouts: Timeouts::default(),
        })
    }
}
