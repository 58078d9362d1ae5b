//! Listening sockets of the cluster port, merged into one stream of connections, and a server with explicit limits.
//!
//! Network connections are wrapped in TLS between accept and hand-over (see [`super::tls`]).

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aegis_identity::KeyFile;
use aegis_metrics::Metrics;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Connected};
use tower::layer::util::{Identity, Stack};

use super::{
    call_limits::{CallLimits, Known},
    node_proof,
    places::{Authenticated, ConnectionPermits},
    plain::PlainConnection,
    refusal_log::RefusalLog,
    tls::{Credentials, TlsConnection, server::Handshakes},
    wire::{ByteStream, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
};
use crate::via::{PeerInfo, PeerTransport};

/// Connections that are accepted and not yet handled by the server.
const PENDING_MAX: usize = 64;
/// A node opens one connection and a few calls; an execution holds one stream.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
/// Resets that a peer may cause before its connection is closed (CVE-2023-44487).
const RESETS_MAX: usize = 64;
/// Pause after a failed accept, which usually means a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Age at which connections are replaced, so that no connection outlives its certificate for long. The server announces
/// the end and takes no new calls on the connection. Running calls, such as streams of executions, run to their end.
/// There is no grace period on purpose: tonic would cut those streams.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(6 * 3600);

/// An accepted connection of any kind.
#[derive(Debug)]
pub enum Inbound {
    Plain(Box<PlainConnection>),
    Tls(Box<TlsConnection>),
    Unix(UnixStream),
    /// Came through the SSH link of this node.
    Link(Box<dyn ByteStream>, NodeId),
    /// Accepted by other code, from this address.
    Other(Box<dyn ByteStream>, SocketAddr),
}

impl Connected for Inbound {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        let via = match self {
            Inbound::Plain(stream) => {
                return PeerInfo { via: PeerTransport::Plain(stream.from()), proven: stream.proven() };
            }
            Inbound::Tls(stream) => {
                let via = PeerTransport::Tls { from: stream.remote(), names: stream.peer_names().cloned() };
                return PeerInfo { via, proven: stream.proven() };
            }
            Inbound::Unix(_) => PeerTransport::Unix,
            Inbound::Link(_, node) => PeerTransport::Link(node.clone()),
            Inbound::Other(_, address) => PeerTransport::Plain(*address),
        };
        PeerInfo { via, proven: Authenticated::default() }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Inbound::Plain($stream) => $call,
            Inbound::Tls($stream) => $call,
            Inbound::Unix($stream) => $call,
            Inbound::Link($stream, _) => $call,
            Inbound::Other($stream, _) => $call,
        }
    };
}

impl AsyncRead for Inbound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Inbound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// Collects accepted connections for one server.
#[derive(Debug)]
pub struct Intake {
    sender: mpsc::Sender<Inbound>,
    receiver: mpsc::Receiver<Inbound>,
    stop: CancellationToken,
    metrics: Metrics,
    /// Places of all listeners together.
    places: ConnectionPermits,
    turned_away: Arc<RefusalLog>,
}

impl Intake {
    pub fn new(metrics: Metrics, stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(PENDING_MAX);
        let (places, turned_away) = (ConnectionPermits::default(), Arc::default());
        Self { sender, receiver, stop, metrics, places, turned_away }
    }

