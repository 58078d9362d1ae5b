//! The handle that every surface uses: one method a verb, nothing of any surface in it.
//!
//! The parts of a node are made and wired in [`start`]; [`Core::shutdown`] stops them.

mod access;
mod agents;
mod certificates;
mod config;
mod deployments;
mod nodes;
mod rollouts;
mod secrets;
mod start;

pub use deployments::ReleaseView;
pub use nodes::{DrainOrder, EnrolmentGrant, EnrolmentOrder, PeerFilter, RemovalOrder};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_config::{Settings, applied::AppliedConfig, schema::NodeType};
use aegis_controller::{
    access::{AccessTokens, TokenTable},
    agents::Agents,
    audit::Audit,
    executions::Executions,
    handle::Controller,
    nodes::NodeConnections,
    secrets::Secrets,
};
use aegis_deploy::{ApprovedHost, Deployments, HostAccess, Rollouts};
use aegis_engine::{Engine, facts::EngineFacts};
use aegis_fs::DataDirectory;
use aegis_metrics::Metrics;
use aegis_rpc::tls::Credentials;
use aegis_ssh::{HostAddress, HostKey};
use aegis_store::Store;
use aegis_types::{
    clock::rfc3339,
    error::{Error, ErrorCode, Result},
    execution::{
        filter::ExecutionFilter,
        request::{ExecutionRequest, Submitter},
        view::{EventView, ExecutionView, SpecView},
    },
    ids::{ClusterId, ExecutionId, NodeId},
    node::Role,
};
use aegis_worker::membership::{JoinState, Member};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::smoke_test;

/// Time that a shutdown gives to deregistration and open connections.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(8);

/// A cheap handle on a running node.
#[derive(Debug, Clone)]
pub struct Core(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node_id: NodeId,
    role: Role,
    started: Instant,
    engine: Option<Engine>,
    facts: Option<EngineFacts>,
    applied: AppliedConfig,
    tokens: TokenTable,
    part: Part,
    stop: CancellationToken,
    /// Cancelled when the membership wants the process to end.
    end: CancellationToken,
    metrics: Metrics,
    tasks: tokio::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
enum Part {
    Controller(Box<ControllerPart>),
    Worker(WorkerPart),
}

#[derive(Debug)]
struct WorkerPart {
    member: Member,
    credentials: Option<Credentials>,
}

#[derive(Debug)]
struct ControllerPart {
    store: Store,
    secrets: Secrets,
    access: AccessTokens,
    audit: Audit,
    agents: Agents,
    controller: Controller,
    nodes: NodeConnections,
    executions: Executions,
    deployments: Deployments,
    rollouts: Rollouts,
    hosts: HostAccess,
    allow_loopback: bool,
    /// Address of this controller, for nodes.
    endpoint: String,
    tls: certificates::ControllerTls,
}

impl ControllerPart {
    /// Adds to the view of an execution why it may not go on: the problem of its node.
    async fn with_problem_of_its_node(&self, mut view: ExecutionView) -> ExecutionView {
        let Some(node_id) = view.node_id.clone().filter(|_| view.state.is_on_a_node()) else { return view };
        if let (None, Ok(peer)) = (&view.waiting, self.controller.view(node_id).await) {
            view.waiting = peer.holds_up().map(|why| format!("{}: {why}", peer.node_id));
        }
        view
    }
}

/// The key that a host shows now.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HostKeyView {
    pub host: String,
    pub port: u16,
    /// `ssh-ed25519 AAAA…`
    pub public_key: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// It is the one that is pinned.
    pub known: bool,
}

/// A part of the node and whether it works.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Subsystem {
    pub name: String,
    pub ok: bool,
    /// Without it the node is not ready.
    pub critical: bool,
    pub detail: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HealthView {
    pub ready: bool,
    pub uptime_seconds: u64,
    pub version: String,
    pub node_id: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<ClusterId>,
    pub role: Role,
    pub subsystems: Vec<Subsystem>,
}

impl Core {
    /// Starts everything the settings ask for: controller, worker or both.
    ///
    /// `tokens` has the data directory's own; those that are stored join it.
    pub async fn start(settings: Settings, data: Arc<DataDirectory>, tokens: TokenTable) -> Result<Core> {
        let open_files = aegis_rpc::descriptors::raise_limit();
        tracing::debug!(open_files, "the limit of open files");
        let (settings, applied) = AppliedConfig::restore(settings, data.path());
        let node_id = start::node_id(&settings, data.path())?;
        let keys = Arc::new(start::keys(&settings, data.path(), &node_id)?);
        // An orchestrator never runs containers, whatever its part in the cluster.
        let runs_containers = settings.node_type != NodeType::Orchestrator && settings.role.runs_executions();
        let engine = match runs_containers {
            true => Some(Engine::new(settings.docker_socket.as_deref())?),
            false => None,
        };
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let facts = engine.clone().map(EngineFacts::new);
        if let Some(facts) = &facts {
            facts.spawn(stop.clone());
        }
        let metrics = Metrics::default();
        let node = start::Node {
            settings: &settings,
            data: &data,
            id: &node_id,
            keys,
            engine: engine.clone(),
            facts: facts.clone(),
            applied: &applied,
            metrics: metrics.clone(),
        };
        let mut tasks = Vec::new();
        let role = settings.role;
        let part = match role {
            Role::Worker => {
                let (part, served) = start::start_worker(node, &stop, &end).await?;
                tasks.extend(served);
                Part::Worker(part)
            }
            Role::Controller | Role::Hybrid => {
                let (part, served) = start::start_controller(node, tokens.clone(), &stop).await?;
                tasks.extend(served);
                Part::Controller(Box::new(part))
            }
        };
        let inner = Inner {
            node_id,
            role,
            started: Instant::now(),
            engine,
            facts,
            applied,
            tokens,
            part,
            stop,
            end,
            metrics,
            tasks: tokio::sync::Mutex::new(tasks),
        };
        Ok(Core(Arc::new(inner)))
    }

