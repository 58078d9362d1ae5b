//! One connection to one host: opened once, shared by everything that a deployment and a link do.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use aegis_types::error::{Error, ErrorCode, Result};
use bytes::Bytes;
use russh::{
    Channel, ChannelOpenFailure, Preferred,
    client::{self, Config, Handle, Msg},
};
use tokio::{io::AsyncRead, sync::watch, time::timeout};

use super::{
    auth,
    dial::dial,
    exec::{self, Held, Input, ScriptOutput},
    handler::{ClientHandler, Forwards, KeyCheck, Seen},
    host_keys::{Accepted, HostKey},
    script,
    sftp::Sftp,
    target::{Endpoint, SshTarget},
};
use crate::{ConnectOptions, dial::silent, session_slots::Sessions};

pub use crate::endpoint::SshStream;

/// 5 s and two unanswered ones: a dead connection is noticed within 15 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_UNANSWERED_MAX: usize = 2;
const CHANNEL_OPEN_LIMIT: Duration = Duration::from_secs(10);

/// One host of a route, and all that is needed to log in there.
#[derive(Debug, Clone)]
pub struct Leg {
    pub endpoint: Endpoint,
    pub target: SshTarget,
    pub options: ConnectOptions,
}

/// A cheap handle; the connection ends when the last one is dropped, or by [`Connection::close`].
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
    /// Scripts run as root, by sudo.
    elevated: bool,
}

/// Weak handle, which does not keep its connection open.
pub(super) struct WeakConnection(Weak<Inner>);

impl WeakConnection {
    /// Returns the connection while it is open.
    pub fn upgrade(&self) -> Option<Connection> {
        let connection = Connection { inner: self.0.upgrade()?, elevated: false };
        (!connection.is_closed()).then_some(connection)
    }
}

struct Inner {
    handle: Handle<ClientHandler>,
    /// The connection that carries this one.
    through: Option<Connection>,
    endpoint: Endpoint,
    target: SshTarget,
    host_key: HostKey,
    accepted: Accepted,
    forwards: Forwards,
    closed: watch::Receiver<Option<String>>,
    sessions: Sessions,
    /// It came in by the link's own key.
    confined: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.inner.target)
    }
}

impl Connection {
    /// To a host that is reached directly, under the name that it has.
    pub async fn open(target: &SshTarget, options: &ConnectOptions) -> Result<Self> {
        let endpoint = Endpoint::direct(&target.host, target.port);
        Self::open_leg(None, &Leg { endpoint, target: target.clone(), options: options.clone() }).await
    }

    /// To one host of a route. The connection to the host before it carries this one, and ends with the last that it
    /// carries.
    pub async fn open_leg(through: Option<Self>, leg: &Leg) -> Result<Self> {
        let Leg { endpoint, target, options } = leg;
        let preferred = options.rules.preferred(endpoint);
        let check = KeyCheck::Rules(options.rules.clone());
        let opened = handshake(endpoint, through.as_ref(), check, preferred, options).await?;
        let mut handle = opened.handle.ok_or_else(|| not_ssh(endpoint, None))?;
        timeout(options.timeouts.login, auth::authenticate(&mut handle, target, &options.credentials))
            .await
            .map_err(|_| silent(endpoint, "while logging in"))??;
        let seen = std::mem::take(&mut *lock(&opened.seen)?);
        let (Some(key), Some(accepted)) = (seen.key, seen.accepted) else {
            return Err(Error::internal("a connection without a judged host key"));
        };
        let inner = Inner {
            handle,
            through,
            endpoint: endpoint.clone(),
            target: target.clone(),
            host_key: HostKey::of(&key)?,
            accepted,
            forwards: opened.forwards,
            closed: opened.closed,
            sessions: Sessions::default(),
            confined: options.credentials.link_key.is_some(),
        };
        Ok(Self { inner: Arc::new(inner), elevated: false })
    }

    /// The same connection, on which scripts run as root by `sudo -n`. Channels, forwards and SFTP stay
    /// the login's own.
    pub fn elevated(&self) -> Self {
        Self { inner: self.inner.clone(), elevated: true }
    }

    pub fn is_elevated(&self) -> bool {
        self.elevated
    }

    /// Whether the host lets it forward, and run the link's one command, alone.
    pub fn is_confined(&self) -> bool {
        self.inner.confined
    }

