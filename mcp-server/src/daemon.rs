//! `aegis serve`: the daemon process.
//!
//! It owns the data directory, the core, and one task per listener. `api.sock` serves REST for the command line,
//! `mcp.sock` serves assistants over `aegis mcp`. The HTTP port serves REST and `/mcp` (on a plain worker only health).
//! The order of a run is: configuration, data directory, core, listeners, wait. Then intake stops, connections end, and
//! the core stops, each within a time limit.

pub mod files;
mod log;
mod supervisor;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use cluster_core::{
    config::{self, ConfigChoice, NodeConfig, Overrides, Settings, StartedBy, settings::REST_PORT},
    controller::access::TokenTable,
    core::Core,
    default_port::{DefaultPort, bind_tcp},
    fs::DataDirectory,
    rpc::tls::web_server,
    types::{
        caller::Door,
        error::{Error, Result},
        principal::Origin,
    },
};
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::{
    caller::Caller,
    rest::{self, Api},
    server::AegisServer,
    tools::ToolRegistry,
    transport::{
        guard::{self, Guard},
        http::{mcp_routes, serve_tcp, serve_unix},
        mcp_socket,
        unix::{self, Socket},
    },
};
pub use files::{HTTP_ADDRESS, HTTP_TOKEN};

/// Time for connections to end before they are cut.
const LISTENERS_STOP_TIME_MAX: Duration = Duration::from_secs(5);
/// Time for the core to deregister and close its links. Unstored state is recovered at the next start.
const CORE_STOP_TIME_MAX: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Options {
    pub config: ConfigChoice,
    pub overrides: Overrides,
    pub started_by: StartedBy,
}

/// Runs until stopped by a signal or `aegis stop`.
pub async fn run(options: Options) -> Result<()> {
    // A configuration may name another data directory; the record of the last start is in the requested one.
    let asked_dir = Settings::of(&NodeConfig::default(), &options.overrides)?.data_dir;
    let recorded = files::config_path(&asked_dir);
    let loaded = config::load(&options.config, recorded.as_deref(), options.started_by)?;
    let settings = Settings::of(&loaded.config, &options.overrides)?;
    let set_level = log::init(settings.log_level.as_deref())?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;

    let data = Arc::new(DataDirectory::own(&settings.data_dir)?);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %data.path().display(),
        config = %loaded.path.as_ref().map_or("defaults".into(), |path| path.to_string_lossy()),
        "starting"
    );
    if !settings.unused.is_empty() {
        tracing::info!(sections = ?settings.unused, "these sections of the configuration are not used by this node");
    }
    // Before the core starts: an error here must not leave it half-started.
    let token = files::http_token(&data)?;
    let tokens = TokenTable::new(Some(&token));
    let guard = Guard::new(&settings, tokens.clone())?;
    let catalogue = Arc::new(ToolRegistry::of(&settings.mcp)?);
    let tls = settings.http_tls.clone().map(|files| web_server(files, stop.clone())).transpose()?;
    let listener = bind(&settings, &data).await?;
    if tls.is_none() && !settings.bind_address.is_loopback() {
        tracing::warn!(
            "HTTP is served without TLS beyond this machine, as spec.network.allow_insecure_bind says: \
             everybody on the network may read along and take tokens"
        );
    }
    let address = listener.local_addr().map_err(|e| Error::internal("no local address").source(e))?;

    let core = Core::start(settings.clone(), Arc::clone(&data), tokens).await?;
    follow_log_level(&core, set_level, stop.clone());
    let has_tls = tls.is_some();
    let listening = Listening { core: core.clone(), settings, guard, catalogue, tls, stop: stop.clone() };
    // Clients read the files as soon as a socket answers.
    let listeners = files::write_address(&data, address, has_tls)
        .and_then(|()| files::write_config_path(&data, loaded.path.as_deref()))
        .and_then(|()| listening.spawn(&data, listener));
    let mut listeners = match listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            core.shutdown().await;
            files::remove_address(&data);
            return Err(error);
        }
    };
    tracing::info!(%address, node_id = %core.node_id(), "listening");
    // A controller is ready by now. A worker may have to wait for its controller, which is no reason to restart it.
    supervisor::tell(&[NotifyState::Ready]);

    tokio::select! {
        () = stop.cancelled() => {}
        // Shut down by its controller, or no longer a member.
        () = core.end().cancelled() => stop.cancel(),
    }
    tracing::info!("stopping");
    supervisor::tell(&[NotifyState::Stopping]);
    let ended = async { while listeners.join_next().await.is_some() {} };
    if tokio::time::timeout(LISTENERS_STOP_TIME_MAX, ended).await.is_err() {
        tracing::warn!("some connections did not end in time and were cut");
        listeners.abort_all();
    }
    if tokio::time::timeout(CORE_STOP_TIME_MAX, core.shutdown()).await.is_err() {
        tracing::warn!("the core did not stop in time");
    }
    files::remove_address(&data);
    tracing::info!("stopped");
    Ok(())
}

