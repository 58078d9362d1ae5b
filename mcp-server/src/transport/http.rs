//! Serves HTTP: the accept loop with its limits, and MCP over Streamable HTTP.
//!
//! `axum::serve` leaves Nagle's algorithm on, which costs an MCP call up to 44 ms. Therefore this module has its own
//! loop.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use cluster_core::{
    config::Settings,
    types::error::{Error, ErrorCode},
};
use http::{HeaderMap, StatusCode, Uri};
use http_body_util::LengthLimitError;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    first_bytes::FirstBytes,
    http_sessions::HttpSessions,
    message,
    places::{Place, Places},
    unix::Socket,
};
use crate::{
    caller::Caller,
    rest::{
        body::BODY_BYTES_MAX,
        error::{Problem, body_too_large},
        health::{BUSY, is_open},
    },
};

/// Time limit of a request body for `/mcp`; REST limits its requests as a whole.
const BODY_READ_TIME_MAX: Duration = Duration::from_secs(30);
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Time after which a client that reads nothing of its response is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
const HEADER_READ_TIME_MAX: Duration = Duration::from_secs(15);
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 64 * 1024;
const HTTP2_STREAMS_MAX: u32 = 64;
const HTTP2_RESETS_MAX: usize = 64;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for open streams to end when the daemon stops.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(2);
/// Idle time of a session. A person may think for an hour between two calls.
const MCP_SESSION_IDLE_MAX: Duration = Duration::from_secs(60 * 60);
/// Maximum number of sessions. Above it the least recently used session is evicted.
const MCP_SESSIONS_MAX: usize = 512;
/// Header that names a session of the older protocol versions.
const SESSION: &str = "mcp-session-id";
/// Pause after a failed accept (no descriptors left), since an immediate retry would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `stop`. Returns when all of them have ended.
///
/// With `tls` each connection uses HTTPS.
pub async fn serve_tcp(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    stop: CancellationToken,
) {
    let tls = tls.map(TlsAcceptor::from);
    let server = Server::new(router, stop.clone());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!(error = %e, "no TCP_NODELAY");
                }
                let Some(place) = server.place().await else { break };
                match &tls {
                    Some(tls) => server.spawn_tls(tls.clone(), stream, place),
                    None => server.spawn(stream, place),
                }
            }
            Err(e) => pause(&e).await,
        }
    }
    server.finish().await;
}

/// Serves connections of a unix socket until `stop`.
pub async fn serve_unix(socket: Socket, router: Router, stop: CancellationToken) {
    let server = Server::new(router, stop.clone());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let Some(place) = server.place().await else { break };
                // Only the owner of the data directory can connect.
                place.mark().prove();
                server.spawn(stream, place);
            }
            Err(e) => pause(&e).await,
        }
    }
    server.finish().await;
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// State that an accept loop shares with its connections.
struct Server {
    router: Router,
    stop: CancellationToken,
    places: Places,
    tasks: TaskTracker,
}

impl Server {
    fn new(router: Router, stop: CancellationToken) -> Self {
        Self { router, stop, places: Places::default(), tasks: TaskTracker::new() }
    }

    /// Returns a place for a connection, or `None` when the server stops.
    async fn place(&self) -> Option<Place> {
        self.stop.run_until_cancelled(self.places.take()).await.flatten()
    }

