//! The handle that every surface uses: one method a verb, nothing of any surface in it.
//!
//! [`Core::start`] is where the parts of a node are made and wired, in the order in which they need
//! each other; [`Core::shutdown`] stops them.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::Engine as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    capacity::Capacity,
    clock::rfc3339,
    cluster::{
        controller::{Controller, HealthSettings},
        nodes::Nodes,
        peer::{DrainState, DrainView, OnDeadline, PeerStatus, PeerView, Role},
        worker::{JoinState, WorkerTask},
    },
    config::{Settings, schema::NodeType, settings::Listen},
    deploy::{
        ApprovedHost, DeploymentFilter, DeploymentRequest, DeploymentView, Deployments, Hosts, Journal,
        Origin, PlanView,
    },
    engine::Engine,
    error::{Error, ErrorCode, Result},
    execution::{
        dispatch::Executions,
        manifest::ExecutionRequest,
        supervisor::Supervisor,
        view::{EventView, ExecutionView},
    },
    identity::NodeKey,
    ids::{ClusterId, DeploymentId, ExecutionId, NodeId, Tag},
    ops::{
        deploy_settings, journal::StoreJournal, local_node::LocalNode, membership::ClusterMembership, trial,
    },
    rpc::{
        controller_api::ControllerApi, controller_client::Applicant, listener::Intake, worker_api::WorkerApi,
    },
    ssh::{HostAddress, HostKey},
    store::{DataDirectory, Store},
};

/// What shutdown waits for: goodbyes and connections.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(8);
const NODE_ID_FILE: &str = "node-id";
/// Beside the node's socket, for the deployment to read.
const PUBLIC_KEY_FILE: &str = "node.pub";