/// Inputs of the listeners.
struct Listening {
    core: Core,
    settings: Settings,
    guard: Guard,
    catalogue: Arc<ToolRegistry>,
    /// TLS configuration of HTTP.
    tls: Option<Arc<ServerConfig>>,
    stop: CancellationToken,
}

impl Listening {
    fn spawn(self, data: &DataDirectory, http: TcpListener) -> Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        let serves_api = self.core.role().is_controller();
        let confirmations = self.catalogue.confirmations();
        let api = |origin| Api {
            core: self.core.clone(),
            origin,
            confirmations: Arc::clone(&confirmations),
            stop: self.stop.clone(),
        };
        let routes = |origin| match serves_api {
            true => rest::router(api(origin)),
            false => rest::worker_router(api(origin)),
        };
        let socket = Socket::bind(data, unix::API)?;
        let inside = routes(Origin::Person)
            .layer(Extension(Caller::local(Door::ApiSocket)))
            .layer(middleware::from_fn_with_state(self.core.clone(), take_ssh_agent));
        tasks.spawn(serve_unix(socket, inside, self.stop.clone()));
        let mut outside = routes(Origin::Assistant);
        if serves_api {
            let server = AegisServer::new(self.core.clone(), Arc::clone(&self.catalogue));
            let socket = Socket::bind(data, unix::MCP)?;
            tasks.spawn(mcp_socket::serve(socket, server.clone(), self.stop.clone()));
            if self.settings.mcp.http {
                let stop = self.stop.child_token();
                outside = outside.merge(mcp_routes(move || server.for_connection(), &self.settings, stop));
            }
        }
        let outside = outside.layer(middleware::from_fn_with_state(self.guard, guard::guard));
        tasks.spawn(serve_tcp(http, self.tls, outside, self.stop));
        Ok(tasks)
    }
}

/// Uses the ssh agent of a client that runs as the daemon's user.
async fn take_ssh_agent(State(core): State<Core>, request: Request, next: Next) -> Response {
    let named = request.headers().get(unix::SSH_AGENT).and_then(|path| path.to_str().ok());
    if let Some(socket) = named.map(PathBuf::from).filter(|path| path.is_absolute()) {
        core.offer_ssh_agent(socket);
    }
    next.run(request).await
}

/// Follows the log level of the pushed configuration.
fn follow_log_level(core: &Core, set_level: log::SetLevel, stop: CancellationToken) {
    let mut settings = core.settings();
    // Ends with the daemon or its core.
    tokio::spawn(async move {
        loop {
            let level = settings.borrow_and_update().log_level.clone();
            if let Err(error) = set_level(level.as_deref()) {
                tracing::error!(%error, "the log level stays as it is");
            }
            match stop.run_until_cancelled(settings.changed()).await {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return,
            }
        }
    });
}

/// Binds the HTTP port. If no port is configured and the default port is taken, binds another port.
async fn bind(settings: &Settings, data: &DataDirectory) -> Result<TcpListener> {
    let at = |port| SocketAddr::new(settings.bind_address, port);
    match settings.rest_port {
        Some(port) => bind_tcp(at(port)).await.map(|(listener, _)| listener),
        None if settings.bind_address.is_loopback() => {
            DefaultPort::new(data, "http", REST_PORT).bind(|port| bind_tcp(at(port))).await
        }
        None => bind_tcp(at(REST_PORT)).await.map(|(listener, _)| listener),
    }
}

/// Handles SIGTERM and SIGINT for this process.
pub fn stop_on_signals(stop: &CancellationToken) -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals =
            signal(kind).map_err(|e| Error::internal("signals cannot be received").source(e))?;
        let stop = stop.clone();
        // Ends with the process.
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                stop.cancel();
            }
        });
    }
    Ok(())
}