    /// Stops intake, says goodbye, and waits for what must end well, for a bounded time.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        if let Part::Controller(part) = &self.0.part {
            part.nodes.stop();
        }
        let tasks = std::mem::take(&mut *self.0.tasks.lock().await);
        if tokio::time::timeout(SHUTDOWN_LIMIT, futures::future::join_all(tasks)).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }

    /// Cancelled when the membership wants the process to end: shut down by the controller, or left.
    pub fn end(&self) -> &CancellationToken {
        &self.0.end
    }

    /// Returns the metrics in OpenMetrics text.
    pub async fn metrics(&self) -> Result<String> {
        for part in self.health().await.subsystems {
            self.0.metrics.part(&part.name, part.ok);
        }
        if let Part::Controller(part) = &self.0.part {
            let views = part.controller.views().await?;
            self.0.metrics.nodes(views.iter().map(|view| view.status));
            self.0.metrics.executions(part.executions.open_states());
        }
        self.0.metrics.text(self.0.started.elapsed())
    }

    pub fn node_id(&self) -> &NodeId {
        &self.0.node_id
    }

    pub fn role(&self) -> Role {
        self.0.role
    }

    fn credentials(&self) -> Option<&Credentials> {
        match &self.0.part {
            Part::Controller(part) => part.tls.credentials.as_ref(),
            Part::Worker(part) => part.credentials.as_ref(),
        }
    }

    pub async fn health(&self) -> HealthView {
        let mut subsystems = Vec::new();
        let mut add = |name: &str, critical: bool, state: Result<String, String>| {
            let (ok, detail) = match state {
                Ok(detail) => (true, detail),
                Err(detail) => (false, detail),
            };
            subsystems.push(Subsystem { name: name.to_owned(), ok, critical, detail });
        };
        match &self.0.part {
            Part::Controller(part) => {
                let database = part.store.ping().await;
                add("database", true, database.map(|()| "answers".to_owned()).map_err(|e| e.to_string()));
                let peers = part.controller.views().await;
                let count = peers.map(|peers| match peers.len() {
                    1 => "1 node".to_owned(),
                    count => format!("{count} nodes"),
                });
                add("cluster", true, count.map_err(|e| e.to_string()));
                // They are written by the membership's owner: without it nobody hears of anything.
                let newest = part.controller.events().newest();
                let told = format!("newest {newest}");
                let alive = part.controller.is_running();
                add("events", true, alive.then_some(told).ok_or_else(|| "nobody writes them".to_owned()));
            }
            Part::Worker(part) => {
                let state = match part.member.state() {
                    JoinState::Joined => Ok("joined".to_owned()),
                    JoinState::Connecting => Err("connecting".to_owned()),
                    JoinState::Left => Err("left the cluster".to_owned()),
                    JoinState::Waiting(reason) => Err(reason),
                };
                add("cluster", true, state);
            }
        }
        if let Some(credentials) = self.credentials() {
            let until = credentials.identity().map(|own| rfc3339(own.facts.not_after_secs * 1000));
            let good = until.map_or("none yet".to_owned(), |until| format!("valid until {until}"));
            add("certificates", false, credentials.problem().map_or(Ok(good), Err));
        }
        if let Some(facts) = &self.0.facts {
            let info = facts.get().await;
            let critical = self.0.role == Role::Worker;
            add(
                "engine",
                critical,
                info.map(|info| format!("docker {}", info.version)).map_err(|e| e.to_string()),
            );
        }
        HealthView {
            ready: subsystems.iter().all(|subsystem| subsystem.ok || !subsystem.critical),
            uptime_seconds: self.0.started.elapsed().as_secs(),
            version: aegis_rpc::SOFTWARE_VERSION.to_owned(),
            node_id: self.0.node_id.clone(),
            cluster_id: self.cluster_id().ok(),
            role: self.0.role,
            subsystems,
        }
    }

    /// Runs a first container on this machine, with an image made from this executable.
    pub async fn run_trial(&self) -> Result<ExecutionView> {
        let part = self.controller()?;
        let engine = self.0.engine.as_ref().ok_or_else(|| {
            Error::new(ErrorCode::FailedPrecondition, "this node runs no containers")
                .remedy("deploy a machine that does: aegis deploy HOST")
        })?;
        smoke_test::run_here(engine, &part.executions, &self.0.node_id).await
    }

    fn controller(&self) -> Result<&ControllerPart> {
        match &self.0.part {
            Part::Controller(part) => Ok(part),
            Part::Worker(_) => Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("{} is a worker: the cluster is asked at its controller", self.0.node_id),
            )
            .remedy("run this on the controller's machine")),
        }
    }

    pub fn cluster_id(&self) -> Result<ClusterId> {
        Ok(self.controller()?.controller.cluster_id().clone())
    }

    // --- executions ------------------------------------------------------------------------

    pub async fn submit(&self, request: ExecutionRequest, submitter: Submitter) -> Result<ExecutionView> {
        self.controller()?.executions.submit(request, submitter).await
    }

    /// The packed file (`tar.gz`) of what an ended execution left behind.
    pub async fn execution_artifacts(&self, id: &ExecutionId) -> Result<PathBuf> {
        self.controller()?.executions.artifacts(id).await
    }

    pub async fn execution(&self, id: &ExecutionId) -> Result<ExecutionView> {
        let part = self.controller()?;
        Ok(part.with_problem_of_its_node(part.executions.get(id).await?).await)
    }

    pub async fn execution_spec(&self, id: &ExecutionId) -> Result<SpecView> {
        self.controller()?.executions.spec(id).await
    }

    /// Newest first.
    pub async fn executions(&self, filter: &ExecutionFilter, limit: u32) -> Result<Vec<ExecutionView>> {
        self.controller()?.executions.recent(filter, limit).await
    }

    pub async fn execution_events(
        &self,
        id: &ExecutionId,
        after_sequence: u64,
        limit: u32,
    ) -> Result<Vec<EventView>> {
        self.controller()?.executions.events(id, after_sequence, limit).await
    }

    /// The execution as it is, and as it changes; of an ended one there is only the last view.
    pub async fn watch_execution(&self, id: &ExecutionId) -> Result<watch::Receiver<ExecutionView>> {
        self.controller()?.executions.watch(id).await
    }

    /// Waits until there is an event after `after_sequence`, the state is settled, or time is over.
    pub async fn await_execution_change(
        &self,
        id: &ExecutionId,
        after_sequence: u64,
        wait: Duration,
    ) -> Result<ExecutionView> {
        let done = |view: &ExecutionView| view.last_sequence > after_sequence || view.state.is_settled();
        let part = self.controller()?;
        Ok(part.with_problem_of_its_node(part.executions.wait(id, wait, done).await?).await)
    }

    /// Waits until the state is settled or time is over.
    pub async fn await_execution_end(&self, id: &ExecutionId, wait: Duration) -> Result<ExecutionView> {
        let part = self.controller()?;
        let view = part.executions.wait(id, wait, |view| view.state.is_settled()).await?;
        Ok(part.with_problem_of_its_node(view).await)
    }

    pub async fn cancel_execution(&self, id: &ExecutionId, reason: &str) -> Result<ExecutionView> {
        self.controller()?.executions.cancel(id, reason).await
    }

    // --- hosts -----------------------------------------------------------------------------

    /// Takes the socket of the ssh agent of a process of the daemon's own user. A worker has no use for it.
    pub fn offer_ssh_agent(&self, socket: std::path::PathBuf) {
        if let Ok(part) = self.controller() {
            part.hosts.offer_agent(socket);
        }
    }

    pub async fn probe_host(&self, host: &str, port: Option<u16>) -> Result<HostKeyView> {
        let part = self.controller()?;
        let address = HostAddress::parse(host, part.allow_loopback)?;
        let port = part.hosts.port(&address, port)?;
        let HostKey { public_key, fingerprint } = part.hosts.probe(&address, port).await?;
        let pinned = part.hosts.list().await?;
        let known = pinned.iter().any(|pinned| {
            pinned.host == address && pinned.port == port && pinned.key.public_key == public_key
        });
        Ok(HostKeyView { host: address.to_string(), port, public_key, fingerprint, known })
    }

    /// Pins the key with this fingerprint ("SHA256:…"), if it is the one that the host shows now.
    pub async fn approve_host(
        &self,
        host: &str,
        port: Option<u16>,
        fingerprint: &str,
    ) -> Result<ApprovedHost> {
        let part = self.controller()?;
        let address = HostAddress::parse(host, part.allow_loopback)?;
        let port = part.hosts.port(&address, port)?;
        part.hosts.approve(&address, port, Some(fingerprint)).await
    }

    pub async fn approved_hosts(&self) -> Result<Vec<ApprovedHost>> {
        self.controller()?.hosts.list().await
    }

    pub async fn forget_host(&self, host: &str, port: Option<u16>) -> Result<()> {
        let part = self.controller()?;
        let address = HostAddress::parse(host, part.allow_loopback)?;
        let port = part.hosts.port(&address, port)?;
        part.hosts.forget(&address, port).await
    }
}
