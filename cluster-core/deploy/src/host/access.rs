//! Opens SSH connections to approved hosts and pins their keys.

use std::{path::PathBuf, sync::Arc};

use aegis_ssh::{
    ConnectOptions, Connection, Credentials, Dialer, Endpoint, HostAddress, HostKey, HostKeyPolicy,
    HostKeyRules, Leg, LinkKey, Passphrase, SshTarget, Timeouts,
    client_config::{Asked, Hop, HostSettings, IdentityAgent, StrictHostKeys},
    host_keys::{Accepted, host_argument},
    jump_hosts::{JumpHosts, Purpose, Way},
    known_hosts::KnownHosts,
    probe,
    target::SSH_PORT_DEFAULT,
};
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    ids::UserName,
    principal::Origin,
};

use super::agent_sockets::AgentSockets;
use crate::{
    model::{
        record::{ApprovedHost, JUMP_HOST},
        spec::SSH_USER_DEFAULT,
    },
    ports::Journal,
    settings::{DeploySettings, KeyPassphrase, SYSTEM_KNOWN_HOSTS},
};

/// A cheap handle.
#[derive(Clone)]
pub struct HostAccess {
    settings: Arc<DeploySettings>,
    journal: Arc<dyn Journal>,
    agents: AgentSockets,
    jump_hosts: JumpHosts,
}

impl std::fmt::Debug for HostAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hosts")
    }
}

impl HostAccess {
    pub fn new(settings: Arc<DeploySettings>, journal: Arc<dyn Journal>) -> Self {
        let agents = AgentSockets::new(settings.agent_socket.clone());
        Self { settings, journal, agents, jump_hosts: JumpHosts::default() }
    }

    /// Adds the socket of an ssh agent of this machine's user, for later connections.
    pub fn offer_agent(&self, socket: PathBuf) {
        self.agents.offer(socket);
    }

    pub fn settings(&self) -> &Arc<DeploySettings> {
        &self.settings
    }