    /// `-H`: Docker's client looks for its settings in the home directory.
    fn shell(&self) -> &'static str {
        if self.elevated { "sudo -n -H sh" } else { "sh" }
    }

    /// The hosts on the way, nearest first, and this one.
    pub fn route(&self) -> Vec<&Endpoint> {
        let mut route = self.inner.through.as_ref().map(Self::route).unwrap_or_default();
        route.push(&self.inner.endpoint);
        route
    }

    pub fn target(&self) -> &SshTarget {
        &self.inner.target
    }

    pub fn host_key(&self) -> &HostKey {
        &self.inner.host_key
    }

    /// `New` means that only the policy vouched for the key: pin it.
    pub fn host_key_accepted(&self) -> Accepted {
        self.inner.accepted
    }

    pub fn is_closed(&self) -> bool {
        self.inner.handle.is_closed()
    }

    /// Ends when the connection does, with the reason.
    pub async fn closed(&self) -> String {
        let mut closed = self.inner.closed.clone();
        // The sender goes with the session's task; either way it is over.
        let reason = closed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| "the connection ended".to_owned())
    }

    /// Ends this connection. Those that carry it may carry others.
    pub async fn close(&self) {
        let _ = self.inner.handle.disconnect(russh::Disconnect::ByApplication, "done", "en").await;
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.inner))
    }

    /// Runs a constant script with arguments; they travel on standard input, not in a process list.
    pub async fn script(&self, script: &'static str, args: &[&str], limit: Duration) -> Result<ScriptOutput> {
        let marker = script::marker();
        let input = script::on_stdin(script, args, &marker)?;
        self.run(format!("{} -s", self.shell()), Input::Bytes(Bytes::from(input)), &marker, limit).await
    }

    /// Runs a constant script whose standard input is `input`, for bulk data and secrets. The
    /// arguments are visible in the host's process list.
    pub async fn script_with_input(
        &self,
        script: &'static str,
        args: &[&str],
        input: impl AsyncRead + Send + Unpin + 'static,
        limit: Duration,
    ) -> Result<ScriptOutput> {
        let marker = script::marker();
        let command = script::on_command_line(self.shell(), script, args, &marker)?;
        self.run(command, Input::Reader(Box::new(input)), &marker, limit).await
    }

    /// Starts a script that stays; it must print `until` on a line of its own once it holds what it
    /// is to hold, and end when its standard input does.
    pub async fn hold(
        &self,
        script: &'static str,
        args: &[&str],
        until: &str,
        limit: Duration,
    ) -> Result<(ScriptOutput, Held)> {
        let marker = script::marker();
        let command = script::on_command_line(self.shell(), script, args, &marker)?;
        let (channel, slot) = self.open_session().await?;
        let (raw, held) = exec::hold(channel, slot, command, format!("\n{until}\n"), limit).await?;
        let marked = script::cut_stdout(&raw.stdout, &marker)?;
        let stderr = script::cut_stderr(&raw.stderr, &marker);
        Ok((ScriptOutput { status: marked.status.unwrap_or(0), stdout: marked.text, stderr }, held))
    }

    /// Runs what the host has for the key that let us in, and gives what it printed.
    pub(super) async fn forced_command(&self, limit: Duration) -> Result<(String, String)> {
        let (channel, slot) = self.open_session().await?;
        // What is asked for does not count.
        let command = "aegis-link".to_owned();
        let raw = exec::run(channel, slot, command, Input::Bytes(Bytes::new()), limit).await;
        let raw = raw.map_err(|error| self.located(error))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((text(raw.stdout), text(raw.stderr)))
    }

    async fn run(
        &self,
        command: String,
        input: Input,
        marker: &str,
        limit: Duration,
    ) -> Result<ScriptOutput> {
        let (channel, slot) = self.open_session().await?;
        let raw =
            exec::run(channel, slot, command, input, limit).await.map_err(|error| self.located(error))?;
        let marked = script::cut_stdout(&raw.stdout, marker)?;
        // Output past the limit is dropped, and the end marker with it: then the status is not known.
        let status = marked.status.ok_or_else(|| {
            let message = format!("a command on {} printed too much or was killed", self.inner.target.host);
            Error::new(ErrorCode::DeploymentFailed, message)
        })?;
        Ok(ScriptOutput { status, stdout: marked.text, stderr: script::cut_stderr(&raw.stderr, marker) })
    }

    pub async fn sftp(&self) -> Result<Sftp> {
        let (channel, slot) = self.open_session().await?;
        Sftp::start(channel, slot, &self.inner.target.host).await
    }

    /// A channel to an address as the host sees it.
    pub async fn open_tcp(&self, host: &str, port: u16) -> Result<SshStream> {
        let opening = self.inner.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
        self.opened(opening, format!("{host} port {port}")).await.map(Channel::into_stream)
    }

    /// A channel to the next host of a route, as this one sees it. A name is looked up there.
    async fn reach(&self, next: &Endpoint) -> Result<SshStream> {
        self.open_tcp(next.address.as_str(), next.port).await.map_err(|error| match error.code() {
            ErrorCode::Unavailable => Error::new(
                ErrorCode::HostUnreachable,
                format!("{} cannot reach {next}", self.inner.target.host),
            )
            .remedy("check HostName and Port in the ssh configuration, and that sshd runs there")
            .source(error),
            _ => error,
        })
    }

    pub(super) async fn request_session(&self) -> Result<Channel<Msg>> {
        self.opened(self.inner.handle.channel_open_session(), "a session".to_owned()).await
    }

    pub(super) fn handle(&self) -> &Handle<ClientHandler> {
        &self.inner.handle
    }

    pub(super) fn forwards(&self) -> &Forwards {
        &self.inner.forwards
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub(super) async fn opened(
        &self,
        opening: impl Future<Output = Result<Channel<Msg>, russh::Error>>,
        what: String,
    ) -> Result<Channel<Msg>> {
        let host = &self.inner.target.host;
        match timeout(CHANNEL_OPEN_LIMIT, opening).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited))) => {
                Err(Error::new(ErrorCode::HostCheckFailed, format!("{host} forbids forwarding to {what}"))
                    .remedy("allow forwarding in sshd_config on the host"))
            }
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
                Err(Error::new(ErrorCode::Unavailable, format!("{host} cannot open {what}: {reason:?}")))
            }
            Ok(Err(error)) => Err(self.lost().source(error)),
            Err(_) => Err(self.lost()),
        }
    }

    pub(super) fn lost(&self) -> Error {
        Error::new(
            ErrorCode::HostUnreachable,
            format!("the connection to {} was lost", self.inner.target.host),
        )
    }

    fn located(&self, error: Error) -> Error {
        if error.code() == ErrorCode::HostUnreachable { self.lost().source(error) } else { error }
    }
}

