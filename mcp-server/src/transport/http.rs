//! Serving HTTP: the accept loop with its bounds, and MCP over Streamable HTTP.
//!
//! `axum::serve` leaves Nagle's algorithm on, which costs an MCP call up to 44 ms; hence our own loop.

use std::{sync::Arc, time::Duration};

use axum::Router;
use cluster_core::config::Settings;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService,
    session::local::{LocalSessionManager, SessionConfig},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::unix::Socket;
use crate::server::AegisServer;

/// A few assistants with a few streams each; more is a leak or an attack.
const CONNECTIONS_MAX: usize = 256;
/// One request: larger ones are refused with 413.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
const HEADER_READ_TIME_MAX: Duration = Duration::from_secs(15);
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 64 * 1024;
const HTTP2_STREAMS_MAX: u32 = 64;
const HTTP2_RESETS_MAX: usize = 64;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// Streams that are open when the daemon stops get this long to end.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(2);
/// A person may think for an hour between two calls of one session.
const MCP_SESSION_IDLE_MAX: Duration = Duration::from_secs(60 * 60);
/// After a failed accept (no descriptors left): trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `stop`; returns when all of them have ended.
pub async fn serve_tcp(listener: TcpListener, router: Router, stop: CancellationToken) {
    let server = Server::new(router, stop.clone());
    while let Some(permit) = server.slot().await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!(error = %e, "no TCP_NODELAY");
                }
                server.spawn(stream, permit);
            }
            Err(e) => pause(&e).await,
        }
    }
    server.finish().await;
}

/// The same over a unix socket.
pub async fn serve_unix(socket: Socket, router: Router, stop: CancellationToken) {
    let server = Server::new(router, stop.clone());
    while let Some(permit) = server.slot().await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(stream) => server.spawn(stream, permit),
            Err(e) => pause(&e).await,
        }
    }
    server.finish().await;
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// What an accept loop shares with its connections.
struct Server {
    router: Router,
    stop: CancellationToken,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Server {
    fn new(router: Router, stop: CancellationToken) -> Self {
        Self { router, stop, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)), tasks: TaskTracker::new() }
    }

    /// A free place; at the bound, new connections wait in the kernel's queue. `None` when stopping.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            () = self.stop.cancelled() => None,
            permit = Arc::clone(&self.slots).acquire_owned() => permit.ok(),
        }
    }

    fn spawn<S>(&self, stream: S, permit: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, stop) = (self.router.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            serve_connection(stream, router, stop).await;
            drop(permit);
        });
    }

    async fn finish(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn serve_connection<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIME_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GOODBYE_TIME_MAX, connection).await {
                Ok(ended) => ended,
                // An open event stream; its client resumes by sequence.
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// MCP over Streamable HTTP, both eras. Host and Origin are checked by the guard around every route,
/// and once more here, where the specification asks for it.
pub fn mcp_service(
    server: AegisServer,
    settings: &Settings,
    stop: CancellationToken,
) -> StreamableHttpService<AegisServer, LocalSessionManager> {
    let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let hosts = loopback
        .iter()
        .cloned()
        .chain([settings.bind_address.to_string()])
        .chain(settings.mcp.allowed_hosts.iter().cloned());
    let origins = ["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"]
        .map(str::to_owned)
        .into_iter()
        .chain(settings.mcp.allowed_origins.iter().cloned());
    let config = StreamableHttpServerConfig::default()
        .with_allowed_hosts(hosts)
        .with_allowed_origins(origins)
        .enforce_origin_validation()
        .with_max_request_body_bytes(BODY_BYTES_MAX)
        .with_cancellation_token(stop);
    let mut sessions = LocalSessionManager::default();
    let mut session = SessionConfig::default();
    session.keep_alive = Some(MCP_SESSION_IDLE_MAX);
    sessions.session_config = session;
    StreamableHttpService::new(move || Ok(server.clone()), Arc::new(sessions), config)
}