/// A cheap handle on a running node.
#[derive(Debug, Clone)]
pub struct Core(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node_id: NodeId,
    role: Role,
    started: Instant,
    engine: Option<Engine>,
    part: Part,
    stop: CancellationToken,
    tasks: tokio::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
enum Part {
    Controller(Box<ControllerPart>),
    Worker { state: watch::Receiver<JoinState> },
}

#[derive(Debug)]
struct ControllerPart {
    store: Store,
    controller: Controller,
    nodes: Nodes,
    executions: Executions,
    deployments: Deployments,
    hosts: Hosts,
    allow_loopback: bool,
}

#[derive(Debug, Clone, Default)]
pub struct PeerFilter {
    pub status: Option<PeerStatus>,
    pub role: Option<Role>,
    pub tags: Vec<Tag>,
}

#[derive(Debug, Clone, Copy)]
pub struct DrainOrder {
    pub deadline: Duration,
    pub on_deadline: OnDeadline,
}

/// An enrolment token for its bearer: shown once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolmentGrant {
    pub token: String,
    /// RFC 3339.
    pub expires_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
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
    pub async fn start(settings: Settings, data: Arc<DataDirectory>) -> Result<Core> {
        let node_id = node_id(&settings, data.path())?;
        let key_path =
            settings.node_keypair_path.clone().unwrap_or_else(|| data.path().join("node-keypair.pem"));
        let key = Arc::new(NodeKey::load_or_create(&key_path)?);
        // An orchestrator never runs containers, whatever its part in the cluster.
        let runs_containers = settings.node_type != NodeType::Orchestrator && settings.role.runs_executions();
        let engine = match runs_containers {
            true => Some(Engine::new(settings.docker_socket.as_deref())?),
            false => None,
        };
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        let role = settings.role;
        let part = match role {
            Role::Worker => {
                let worker = start_worker(&settings, &data, &node_id, key, engine.clone(), &stop);
                let (state, served) = worker.await?;
                tasks.extend(served);
                Part::Worker { state }
            }
            Role::Controller | Role::Hybrid => {
                let (part, served) =
                    start_controller(&settings, &data, &node_id, key, engine.clone(), &stop).await?;
                tasks.push(served);
                Part::Controller(Box::new(part))
            }
        };
        let inner = Inner {
            node_id,
            role,
            started: Instant::now(),
            engine,
            part,
            stop,
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

    pub fn node_id(&self) -> &NodeId {
        &self.0.node_id
    }

    pub fn role(&self) -> Role {
        self.0.role
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
                let peers = peers.map(|peers| format!("{} nodes", peers.len())).map_err(|e| e.to_string());
                add("cluster", true, peers);
            }
            Part::Worker { state } => {
                let state = match &*state.borrow() {
                    JoinState::Joined => Ok("joined".to_owned()),
                    JoinState::Connecting => Err("connecting".to_owned()),
                    JoinState::Waiting(reason) => Err(reason.clone()),
                };
                add("cluster", true, state);
            }
        }
        if let Some(engine) = &self.0.engine {
            let info = engine.info().await;
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
            version: crate::rpc::SOFTWARE_VERSION.to_owned(),
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
        trial::run_here(engine, &part.executions, &self.0.node_id).await
    }

    fn controller(&self) -> Result<&ControllerPart> {
        match &self.0.part {
            Part::Controller(part) => Ok(part),
            Part::Worker { .. } => Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("{} is a worker: the cluster is asked at its controller", self.0.node_id),
            )
            .remedy("run this on the controller's machine")),
        }
    }

    pub fn cluster_id(&self) -> Result<ClusterId> {
        Ok(self.controller()?.controller.cluster_id().clone())
    }

    // --- nodes -----------------------------------------------------------------------------

    /// All matching peers, in the order of their ids; removed ones only when asked for.
    pub async fn peers(&self, filter: PeerFilter) -> Result<Vec<PeerView>> {
        let mut peers = self.controller()?.controller.views().await?;
        peers.retain(|peer| {
            let status = match filter.status {
                Some(status) => peer.status == status,
                None => peer.status != PeerStatus::Removed,
            };
            status
                && filter.role.is_none_or(|role| peer.role == role)
                && filter.tags.iter().all(|tag| peer.tags.contains(tag))
        });
        Ok(peers)
    }

    pub async fn drain(&self, node_id: &NodeId, order: DrainOrder) -> Result<DrainView> {
        let part = self.controller()?;
        let view = part.controller.drain(node_id.clone(), order.deadline, order.on_deadline).await?;
        part.nodes.nudge(node_id);
        Ok(view)
    }

    pub async fn drain_status(&self, node_id: &NodeId) -> Result<DrainView> {
        self.controller()?.controller.drain_view(node_id.clone()).await
    }

    /// Waits until the drain is done or the time is over, then says how it stands.
    pub async fn await_drain(&self, node_id: &NodeId, wait: Duration) -> Result<DrainView> {
        let controller = &self.controller()?.controller;
        let mut version = controller.version();
        let drained = async {
            loop {
                version.mark_unchanged();
                let view = controller.drain_view(node_id.clone()).await?;
                if view.state != DrainState::Draining || version.changed().await.is_err() {
                    return Ok(view);
                }
            }
        };
        match tokio::time::timeout(wait, drained).await {
            Ok(view) => view,
            Err(_) => self.drain_status(node_id).await,
        }
    }

    pub async fn resume(&self, node_id: &NodeId) -> Result<PeerView> {
        let part = self.controller()?;
        let view = part.controller.resume(node_id.clone()).await?;
        part.nodes.nudge(node_id);
        Ok(view)
    }

    pub async fn create_enrolment_token(
        &self,
        node_id: Option<NodeId>,
        ttl: Duration,
    ) -> Result<EnrolmentGrant> {
        const TTL_MAX: Duration = Duration::from_secs(86_400);
        if ttl < Duration::from_secs(1) || ttl > TTL_MAX {
            return Err(Error::invalid("the token's lifetime is out of range 1s to 24h"));
        }
        let controller = &self.controller()?.controller;
        let (issued, expires_at_ms) = controller.issue_enrolment_token(node_id.clone(), ttl).await?;
        Ok(EnrolmentGrant { token: issued.text.to_string(), expires_at: rfc3339(expires_at_ms), node_id })
    }

    // --- executions ------------------------------------------------------------------------

    pub async fn submit(&self, request: ExecutionRequest) -> Result<ExecutionView> {
        self.controller()?.executions.submit(request).await
    }

    pub async fn execution(&self, id: &ExecutionId) -> Result<ExecutionView> {
        self.controller()?.executions.get(id).await
    }

    /// Newest first.
    pub async fn executions(&self, limit: u32) -> Result<Vec<ExecutionView>> {
        self.controller()?.executions.recent(limit).await
    }

    pub async fn execution_events(
        &self,
        id: &ExecutionId,
        after_sequence: u64,
        limit: u32,
    ) -> Result<Vec<EventView>> {
        self.controller()?.executions.events(id, after_sequence, limit).await
    }

    /// Waits until there is an event after `after_sequence`, the state is settled, or time is over.
    pub async fn await_execution_change(
        &self,
        id: &ExecutionId,
        after_sequence: u64,
        wait: Duration,
    ) -> Result<ExecutionView> {
        let done = |view: &ExecutionView| view.last_sequence > after_sequence || view.state.is_settled();
        self.controller()?.executions.wait(id, wait, done).await
    }

    /// Waits until the state is settled or time is over.
    pub async fn await_execution_end(&self, id: &ExecutionId, wait: Duration) -> Result<ExecutionView> {
        self.controller()?.executions.wait(id, wait, |view| view.state.is_settled()).await
    }

    pub async fn cancel_execution(&self, id: &ExecutionId, reason: &str) -> Result<ExecutionView> {
        self.controller()?.executions.cancel(id, reason).await
    }

    // --- deployments -----------------------------------------------------------------------

    pub async fn plan_deployment(&self, request: DeploymentRequest, origin: Origin) -> Result<PlanView> {
        self.controller()?.deployments.plan(&request, origin).await
    }

    pub async fn deploy(&self, request: DeploymentRequest, origin: Origin) -> Result<DeploymentView> {
        self.controller()?.deployments.start(&request, origin).await
    }

    pub async fn deployment(&self, id: &DeploymentId) -> Result<DeploymentView> {
        self.controller()?.deployments.get(id).await
    }

    /// Newest first, and how many there are in all.
    pub async fn deployments(&self, filter: DeploymentFilter) -> Result<(Vec<DeploymentView>, usize)> {
        self.controller()?.deployments.list(filter).await
    }

    /// Waits until the deployment changed since `since_event`, is final, or time is over.
    pub async fn await_deployment_change(
        &self,
        id: &DeploymentId,
        since_event: u64,
        wait: Duration,
    ) -> Result<DeploymentView> {
        let mut views = self.controller()?.deployments.watch(id).await?;
        let changed = views.wait_for(|view| view.event > since_event || view.state.is_final());
        // The time limit and the end of the deployment's task both leave the newest view behind.
        let _ = tokio::time::timeout(wait, changed).await;
        let view = views.borrow().clone();
        Ok(view)
    }

    // --- hosts -----------------------------------------------------------------------------

    pub async fn probe_host(&self, host: &str, port: u16) -> Result<HostKeyView> {
        let part = self.controller()?;
        let address = HostAddress::parse(host, part.allow_loopback)?;
        let HostKey { public_key, fingerprint } = part.hosts.probe(&address, port).await?;
        let pinned = part.hosts.list().await?;
        let known = pinned.iter().any(|pinned| {
            pinned.host == address && pinned.port == port && pinned.key.public_key == public_key
        });
        Ok(HostKeyView { host: address.to_string(), port, public_key, fingerprint, known })
    }

    /// Pins the key with this fingerprint ("SHA256:…"), if it is the one that the host shows now.
    pub async fn approve_host(&self, host: &str, port: u16, fingerprint: &str) -> Result<ApprovedHost> {
        let part = self.controller()?;
        let address = HostAddress::parse(host, part.allow_loopback)?;
        part.hosts.approve(&address, port, Some(fingerprint)).await
    }

    pub async fn approved_hosts(&self) -> Result<Vec<ApprovedHost>> {
        self.controller()?.hosts.list().await
    }

    pub async fn forget_host(&self, host: &str, port: u16) -> Result<()> {
        let part = self.controller()?;
        let address = HostAddress::parse(host, part.allow_loopback)?;
        part.hosts.forget(&address, port).await
    }
}