    fn spawn<S>(&self, stream: S, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, stop) = (self.router.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            serve_connection(stream, router, stop, place).await;
        });
    }

    fn spawn_tls(&self, tls: TlsAcceptor, stream: TcpStream, place: Place) {
        let (router, stop) = (self.router.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(stream));
            let evicted = place.evicted.clone();
            let handshake = evicted.run_until_cancelled(handshake);
            match stop.run_until_cancelled(handshake).await.flatten() {
                Some(Ok(Ok(stream))) => serve_connection(stream, router, stop, place).await,
                Some(Ok(Err(error))) => tracing::debug!(%error, "a TLS handshake failed"),
                Some(Err(_)) => tracing::debug!("a TLS handshake took too long"),
                None => {}
            }
        });
    }

    async fn finish(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Serves the requests of one connection until it ends, is evicted, or the server stops.
async fn serve_connection<S>(stream: S, router: Router, stop: CancellationToken, place: Place)
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
    let mut stream = TimeoutStream::new(FirstBytes::within(HEADER_READ_TIME_MAX, stream));
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let mark = place.mark();
    let is_reserve = place.is_reserve;
    let service = router.map_request(move |mut request: http::Request<Incoming>| {
        if is_reserve && !is_open(request.uri().path()) {
            *request.uri_mut() = Uri::from_static(BUSY);
        }
        request.extensions_mut().insert(mark.clone());
        request
    });
    let stream = Box::pin(stream);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.evicted.cancelled() => {
            tracing::debug!("closed an unproven HTTP connection for a new one");
            return;
        }
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

/// Returns the routes of MCP over Streamable HTTP, for both eras. The guard around every route checks Host and Origin.
/// They are checked again here, where the specification requires it.
///
/// `handler` makes a server for each session of the older era, and for each request of the newer.
pub fn mcp_routes<H: ServerHandler>(
    handler: impl Fn() -> H + Send + Sync + 'static,
    settings: &Settings,
    stop: CancellationToken,
) -> Router {
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
    let sessions = Arc::new(HttpSessions::new(MCP_SESSIONS_MAX, MCP_SESSION_IDLE_MAX));
    let service = StreamableHttpService::new(move || Ok(handler()), Arc::clone(&sessions), config);
    Router::new()
        .route_service("/mcp", service)
        .layer(middleware::from_fn_with_state(sessions, own_session))
        .layer(middleware::from_fn_with_state(BODY_READ_TIME_MAX, whole_body))
}

/// Serves a session of the older protocol versions only to the caller that opened it. Other callers get 404, which the
/// specification requires for an unknown session.
async fn own_session(State(sessions): State<Arc<HttpSessions>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().map(|caller| caller.actor.identity.to_string());
    let session =
        |headers: &HeaderMap| headers.get(SESSION).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let named = session(request.headers());
    if let (Some(id), Some(caller)) = (&named, &caller)
        && sessions.is_of_another(id, caller)
    {
        let error =
            Error::new(ErrorCode::NotFound, "there is no such MCP session").remedy("send initialize again");
        return Problem(error).into_response();
    }
    let response = next.run(request).await;
    if let (None, Some(id), Some(caller)) = (named, session(response.headers()), caller) {
        sessions.set_owner(&id, &caller);
    }
    response
}

/// Reads the body within limits of time and size, or rejects the request. A caller that sends single bytes therefore
/// holds no resources.
async fn whole_body(State(time_max): State<Duration>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let refused = |status: StatusCode, error| (status, Problem(error).body()).into_response();
    match tokio::time::timeout(time_max, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) if parts.method == http::Method::POST => match message::unfit_body(&body) {
            Some(answer) => {
                let json = [(http::header::CONTENT_TYPE, "application/json")];
                (StatusCode::BAD_REQUEST, json, answer).into_response()
            }
            None => next.run(Request::from_parts(parts, body.into())).await,
        },
        Ok(Ok(body)) => next.run(Request::from_parts(parts, body.into())).await,
        Ok(Err(error)) => match error.into_inner().is::<LengthLimitError>() {
            true => body_too_large(),
            false => refused(
                StatusCode::BAD_REQUEST,
                Error::invalid("the body could not be read").remedy("send it again"),
            ),
        },
        Err(_) => refused(
            StatusCode::REQUEST_TIMEOUT,
            Error::new(ErrorCode::Timeout, format!("the body was not here within {} s", time_max.as_secs()))
                .remedy("send it again"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Body;
    use cluster_core::{controller::access::TokenTable, types::principal::Origin};
    use futures::StreamExt as _;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{rest, testing, transport::guard};

    /// Starts the whole stack on its own port.
    async fn start() -> (SocketAddr, CancellationToken) {
        let (settings, stop) = (testing::settings(), CancellationToken::new());
        let guard = guard::Guard::new(&settings, TokenTable::new(Some("t0ken"))).unwrap();
        let api = rest::Api {
            core: testing::core().await,
            origin: Origin::Assistant,
            confirmations: Arc::default(),
            stop: stop.clone(),
        };
        let server = testing::server().await;
        let router = rest::router(api)
            .merge(mcp_routes(move || server.for_connection(), &settings, stop.clone()))
            .layer(middleware::from_fn_with_state(guard, guard::guard));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(listener, None, router, stop.clone()));
        (address, stop)
    }

    /// Returns status and body of one request that closes its connection.
    async fn send(address: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head =
            format!("{head}host: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may reject the request before it has read all of the body.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer)
    }

    /// The server sends its one frame, but never the end.
    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        const TIME_MAX: Duration = Duration::from_millis(100);
        let reads_all = axum::routing::post(async |body: axum::body::Bytes| body);
        let router = Router::new()
            .route("/mcp", reads_all)
            .layer(middleware::from_fn_with_state(TIME_MAX, whole_body));
        let frames = |frames: Vec<&'static str>| futures::stream::iter(frames).map(Ok::<_, std::io::Error>);
        let ask = async |body| {
            let request = http::Request::post("/mcp").body(body).unwrap();
            let answer = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
            (answer.status(), to_bytes(answer.into_body(), 1000).await.unwrap())
        };
        let whole = Body::from_stream(frames(vec!["{", "}"]));
        assert_eq!(ask(whole).await, (StatusCode::OK, "{}".into()));
        let endless = Body::from_stream(frames(vec!["{"]).chain(futures::stream::pending()));
        let (status, text) = ask(endless).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(String::from_utf8_lossy(&text).contains("\"Timeout\""), "{text:?}");
    }

    const MCP: &str = "POST /mcp HTTP/1.1\r\naccept: application/json, text/event-stream\r\n\
                       content-type: application/json\r\n";
    const TOKEN: &str = "authorization: Bearer t0ken\r\n";

    fn list(meta: Value) -> Vec<u8> {
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}})
            .to_string()
            .into_bytes()
    }

    #[tokio::test]
    async fn tools_are_listed_over_http_in_the_newer_era() {
        let (address, stop) = start().await;
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {}
        });
        let head = format!("{MCP}{TOKEN}mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/list\r\n");
        let (status, answer) = send(address, &head, &list(meta)).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer.contains("deploy_edge_node") && answer.contains("ttlMs"), "{answer}");
        stop.cancel();
    }

    #[tokio::test]
    async fn the_older_era_initializes_over_http() {
        let (address, stop) = start().await;
        let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        // The session's stream stays open, so only the beginning is read.
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = body.to_string();
        let head = format!("{MCP}{TOKEN}host: {address}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.contains("\"serverInfo\"") {
            let mut chunk = [0; 4096];
            let count = stream.read(&mut chunk).await.unwrap();
            assert!(count > 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stop.cancel();
    }

    #[tokio::test]
    async fn mcp_needs_the_token_the_host_and_a_good_origin() {
        let (address, stop) = start().await;
        assert_eq!(send(address, MCP, b"{}").await.0, 401);
        assert_eq!(send(address, &format!("{MCP}authorization: Bearer no\r\n"), b"{}").await.0, 401);
        assert_eq!(
            send(address, &format!("{MCP}{TOKEN}origin: http://evil.example\r\n"), b"{}").await.0,
            403
        );
        assert_eq!(send(address, &format!("{MCP}{TOKEN}host: evil.example\r\n"), b"{}").await.0, 403);
        stop.cancel();
    }

    #[tokio::test]
    async fn too_large_bodies_are_refused_on_both_surfaces() {
        let (address, stop) = start().await;
        let large = vec![b' '; BODY_BYTES_MAX + 1];
        let (status, answer) = send(address, &format!("{MCP}{TOKEN}"), &large).await;
        assert_eq!(status, 413, "{answer}");
        let deploy = format!("POST /deploy/edge-node HTTP/1.1\r\n{TOKEN}");
        let (status, answer) = send(address, &deploy, &large).await;
        assert_eq!(status, 413, "{answer}");
        stop.cancel();
    }

    #[tokio::test]
    async fn rest_refuses_in_json_what_is_wrong_and_what_is_for_persons() {
        let (address, stop) = start().await;
        let post = |path: &str| format!("POST {path} HTTP/1.1\r\n{TOKEN}");
        let (status, answer) =
            send(address, &post("/deploy/edge-node"), b"{\"host\":\"a\",\"hots\":1}").await;
        assert_eq!(status, 400);
        assert!(answer.contains("InvalidArgument") && answer.contains("hots"), "{answer}");
        let (status, answer) = send(
            address,
            &post("/deploy/edge-node"),
            b"{\"host\":\"a\",\"tunnel_token\":\"file:/etc/passwd\"}",
        )
        .await;
        assert_eq!(status, 400, "{answer}");
        for path in ["/v1/hosts", "/v1/hosts/probe", "/v1/shutdown"] {
            assert_eq!(send(address, &post(path), b"{}").await.0, 404, "{path}");
        }
        assert_eq!(send(address, &post("/v1/executions"), b"not json").await.0, 400);
        assert_eq!(send(address, "GET /health/live HTTP/1.1\r\n", b"").await.0, 200);
        assert!(!stop.is_cancelled());
        stop.cancel();
    }
}