    /// Checks that a host is approved: by its record, or by a pattern of the configuration. A request by a person is
    /// itself an approval.
    pub async fn require_approval(&self, target: &SshTarget, origin: Origin) -> Result<()> {
        let approved = origin == Origin::Person
            || self.settings.approves(&target.host)
            || self.approves_address(target)?
            || self.journal.host(&target.host, target.port).await?.is_some_and(|host| host.is_target());
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

    /// Returns whether a pattern matches the address behind an alias. This applies only to hosts that are reached
    /// directly: behind a jump host the same address may be another machine.
    fn approves_address(&self, target: &SshTarget) -> Result<bool> {
        let asked = Asked {
            host: &target.host,
            user: Some(&target.user),
            port: Some(target.port),
            user_default: SSH_USER_DEFAULT,
        };
        let route = self.settings.client_config()?.route(asked, self.settings.allow_loopback)?;
        Ok(matches!(route.as_slice(), [only] if self.settings.approves(&only.endpoint.address)))
    }

    /// Connects to an approved host by the route in the current ssh configuration, and pins its key if it is not pinned
    /// yet.
    pub async fn connect(&self, target: &SshTarget, origin: Origin) -> Result<Connection> {
        self.connect_by(target, origin, Purpose::Work, None).await
    }

    /// Connects with the link's key only, if given. Jump hosts always use the login's keys.
    async fn connect_by(
        &self,
        target: &SshTarget,
        origin: Origin,
        purpose: Purpose,
        link_key: Option<&LinkKey>,
    ) -> Result<Connection> {
        self.require_approval(target, origin).await?;
        let (jumps, mut leg) = self.legs(target).await?;
        leg.options.credentials.link_key = link_key.cloned();
        let through = self.jump(jumps, purpose).await?;
        leg.options.credentials.confined_to =
            (origin == Origin::Assistant).then(|| self.settings.key_dirs.clone());
        let recorded = self.journal.host(&target.host, target.port).await?;
        let recorded = recorded.is_some_and(|host| host.is_target());
        let connection = Connection::open_leg(through, &leg).await?;
        let pin = match (recorded, connection.host_key_accepted(), origin) {
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

    /// Connects to each jump host over the one before it, or reuses an open connection. Their keys follow the same
    /// rules. A key that only the policy accepted is pinned, which does not permit deployments to that jump host.
    async fn jump(&self, legs: Vec<Leg>, purpose: Purpose) -> Result<Option<Connection>> {
        let mut through = None;
        let mut way = Way { purpose, hops: Vec::new() };
        for leg in legs {
            let Endpoint { name, port, .. } = &leg.endpoint;
            way.hops.push((leg.endpoint.clone(), leg.target.user.clone()));
            let pinned = async || Ok(self.journal.host(name, *port).await?.map(|host| host.key));
            let open = async || {
                let connection = Connection::open_leg(through, &leg).await?;
                if connection.host_key_accepted() == Accepted::New {
                    self.record(name, *port, connection.host_key().clone(), JUMP_HOST).await?;
                }
                Ok(connection)
            };
            through = Some(self.jump_hosts.connect(way.clone(), pinned, open).await?);
        }
        Ok(through)
    }

    /// Returns the jump hosts, and the host itself.
    async fn legs(&self, target: &SshTarget) -> Result<(Vec<Leg>, Leg)> {
        let asked = Asked {
            host: &target.host,
            user: Some(&target.user),
            port: Some(target.port),
            user_default: SSH_USER_DEFAULT,
        };
        let route = self.settings.client_config()?.route(asked, self.settings.allow_loopback)?;
        let passphrase = self.passphrase().await?;
        let mut legs = Vec::new();
        for Hop { endpoint, user, settings } in route {
            let recorded = self.journal.host(&endpoint.name, endpoint.port).await?;
            let options = self.options(recorded.map(|host| host.key), &settings, passphrase.clone())?;
            let target = SshTarget { host: endpoint.name.clone(), port: endpoint.port, user, key_path: None };
            legs.push(Leg { endpoint, target, options });
        }
        let mut last = legs.pop().ok_or_else(|| Error::internal("a route without a host"))?;
        last.target.key_path = target.key_path.clone();
        Ok((legs, last))
    }

    /// Returns a dialer for the standing link. It reads the rules again for each connection.
    pub fn dialer(&self, target: SshTarget, origin: Origin) -> Dialer {
        let hosts = self.clone();
        Arc::new(move || {
            let (hosts, target) = (hosts.clone(), target.clone());
            Box::pin(async move { hosts.connect_standing(&target, origin).await })
        })
    }

    /// Connects with the link's own key if there is one, and with the login's keys only if the host rejects that key.
    async fn connect_standing(&self, target: &SshTarget, origin: Origin) -> Result<Connection> {
        let link_key = self.settings.link_key.as_ref();
        match self.connect_by(target, origin, Purpose::Links, link_key).await {
            Err(error) if link_key.is_some() && error.code() == ErrorCode::HostAuthentication => {
                tracing::warn!(%target, error = %error.chain(), "the link's own key is refused; trying the login's");
                self.connect_by(target, origin, Purpose::Links, None).await
            }
            outcome => outcome,
        }
    }

    /// Returns the port of a host that was named without a port.
    pub fn port(&self, host: &HostAddress, port: Option<u16>) -> Result<u16> {
        let asked = Asked { host, user: None, port, user_default: SSH_USER_DEFAULT };
        let route = self.settings.client_config()?.route(asked, self.settings.allow_loopback)?;
        Ok(route.last().map_or(SSH_PORT_DEFAULT, |hop| hop.endpoint.port))
    }

    /// Returns the key that a host presents now, for a person to compare.
    pub async fn probe(&self, host: &HostAddress, port: u16) -> Result<HostKey> {
        let user = UserName::parse(SSH_USER_DEFAULT)?;
        let target = SshTarget { host: host.clone(), port, user, key_path: None };
        let (jumps, leg) = self.legs(&target).await?;
        let through = self.jump(jumps, Purpose::Work).await?;
        probe::host_key(&leg.endpoint, through.as_ref(), &leg.options).await
    }

    /// Pins the key that the host presents. With a fingerprint, pins only that key. A host that is pinned to another
    /// key must be forgotten first.
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
                format!(
                    "{host} shows the key {}, not {}",
                    key.fingerprint,
                    aegis_types::text::shown(expected)
                ),
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

    /// Returns whether both addresses are pinned to the same host key: a machine with a new address, or a copy of it.
    pub async fn have_one_key(&self, one: (&HostAddress, u16), other: (&HostAddress, u16)) -> Result<bool> {
        let one = self.journal.host(one.0, one.1).await?;
        let other = self.journal.host(other.0, other.1).await?;
        Ok(matches!((one, other), (Some(one), Some(other)) if one.key == other.key))
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

    async fn passphrase(&self) -> Result<Option<Passphrase>> {
        match &self.settings.key_passphrase {
            None => Ok(None),
            Some(KeyPassphrase::Given(passphrase)) => Ok(Some(passphrase.clone())),
            Some(KeyPassphrase::Named(name)) => {
                let opened = self.journal.use_secret(name, "passphrase of SSH keys").await?;
                Ok(Some(Passphrase::new(opened.reveal())))
            }
        }
    }

    fn options(
        &self,
        pinned: Option<HostKey>,
        host: &HostSettings,
        passphrase: Option<Passphrase>,
    ) -> Result<ConnectOptions> {
        let settings = &self.settings;
        let known = match &host.known_hosts {
            None => KnownHosts::read(&settings.known_hosts)?,
            Some(files) => {
                let system =
                    settings.known_hosts.iter().filter(|path| path.as_os_str() == SYSTEM_KNOWN_HOSTS);
                KnownHosts::read(&files.iter().chain(system).collect::<Vec<_>>())?
            }
        };
        let ours = settings.host_key_policy;
        let rules =
            HostKeyRules { pinned, known, policy: policy(ours, host), unheeded: unheeded(ours, host) };
        let credentials = Credentials {
            agent_socket: match &host.identity_agent {
                IdentityAgent::Environment => self.agents.usable(),
                IdentityAgent::None => None,
                IdentityAgent::Socket(path) => Some(path.clone()),
            },
            identity_files: host.identity_files.clone(),
            identities_only: host.identities_only,
            certificate_files: host.certificate_files.clone(),
            identities_dir: settings.home.as_ref().map(|home| home.join(".ssh")),
            passphrase,
            ..Credentials::default()
        };
        Ok(ConnectOptions {
            rules: Arc::new(rules),
            credentials,
            allow_loopback: settings.allow_loopback,
            timeouts: Timeouts::default(),
        })
    }
}

/// Returns the effective policy. The ssh configuration can only make it stricter. `StrictHostKeyChecking no`, which
/// would also accept a changed key, counts as `accept-new` at most.
fn policy(ours: HostKeyPolicy, host: &HostSettings) -> HostKeyPolicy {
    match host.strict_host_keys {
        Some((StrictHostKeys::Yes, _)) => HostKeyPolicy::Strict,
        Some((StrictHostKeys::AcceptNew | StrictHostKeys::No, _)) | None => ours,
    }
}

/// Describes a setting of the ssh configuration that is laxer than the policy and therefore ignored.
fn unheeded(ours: HostKeyPolicy, host: &HostSettings) -> Option<String> {
    let (strict, place) = host.strict_host_keys.as_ref()?;
    let written = match strict {
        StrictHostKeys::Yes => return None,
        StrictHostKeys::AcceptNew => "accept-new",
        StrictHostKeys::No => "no",
    };
    (ours == HostKeyPolicy::Strict).then(|| {
        format!(
            "StrictHostKeyChecking {written} ({place}) does not count, since spec.deploy.host_key_policy is \
             strict"
        )
    })
}