/// A finished key exchange; without a handle the key was refused, or only looked at.
pub(super) struct Opened {
    pub handle: Option<Handle<ClientHandler>>,
    pub seen: Arc<Mutex<Seen>>,
    forwards: Forwards,
    closed: watch::Receiver<Option<String>>,
}

pub(super) async fn handshake(
    host: &Endpoint,
    through: Option<&Connection>,
    check: KeyCheck,
    preferred: Vec<russh::keys::Algorithm>,
    options: &ConnectOptions,
) -> Result<Opened> {
    let (seen, forwards) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Mutex::new(HashMap::new())));
    let (closed_sender, closed) = watch::channel(None);
    let handler = ClientHandler {
        host: host.clone(),
        check,
        seen: seen.clone(),
        forwards: forwards.clone(),
        closed: closed_sender,
    };
    let certified = !options.rules.authorities(host).is_empty();
    let config = Arc::new(config(preferred, certified));
    let limit = options.timeouts.login;
    let outcome = match through {
        None => timeout(limit, client::connect_stream(config, dial(host, options).await?, handler)).await,
        Some(through) => {
            timeout(limit, client::connect_stream(config, through.reach(host).await?, handler)).await
        }
    }
    .map_err(|_| silent(host, "during the key exchange"))?;
    match outcome {
        Ok(handle) => Ok(Opened { handle: Some(handle), seen, forwards, closed }),
        Err(error) => {
            let mut found = lock(&seen)?;
            if let Some(refusal) = found.refusal.take() {
                return Err(refusal);
            }
            if found.key.is_none() {
                return Err(not_ssh(host, Some(error)));
            }
            drop(found);
            Ok(Opened { handle: None, seen, forwards, closed })
        }
    }
}

/// `first` are the key types that are known; `certified` asks for a certificate before any key.
fn config(first: Vec<russh::keys::Algorithm>, certified: bool) -> Config {
    let mut preferred = Preferred::default();
    if certified {
        preferred.host_key_certificates = preferred.key.clone();
    }
    if !first.is_empty() {
        // A host with several keys then offers the one that is known; an RSA key signs by several
        // names. All others stay behind, so that a change is seen as one.
        let known = |algorithm: &russh::keys::Algorithm| {
            first.iter().any(|one| one == algorithm || (one.clone().is_rsa() && algorithm.clone().is_rsa()))
        };
        let (mut keys, others): (Vec<_>, Vec<_>) = preferred.key.iter().cloned().partition(known);
        keys.extend(others);
        preferred.key = keys.into();
    }
    Config {
        preferred,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVE_UNANSWERED_MAX,
        nodelay: true,
        ..Config::default()
    }
}

fn not_ssh(host: &Endpoint, error: Option<russh::Error>) -> Error {
    if let Some(russh::Error::NoCommonAlgo { kind, theirs, .. }) = &error {
        let offered = aegis_types::text::shown(&theirs.join(", "));
        return Error::new(
            ErrorCode::HostCheckFailed,
            format!("{host} and this machine have no {kind:?} algorithm of SSH in common; the host offers {offered}"),
        )
        .remedy("upgrade sshd on the host, or allow a newer algorithm in its sshd_config");
    }
    let plain = Error::new(ErrorCode::HostUnreachable, format!("{host} did not complete the SSH handshake"))
        .remedy(
            "check that this port is sshd's, and its log; after failed logins sshd shuts an address out for a while",
        );
    match error {
        Some(error) => plain.source(error),
        None => plain,
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> Result<std::sync::MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| Error::internal("a lock of the SSH connection is poisoned"))
}