async fn start_controller(
    settings: &Settings,
    data: &Arc<DataDirectory>,
    node_id: &NodeId,
    key: Arc<NodeKey>,
    engine: Option<Engine>,
    stop: &CancellationToken,
) -> Result<(ControllerPart, tokio::task::JoinHandle<()>)> {
    let store = Store::open(data.clone()).await?;
    let health =
        HealthSettings { stale_threshold: settings.stale_threshold, sweep_interval: settings.sweep_interval };
    let controller =
        Controller::start(node_id.clone(), key, data.path(), store.clone(), health, stop.clone()).await?;
    let local = match &engine {
        Some(engine) => Some(supervisor(settings, data, node_id, engine.clone())?),
        None => None,
    };
    let (nodes, streams) = Nodes::new(controller.clone(), local.clone());

    let intake = Intake::new(stop.clone());
    match &settings.cluster_listen {
        Listen::Tcp(port) => {
            let address = intake.listen_loopback(*port).await?;
            tracing::info!(%address, "the cluster port listens");
        }
        Listen::Unix(path) => intake.listen_unix(path)?,
    }
    intake.take_links(streams.links);
    let served = ControllerApi::spawn(controller.clone(), nodes.clone(), intake);

    if let Some(supervisor) = local {
        let capacity = Capacity::new(settings, engine);
        let interval = settings.heartbeat_interval;
        let local = LocalNode { controller: controller.clone(), supervisor, capacity, interval };
        local.register().await?;
        local.spawn(stop.clone());
    }
    let executions =
        Executions::start(store.clone(), controller.clone(), nodes.clone(), streams.reports, stop.clone())
            .await?;

    let journal: Arc<dyn Journal> = Arc::new(StoreJournal(store.clone()));
    let deploy = Arc::new(deploy_settings::of(&settings.deploy, controller.cluster_id()));
    let allow_loopback = deploy.allow_loopback;
    let hosts = Hosts::new(deploy, journal.clone());
    let membership = ClusterMembership {
        controller: controller.clone(),
        nodes: nodes.clone(),
        executions: executions.clone(),
        hosts: hosts.clone(),
    };
    for record in controller.records().await? {
        if let Err(error) = membership.restore_link(&record, allow_loopback) {
            tracing::error!(node_id = %record.node_id, error = %error.chain(), "its link cannot be restored");
        }
    }
    let deployments = Deployments::new(hosts.clone(), journal, Arc::new(membership));
    let resumed = deployments.resume_unfinished().await?;
    if resumed > 0 {
        tracing::info!(resumed, "deployments are taken up again");
    }
    let part = ControllerPart { store, controller, nodes, executions, deployments, hosts, allow_loopback };
    Ok((part, served))
}

