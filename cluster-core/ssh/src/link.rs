//! Standing connection of a node: one supervisor task per link, owned by its [`LinkHandle`].
//!
//! It keeps the connection up (backoff with jitter, for ever), has the host listen at the controller's
//! end and hands each of its connections over with the id of its node, and opens
//! channels to the node's own end on demand. An end is a unix socket, or a port of the host's loopback
//! where sshd forwards no sockets. After a cut, sshd may hold our old session and with it the end for as
//! long as it does not notice: the session's process is noted on the host, with its start time, and
//! ended when we come back.

pub mod take_over;

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aegis_types::{
    error::{Error, ErrorCode, Failure, Result},
    ids::NodeId,
};
use arc_swap::ArcSwapOption;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, SshStream};
use crate::endpoint::ForwardEndpoint;

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Age at which a connection resets the backoff.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// A worker opens one connection, and a second one while it replaces the first.
const FORWARDED_PENDING_MAX: usize = 4;
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Opens a connection to the link's host, with the current host key rules.
pub type Dialer = Arc<dyn Fn() -> BoxFuture<'static, Result<Connection>> + Send + Sync>;

#[derive(Debug, Clone)]
pub struct LinkSettings {
    pub node: NodeId,
    /// End that is forwarded to the controller.
    pub controller_end: ForwardEndpoint,
    /// End at which the node listens.
    pub node_end: ForwardEndpoint,
    /// File on the host with process and owner of the session that holds the forward.
    pub session_note: String,
    /// Owner of sessions that may be ended, for example the cluster's id.
    pub owner: String,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum LinkState {
    Connecting,
    Up { since_ms: i64 },
    Down { failure: Failure, since_ms: i64 },
}

impl LinkState {
    /// Returns the reason why the link is down.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Connecting | Self::Up { .. } => None,
            Self::Down { failure, .. } => Some(failure),
        }
    }
}

/// Ends the link when dropped; [`LinkHandle::stop`] also waits for it.
pub struct LinkHandle {
    settings: LinkSettings,
    current: Arc<ArcSwapOption<Connection>>,
    state: watch::Receiver<LinkState>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for LinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkHandle({}, {:?})", self.settings.node, *self.state.borrow())
    }
}

impl LinkHandle {
    /// Starts the supervisor, with an open connection if there is one. Inbound connections are sent to `inbound`. While
    /// it is full, connections are rejected rather than queued.
    pub fn start(
        settings: LinkSettings,
        dialer: Dialer,
        adopted: Option<Connection>,
        inbound: mpsc::Sender<(NodeId, SshStream)>,
    ) -> Self {
        let (state_sender, state) = watch::channel(LinkState::Connecting);
        let (current, cancel) = (Arc::new(ArcSwapOption::empty()), CancellationToken::new());
        let supervisor = Supervisor {
            settings: settings.clone(),
            dialer,
            inbound,
            state: state_sender,
            current: current.clone(),
            cancel: cancel.clone(),
        };
        let task = tokio::spawn(supervisor.run(adopted));
        Self { settings, current, state, cancel, task }
    }

    /// Opens a channel to the node.
    pub async fn connect_node(&self) -> io::Result<SshStream> {
        let Some(connection) = self.current.load_full() else {
            let state = self.state.borrow();
            let why = state.failure().map_or("it is being opened", |failure| failure.message.as_str());
            let text = format!("the SSH connection of {} is down: {why}", self.settings.node);
            return Err(io::Error::new(io::ErrorKind::NotConnected, text));
        };
        connection.open_channel(&self.settings.node_end).await.map_err(io::Error::other)
    }

