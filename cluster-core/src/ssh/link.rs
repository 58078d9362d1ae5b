//! The standing connection of a node: one supervisor task per link, owned by its [`LinkHandle`].
//!
//! It keeps the connection up (backoff with jitter, for ever), has the host listen on the
//! controller's socket and hands each of its connections over as a [`LinkStream`] that knows its
//! node, and opens channels to the node's own socket on demand. After a cut, sshd may hold our old
//! session and with it the forwarded socket for as long as it does not notice: the session's process
//! is noted on the host, with its start time, and ended when we come back.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, SshStream};
use crate::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A connection that lived this long starts the backoff anew.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// A worker opens one connection, and one more while it replaces it.
const FORWARDED_PENDING_MAX: usize = 4;
const SCRIPT_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Opens a connection to the link's host, with the host key rules of that moment.
pub type Dialer = Arc<dyn Fn() -> BoxFuture<'static, Result<Connection>> + Send + Sync>;

#[derive(Debug, Clone)]
pub struct LinkSettings {
    pub node: NodeId,
    /// On the host: forwarded to us.
    pub controller_socket: String,
    /// On the host: where the node listens.
    pub node_socket: String,
    /// On the host: process and owner of the session that holds the forward.
    pub session_note: String,
    /// Only a session noted by this owner is ended (the cluster's id, say).
    pub owner: String,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum LinkState {
    Connecting,
    Up { since_ms: i64 },
    Down { reason: String, since_ms: i64 },
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
    /// Starts the supervisor, with an open connection if there is one. Inbound connections go to
    /// `inbound`; while it is full the host's side is refused rather than queued.
    pub fn start(
        settings: LinkSettings,
        dialer: Dialer,
        adopted: Option<Connection>,
        inbound: mpsc::Sender<LinkStream>,
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

    /// A fresh channel to the node's socket.
    pub async fn connect_node(&self) -> io::Result<SshStream> {
        let Some(connection) = self.current.load_full() else {
            let text = format!("the link of {} is down: {:?}", self.settings.node, *self.state.borrow());
            return Err(io::Error::new(io::ErrorKind::NotConnected, text));
        };
        connection.open_stream_local(&self.settings.node_socket).await.map_err(io::Error::other)
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The connection of this moment, for whoever wants to run something on the host.
    pub fn connection(&self) -> Option<Connection> {
        self.current.load_full().map(|connection| (*connection).clone())
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
    inbound: mpsc::Sender<LinkStream>,
    state: watch::Sender<LinkState>,
    current: Arc<ArcSwapOption<Connection>>,
    cancel: CancellationToken,
}

/// Why a connection's time was over.
enum End {
    Stopped,
    Lost(String),
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
                    End::Lost(error.to_string())
                }
            };
            let End::Lost(reason) = end else { return };
            self.down(reason);
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

    /// A connection with its forward; `Err(None)` when stopped meanwhile.
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
            let arguments =
                [&settings.session_note, &settings.owner, &settings.controller_socket].map(String::as_str);
            let prepared = connection.script(TAKE_OVER, &arguments, SCRIPT_LIMIT).await?;
            if !prepared.success() {
                let why = super::script::tail(&prepared.stderr, 3);
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    format!("cannot prepare the link's socket: {why}"),
                ));
            }
            let (sender, streams) = mpsc::channel(FORWARDED_PENDING_MAX);
            connection.forward_stream_local(&settings.controller_socket, sender).await?;
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
                reason = connection.closed() => break End::Lost(reason),
                () = self.cancel.cancelled() => break End::Stopped,
                stream = streams.recv() => match stream {
                    Some(io) => self.hand_over(io),
                    None => break End::Lost("the forward ended".to_owned()),
                },
            }
        };
        self.current.store(None);
        if matches!(end, End::Stopped) {
            let _ = timeout(STOP_LIMIT, connection.cancel_forward(&self.settings.controller_socket)).await;
            connection.close().await;
        }
        end
    }

    /// Never waits: a full server must not keep the link from noticing its end.
    fn hand_over(&self, io: SshStream) {
        let stream = LinkStream { node: self.settings.node.clone(), io };
        if self.inbound.try_send(stream).is_err() {
            tracing::warn!(node = %self.settings.node, "a connection over the link was refused: too many wait");
        }
    }

    fn down(&self, reason: String) {
        tracing::warn!(node = %self.settings.node, %reason, "link is down");
        self.state.send_replace(LinkState::Down { reason, since_ms: now_ms() });
    }
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// $1 note, $2 owner, $3 socket. Ends the sshd session that the note names if it is ours (same owner)
/// and still the same process (same start time), removes the stale socket, and notes this session:
/// the nearest ancestor that is an sshd.
const TAKE_OVER: &str = r#"
start_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
is_sshd() { case "$(cat "/proc/$1/comm" 2>/dev/null)" in sshd*) return 0;; esac; return 1; }
mine=$PPID; hops=0
while [ "$mine" -gt 1 ] && ! is_sshd "$mine" && [ $hops -lt 8 ]; do
  mine=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$mine/status"); mine=${mine:-1}; hops=$((hops + 1))
done
if [ -f "$1" ]; then
  read -r pid start owner < "$1" || true
  case "$pid" in ''|*[!0-9]*) pid=0;; esac
  if [ "$pid" -gt 1 ] && [ "$pid" != "$mine" ] && [ "$owner" = "$2" ] && is_sshd "$pid" && [ "$(start_of "$pid")" = "$start" ]; then
    kill "$pid" 2>/dev/null
    n=0; while [ -d "/proc/$pid" ] && [ $n -lt 30 ]; do sleep 0.1; n=$((n + 1)); done
  fi
fi
rm -f -- "$3" || exit 1
printf '%s %s %s\n' "$mine" "$(start_of "$mine")" "$2" > "$1.new" && mv -f -- "$1.new" "$1"
"#;

/// One connection of a node to its controller, through the link. It knows which node's link it came
/// by, and hands that to gRPC handlers as [`LinkPeer`].
pub struct LinkStream {
    node: NodeId,
    io: SshStream,
}

/// The node whose link carries the connection: who attests on it may only be that node.
#[derive(Debug, Clone)]
pub struct LinkPeer {
    pub node: NodeId,
}

impl LinkStream {
    pub fn node(&self) -> &NodeId {
        &self.node
    }
}

impl fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkStream({})", self.node)
    }
}

impl tonic::transport::server::Connected for LinkStream {
    type ConnectInfo = LinkPeer;
    fn connect_info(&self) -> LinkPeer {
        LinkPeer { node: self.node.clone() }
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