async fn start_worker(
    settings: &Settings,
    data: &Arc<DataDirectory>,
    node_id: &NodeId,
    key: Arc<NodeKey>,
    engine: Option<Engine>,
    stop: &CancellationToken,
) -> Result<(watch::Receiver<JoinState>, Vec<tokio::task::JoinHandle<()>>)> {
    let missing = |what: &str| Error::new(ErrorCode::ConfigInvalid, what.to_owned());
    let controller = settings.controller.clone().ok_or_else(|| missing("a worker needs a controller"))?;
    let engine = engine.ok_or_else(|| {
        missing("spec.node.type is orchestrator, which runs no containers, and spec.cluster.role is worker")
            .remedy("set spec.node.type to edge")
    })?;
    let supervisor = supervisor(settings, data, node_id, engine.clone())?;
    let session = Arc::new(arc_swap::ArcSwapOption::empty());
    let intake = Intake::new(stop.clone());
    let address = match &settings.cluster_listen {
        Listen::Unix(path) => {
            publish_key(&path.with_file_name(PUBLIC_KEY_FILE), &key)?;
            intake.listen_unix(path)?;
            format!("unix://{}", path.display())
        }
        Listen::Tcp(port) => format!("http://{}", intake.listen_loopback(*port).await?),
    };
    let nudge = Arc::new(Notify::new());
    let served =
        WorkerApi::spawn(node_id.clone(), session.clone(), supervisor.clone(), nudge.clone(), intake);
    let task = WorkerTask {
        applicant: Applicant {
            node_id: node_id.clone(),
            role: Role::Worker,
            key,
            address,
            controller_key: controller.public_key,
        },
        controller,
        session,
        supervisor,
        nudge,
        capacity: Capacity::new(settings, Some(engine)),
        heartbeat_interval: settings.heartbeat_interval,
        token_refresh_margin: settings.token_refresh_margin,
    };
    let (state, joined) = task.spawn(stop.clone());
    Ok((state, vec![served, joined]))
}

fn supervisor(
    settings: &Settings,
    data: &DataDirectory,
    node_id: &NodeId,
    engine: Engine,
) -> Result<Supervisor> {
    // Both addresses are the node's own and come from its environment.
    let env = ["AEGIS_REMOTE_LLM_URL", "AEGIS_LOCAL_LLM_URL"].into_iter().filter_map(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name.to_owned(), value))
    });
    let network = settings.container_network.clone();
    Supervisor::recover(data, node_id.clone(), engine, settings.policy.clone(), network, env.collect())
}

/// As configured, else the one that was generated once.
fn node_id(settings: &Settings, data: &Path) -> Result<NodeId> {
    if let Some(id) = &settings.node_id {
        return Ok(id.clone());
    }
    let path = data.join(NODE_ID_FILE);
    let failed = |e: std::io::Error| {
        Error::new(ErrorCode::Storage, format!("the node id {} cannot be kept", path.display())).source(e)
    };
    match fs::read_to_string(&path) {
        Ok(text) => NodeId::parse(text.trim()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let minted = NodeId::mint();
            fs::write(&path, minted.as_str()).map_err(failed)?;
            Ok(minted)
        }
        // A fresh id would make another node of this one.
        Err(e) => Err(failed(e)),
    }
}

/// For the deployment, which reads it over its verified connection and pins it.
fn publish_key(path: &Path, key: &NodeKey) -> Result<()> {
    let text = base64::engine::general_purpose::STANDARD.encode(key.public().as_bytes());
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path)).map_err(|e| {
        Error::new(ErrorCode::Storage, format!("the public key {} cannot be written", path.display()))
            .source(e)
    })
}