    /// Listens on a port that other users of this machine could have bound. The node first proves its identity to each
    /// caller. Plaintext, on loopback.
    pub async fn listen_proving(
        &self,
        address: SocketAddr,
        node_id: NodeId,
        keys: Arc<KeyFile>,
    ) -> Result<SocketAddr> {
        let listener = bind(address).await?;
        let bound = listener.local_addr().map_err(|e| unbound(address, e))?;
        let (sender, stop, places) = (self.sender.clone(), self.stop.clone(), self.places.clone());
        let turned_away = self.turned_away.clone();
        tokio::spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let (stream, from) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        pause(&error).await;
                        continue;
                    }
                };
                let _ = stream.set_nodelay(true);
                let Some(proven) = places.admit(from.ip()) else {
                    note_turned_away(&turned_away, from);
                    continue;
                };
                let mut connection = PlainConnection::new(stream, from, proven.watch());
                let (sender, node_id, key) = (sender.clone(), node_id.clone(), keys.current());
                tokio::spawn(async move {
                    // Fails with the caller, which then has no connection.
                    if node_proof::show(&mut connection, &node_id, &key).await.is_ok() {
                        hand_over(&sender, Inbound::Plain(Box::new(connection))).await;
                    }
                });
            }
        });
        Ok(bound)
    }

    /// Listens on TCP. With credentials every connection uses TLS; without credentials no connection does.
    pub async fn listen_tcp(
        &self,
        address: SocketAddr,
        credentials: Option<Credentials>,
    ) -> Result<SocketAddr> {
        let listener = bind(address).await?;
        let bound = listener.local_addr().map_err(|e| unbound(address, e))?;
        let (sender, stop) = (self.sender.clone(), self.stop.clone());
        let (places, turned_away) = (self.places.clone(), self.turned_away.clone());
        let handshakes =
            credentials.map(|credentials| Arc::new(Handshakes::new(credentials, self.metrics.clone())));
        tokio::spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let (stream, from) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        pause(&error).await;
                        continue;
                    }
                };
                // Small messages in both directions: Nagle's algorithm would cost 40 ms each.
                let _ = stream.set_nodelay(true);
                let proven = places.admit(from.ip());
                let Some(handshakes) = &handshakes else {
                    match proven {
                        Some(proven) => {
                            let connection = PlainConnection::new(stream, from, proven.watch());
                            hand_over(&sender, Inbound::Plain(Box::new(connection))).await;
                        }
                        None => note_turned_away(&turned_away, from),
                    }
                    continue;
                };
                let Some(proven) = proven else {
                    handshakes.note_turned_away(from);
                    continue;
                };
                let (handshakes, sender) = (handshakes.clone(), sender.clone());
                tokio::spawn(async move {
                    if let Some(connection) = handshakes.perform(stream, from, proven).await {
                        hand_over(&sender, Inbound::Tls(Box::new(connection))).await;
                    }
                });
            }
        });
        Ok(bound)
    }

    /// Listens on a socket that only its owner may use, in a private directory. A stale socket is replaced.
    pub fn listen_unix(&self, path: &Path) -> Result<()> {
        let failed = |e: io::Error| {
            Error::new(ErrorCode::Unavailable, format!("the socket {} cannot be bound", path.display()))
                .remedy("its directory must exist and be writable")
                .source(e)
        };
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let (sender, stop) = (self.sender.clone(), self.stop.clone());
        tokio::spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                match accepted {
                    Ok((stream, _)) => hand_over(&sender, Inbound::Unix(stream)).await,
                    Err(error) => pause(&error).await,
                }
            }
        });
        Ok(())
    }

    /// Takes the connections that come through SSH links, each with the node of its link.
    pub fn take_links<S: ByteStream + 'static>(&self, mut links: mpsc::Receiver<(NodeId, S)>) {
        let (sender, stop) = (self.sender.clone(), self.stop.clone());
        tokio::spawn(async move {
            while let Some(Some((node, stream))) = stop.run_until_cancelled(links.recv()).await {
                hand_over(&sender, Inbound::Link(Box::new(stream), node)).await;
            }
        });
    }

    /// Accepts connections that were opened elsewhere, each with its source address.
    pub fn take_others(&self, mut others: mpsc::Receiver<(Box<dyn ByteStream>, SocketAddr)>) {
        let (sender, stop) = (self.sender.clone(), self.stop.clone());
        tokio::spawn(async move {
            while let Some(Some((stream, from))) = stop.run_until_cancelled(others.recv()).await {
                hand_over(&sender, Inbound::Other(stream, from)).await;
            }
        });
    }

    pub fn into_connections(self) -> (ReceiverStream<Inbound>, CancellationToken) {
        (ReceiverStream::new(self.receiver), self.stop)
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| unbound(address, e))
}

fn unbound(address: SocketAddr, error: io::Error) -> Error {
    Error::new(ErrorCode::Unavailable, format!("the address {address} cannot be bound"))
        .remedy("another process has it; set spec.cluster.cluster_grpc_port or spec.network.grpc_port")
        .source(error)
}

async fn hand_over(sender: &mpsc::Sender<Inbound>, inbound: Inbound) {
    // Fails only if the server is gone; then the connection is dropped too.
    let _ = sender.send(inbound).await;
}

fn note_turned_away(log: &RefusalLog, from: SocketAddr) {
    if let Some(suppressed) = log.admit("Connect", ErrorCode::ResourceExhausted) {
        tracing::warn!(%from, suppressed, "a connection was turned away: too many are open");
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Builds a server with all its limits. `known` returns whether a request has a valid token.
pub fn server(known: Known) -> Server<Stack<CallLimits, Identity>> {
    Server::builder()
        .layer(CallLimits::new(known))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_connection_age(CONNECTION_AGE_MAX)
}