    /// Returns whether other users of the host could listen in the node's place.
    pub fn is_open_to_others(&self) -> bool {
        self.settings.node_end.socket().is_none()
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Returns the current connection, to run commands on the host. Returns `None` if the link uses its own key, which
    /// only permits forwarding.
    pub fn connection(&self) -> Option<Connection> {
        let current = self.current.load_full().map(|connection| (*connection).clone());
        current.filter(|connection| !connection.is_confined())
    }

    pub async fn stop(mut self) {
        self.cancel.cancel();
        if timeout(STOP_LIMIT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Supervisor {
    settings: LinkSettings,
    dialer: Dialer,
    inbound: mpsc::Sender<(NodeId, SshStream)>,
    state: watch::Sender<LinkState>,
    current: Arc<ArcSwapOption<Connection>>,
    cancel: CancellationToken,
}

/// Reason why a connection ended.
enum End {
    Stopped,
    Lost(Failure),
}

fn lost(reason: impl Into<String>) -> End {
    End::Lost(Failure { code: ErrorCode::HostUnreachable, message: reason.into(), remedy: None })
}

impl Supervisor {
    async fn run(self, adopted: Option<Connection>) {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .with_jitter()
            .without_max_times();
        let mut delays = backoff.build();
        let mut adopted = adopted.filter(|connection| !connection.is_closed());
        loop {
            let begun = Instant::now();
            let end = match self.establish(adopted.take()).await {
                Ok((connection, streams)) => self.serve(connection, streams).await,
                Err(None) => End::Stopped,
                Err(Some(error)) => {
                    tracing::warn!(node = %self.settings.node, error = %error.chain(), "link cannot be made");
                    End::Lost(Failure::from(&error))
                }
            };
            let End::Lost(failure) = end else { return };
            self.down(failure);
            if begun.elapsed() >= STEADY_AFTER {
                delays = backoff.build();
            }
            let pause = delays.next().unwrap_or(BACKOFF_MAX);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.cancel.cancelled() => return,
            }
        }
    }

    /// Opens a connection with its forward. Returns `Err(None)` if stopped meanwhile.
    async fn establish(
        &self,
        adopted: Option<Connection>,
    ) -> Result<(Connection, mpsc::Receiver<SshStream>), Option<Error>> {
        let establishing = async {
            let connection = match adopted {
                Some(connection) => connection,
                None => (self.dialer)().await?,
            };
            let settings = &self.settings;
            take_over::take_over(&connection, settings).await?;
            let (sender, streams) = mpsc::channel(FORWARDED_PENDING_MAX);
            connection.listen(&settings.controller_end, sender).await?;
            Ok((connection, streams))
        };
        tokio::select! {
            outcome = establishing => outcome.map_err(Some),
            () = self.cancel.cancelled() => Err(None),
        }
    }

    async fn serve(&self, connection: Connection, mut streams: mpsc::Receiver<SshStream>) -> End {
        self.current.store(Some(Arc::new(connection.clone())));
        self.state.send_replace(LinkState::Up { since_ms: now_ms() });
        tracing::info!(node = %self.settings.node, host = %connection.target(), "link is up");
        let end = loop {
            tokio::select! {
                reason = connection.closed() => break lost(reason),
                () = self.cancel.cancelled() => break End::Stopped,
                stream = streams.recv() => match stream {
                    Some(io) => self.hand_over(io),
                    None => break lost("the forward ended"),
                },
            }
        };
        self.current.store(None);
        if matches!(end, End::Stopped) {
            let _ = timeout(STOP_LIMIT, connection.unlisten(&self.settings.controller_end)).await;
            connection.close().await;
        }
        end
    }

    /// Never blocks: a full server must not keep the link from noticing its end.
    fn hand_over(&self, io: SshStream) {
        if self.inbound.try_send((self.settings.node.clone(), io)).is_err() {
            tracing::warn!(node = %self.settings.node, "a connection over the link was refused: too many wait");
        }
    }

    fn down(&self, failure: Failure) {
        tracing::warn!(node = %self.settings.node, reason = %failure.message, "link is down");
        self.state.send_replace(LinkState::Down { failure, since_ms: now_ms() });
    }
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}
