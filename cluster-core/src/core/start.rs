//! The wiring: which parts a controller and a worker are made of, in the order in which they need each
//! other.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use aegis_config::{Settings, applied::AppliedConfig, cluster_port::Listen, settings::GRPC_PORT};
use aegis_controller::{
    access::{AccessTokens, TokenTable},
    agents::Agents,
    api::{
        nodes::{ControllerApi, ControllerApiSettings},
        operator::Operators,
        runtime::RuntimeApi,
    },
    audit::Audit,
    executions::{Executions, open::ExecutionContext, transfer::TransferSettings},
    handle::{Controller, HealthSettings},
    membership::Staleness,
    nodes::{
        NodeConnections,
        direct::{DirectAccess, Plain},
    },
    secrets::Secrets,
};
use aegis_deploy::{Deployments, HostAccess, Journal, Rollouts};
use aegis_engine::{Engine, facts::EngineFacts, nvidia_smi::FoundGpus};
use aegis_fs::DataDirectory;
use aegis_identity::{KeyFile, NodeKey};
use aegis_metrics::Metrics;
use aegis_rpc::{
    controller_client::{AdvertisedAddress, JoiningNode},
    known_controller::KnownController,
    listener::Intake,
    node_worker::NodeWorker,
    tls::Credentials,
};
use aegis_store::Store;
use aegis_types::{
    clock::Clock,
    error::{Error, ErrorCode, Result},
    ids::NodeId,
    node::Role,
};
use aegis_worker::{api::WorkerApi, capacity::Capacity, membership::WorkerTask, supervisor::Supervisor};
use base64::Engine as _;
use futures::FutureExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{ControllerPart, WorkerPart, certificates};
use crate::{
    adapters::{deploy_settings, journal::StoreJournal, membership::ClusterMembership},
    default_port::DefaultPort,
    local_node::LocalNode,
    node_events,
};

/// File of the node's id, for nodes whose configuration has no name.
const NODE_ID_FILE: &str = "node-id";
/// File of the node's public key, next to its socket. A deployment reads it.
const PUBLIC_KEY_FILE: &str = "node.pub";

/// Parts of a node in every role.
pub(super) struct Node<'a> {
    pub settings: &'a Settings,
    pub data: &'a Arc<DataDirectory>,
    pub id: &'a NodeId,
    pub keys: Arc<KeyFile>,
    /// `None` on a node that runs no containers.
    pub engine: Option<Engine>,
    pub facts: Option<EngineFacts>,
    pub applied: &'a AppliedConfig,
    pub metrics: Metrics,
}

/// Opens the node's key. A worker's own is bound to its id. A file that the operator names is used as it is,
/// and so is the key of a controller, which its workers have pinned.
pub(super) fn keys(settings: &Settings, data: &Path, node_id: &NodeId) -> Result<KeyFile> {
    let own = data.join("node-keypair.pem");
    match &settings.node_keypair_path {
        Some(path) => KeyFile::open(path),
        None if settings.role.is_controller() => KeyFile::open(&own),
        None => KeyFile::open_of(&own, node_id, &settings.revoked_keys),
    }
}

pub(super) async fn start_controller(
    node: Node<'_>,
    table: TokenTable,
    stop: &CancellationToken,
) -> Result<(ControllerPart, Vec<tokio::task::JoinHandle<()>>)> {
    let Node { settings, data, id: node_id, keys, engine, facts, applied, metrics } = node;
    let offered = engine.clone();
    let store = Store::open(data.clone()).await?;
    let health = HealthSettings {
        staleness: Staleness { threshold: settings.stale_threshold, is_set: settings.is_stale_threshold_set },
        sweep_interval: settings.sweep_interval,
        clock: Clock::default(),
    };
    let transit = settings.transit.clone();
    let controller = Controller::start(
        node_id.clone(),
        keys.current(),
        data.path(),
        store.clone(),
        health,
        transit,
        stop.clone(),
    )
    .await?;
    let local = match &engine {
        Some(engine) => Some(supervisor(settings, data, node_id, engine.clone())?),
        None => None,
    };
    let tls = certificates::of_controller(settings, data.path(), node_id, stop)?;
    let access = DirectAccess {
        credentials: tls.credentials.clone(),
        allow_insecure: settings.cluster_port.allow_insecure,
        plain: Plain::default(),
    };
    let local_worker = local.clone().map(|supervisor| Arc::new(supervisor) as Arc<dyn NodeWorker>);
    let (nodes, streams) = NodeConnections::new(controller.clone(), local_worker, access);

    let intake = Intake::new(metrics.clone(), stop.clone());
    let endpoint = match &settings.cluster_port.listen {
        Listen::Tcp { address, any_port } => {
            let listen = |address| intake.listen_tcp(address, tls.credentials.clone());
            let address = listen_cluster(data, *address, *any_port, listen).await?;
            tracing::info!(%address, tls = tls.credentials.is_some(), "the cluster port listens");
            let url = settings.cluster_port.address(address).map(|url| url.to_string());
            // Bound to every address and advertised as none: the one that nodes use is theirs to know.
            let url = url.unwrap_or_else(|| format!("{}://{address}", settings.cluster_port.scheme()));
            url.trim_end_matches('/').to_owned()
        }
        Listen::Unix(path) => {
            intake.listen_unix(path)?;
            format!("unix://{}", path.display())
        }
    };
    listen_published(settings, &intake, tls.credentials.as_ref()).await?;
    intake.take_links(streams.links);
    let access = AccessTokens::open(store.clone(), table.clone()).await?;
    let (audit, audited) = Audit::start(store.clone(), settings.audit, metrics.clone(), stop.clone()).await?;
    let operators = Operators { tokens: table, audit: Some(audit.clone()) };
    let api = ControllerApiSettings {
        allow_unsealed_context: settings.allow_unsealed_context,
        operators: operators.clone(),
        endpoint: endpoint.clone(),
        authority: tls.authority.clone(),
    };
    let served = ControllerApi::new(controller.clone(), nodes.clone(), metrics.clone(), api);
    node_events::spawn(
        controller.clone(),
        nodes.clone(),
        tls.credentials.clone(),
        metrics.clone(),
        stop.clone(),
    );

    if let Some(supervisor) = local {
        let capacity = Capacity::new(settings, facts, FoundGpus::spawn(stop.clone()));
        supervisor.set_capacity(capacity.clone());
        applied.listen(running_parts(&capacity, &supervisor));
        let applied = applied.clone();
        let local =
            LocalNode { controller: controller.clone(), nodes: nodes.clone(), supervisor, capacity, applied };
        local.register().await?;
        local.spawn(stop.clone());
    }
    // A controller that runs no containers itself may have an engine all the same.
    let offered = match &offered {
        Some(engine) => Some(engine.clone()),
        None => Engine::new(settings.docker_socket.as_deref()).ok(),
    };
    let sending = TransferSettings {
        data: data.path().to_owned(),
        roots: settings.deploy.workspace_roots.clone().unwrap_or_default(),
        engine: offered.clone(),
    };
    let strategy = settings.placement;
    controller.with_placement(move |membership| membership.set_strategy(strategy)).await?;
    let agents = Agents::new(store.clone(), applied.clone());
    let secrets = Secrets::new(store.clone(), data.path());
    let mut deploy = deploy_settings::of(&settings.deploy, controller.cluster_id(), data.path())?;
    let context = ExecutionContext {
        store: store.clone(),
        agents: agents.clone(),
        controller: controller.clone(),
        nodes: nodes.clone(),
        secrets: secrets.clone(),
        logins: deploy.registries.clone(),
        settings: settings.executions,
        hooks: settings.hooks.clone(),
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let executions = Executions::start(context, sending, streams.reports).await?;
    let runtime = RuntimeApi::new(executions.clone(), operators, metrics, stop.clone());
    // Connections that came in meanwhile have waited in the intake.
    let served = served.spawn(intake, Some(runtime));

    let stored = Arc::new(StoreJournal { store: store.clone(), secrets: secrets.clone() });
    let journal: Arc<dyn Journal> = stored.clone();
    deploy.direct = certificates::direct_offer(settings, &tls, &endpoint);
    deploy.engine = offered;
    deploy.heartbeat_interval = settings.heartbeat_interval;
    let deploy = Arc::new(deploy);
    let allow_loopback = deploy.allow_loopback;
    let hosts = HostAccess::new(deploy, journal.clone());
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
    let rollouts = Rollouts::new(deployments.clone(), stored);
    let resumed = rollouts.resume_unfinished().await?;
    if resumed > 0 {
        tracing::info!(resumed, "rollouts are taken up again");
    }
    let used = access.spawn(stop.clone());
    let part = ControllerPart {
        store,
        secrets,
        access,
        audit,
        agents,
        controller,
        nodes,
        executions,
        deployments,
        rollouts,
        hosts,
        allow_loopback,
        endpoint,
        tls,
    };
    Ok((part, vec![served, audited, used]))
}

pub(super) async fn start_worker(
    node: Node<'_>,
    stop: &CancellationToken,
    end: &CancellationToken,
) -> Result<(WorkerPart, Vec<tokio::task::JoinHandle<()>>)> {
    let Node { settings, data, id: node_id, keys, engine, facts, applied, metrics } = node;
    let missing = |what: &str| Error::new(ErrorCode::ConfigInvalid, what.to_owned());
    let controller = settings.controller.clone().ok_or_else(|| missing("a worker needs a controller"))?;
    let engine = engine.ok_or_else(|| {
        missing("spec.node.type is orchestrator, which runs no containers, and spec.cluster.role is worker")
            .remedy("set spec.node.type to edge")
    })?;
    let supervisor = supervisor(settings, data, node_id, engine)?;
    let session = Arc::new(arc_swap::ArcSwapOption::empty());
    let intake = Intake::new(metrics.clone(), stop.clone());
    let tls = certificates::of_worker(settings, &controller, data.path(), node_id, stop)?;
    let port = &settings.cluster_port;
    let beside_socket = match &port.listen {
        Listen::Unix(path) => Some(path.with_file_name(PUBLIC_KEY_FILE)),
        Listen::Tcp { .. } => None,
    };
    if let Some(path) = settings.public_key_path.clone().or(beside_socket) {
        publish_key(&path, &keys.current())?;
    }
    let address = match &port.listen {
        Listen::Unix(path) => {
            intake.listen_unix(path)?;
            AdvertisedAddress::Fixed(format!("unix://{}", path.display()))
        }
        Listen::Tcp { address, any_port } => {
            let prove = |address| intake.listen_proving(address, node_id.clone(), keys.clone());
            let listen = |address| intake.listen_tcp(address, tls.credentials().cloned());
            let bound = match settings.prove_key {
                true => listen_cluster(data, *address, *any_port, prove).await?,
                false => listen_cluster(data, *address, *any_port, listen).await?,
            };
            match port.address(bound) {
                Some(url) => AdvertisedAddress::Fixed(url.as_str().trim_end_matches('/').to_owned()),
                None => AdvertisedAddress::AsSeen { scheme: port.scheme(), port: bound.port() },
            }
        }
    };
    if !settings.prove_key {
        listen_published(settings, &intake, tls.credentials()).await?;
    }
    let nudge = Arc::new(Notify::new());
    let served = WorkerApi::spawn(
        node_id.clone(),
        session.clone(),
        supervisor.clone(),
        applied.clone(),
        nudge.clone(),
        metrics,
        intake,
    );
    let capacity = Capacity::new(settings, facts, FoundGpus::spawn(stop.clone()));
    supervisor.set_capacity(capacity.clone());
    applied.listen(running_parts(&capacity, &supervisor));
    let task = WorkerTask {
        applicant: JoiningNode {
            node_id: node_id.clone(),
            role: Role::Worker,
            keys,
            address,
            known: Arc::new(KnownController::open(data.path(), controller.public_key)?),
            signs_bare_challenge: settings.sign_bare_challenge,
        },
        controller,
        tls: tls.clone(),
        session,
        supervisor,
        nudge,
        end: end.clone(),
        capacity,
        applied: applied.clone(),
        data: data.path().to_owned(),
    };
    let (member, joined) = task.spawn(stop.clone());
    let credentials = tls.credentials().cloned();
    Ok((WorkerPart { member, credentials }, vec![served, joined]))
}

/// Binds the cluster port, or another port where the default port is taken and no port was configured.
async fn listen_cluster<F: Future<Output = Result<SocketAddr>>>(
    data: &DataDirectory,
    address: SocketAddr,
    any_port: bool,
    listen: impl Fn(SocketAddr) -> F,
) -> Result<SocketAddr> {
    if !any_port {
        return listen(address).await;
    }
    let at = |port| SocketAddr::new(address.ip(), port);
    let bound = |bound: SocketAddr| (bound, bound.port());
    let ports = DefaultPort::new(data, "cluster", address.port());
    ports.bind(|port| listen(at(port)).map(move |listened| listened.map(bound))).await
}

/// Listens on the second port of the published documents, with the same services. Aegis itself does not need the port:
/// unless it is configured, another program may have it.
async fn listen_published(
    settings: &Settings,
    intake: &Intake,
    credentials: Option<&Credentials>,
) -> Result<()> {
    let Listen::Tcp { address, .. } = &settings.cluster_port.listen else { return Ok(()) };
    let port = settings.grpc_port.unwrap_or(GRPC_PORT);
    match intake.listen_tcp(SocketAddr::new(address.ip(), port), credentials.cloned()).await {
        Ok(address) => tracing::info!(%address, "listening for the published port's calls"),
        Err(error) if settings.grpc_port.is_none() => {
            tracing::info!(%error, "port {GRPC_PORT} is another's: calls come in on the cluster port alone");
        }
        Err(error) => return Err(error),
    }
    Ok(())
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

/// Returns the function that applies changed settings to the parts that run already.
fn running_parts(capacity: &Capacity, supervisor: &Supervisor) -> impl Fn(&Settings) + Send + Sync + use<> {
    let (capacity, supervisor) = (capacity.clone(), supervisor.clone());
    move |settings| {
        capacity.state(settings);
        supervisor.set_policy(settings.policy.clone());
    }
}

/// Returns the id of this node: the configured one, or the one that was generated once.
pub(super) fn node_id(settings: &Settings, data: &Path) -> Result<NodeId> {
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

/// Writes the public key for the deployment, which reads it over its verified connection and pins it.
fn publish_key(path: &Path, key: &NodeKey) -> Result<()> {
    let text = base64::engine::general_purpose::STANDARD.encode(key.public().as_bytes());
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path)).map_err(|e| {
        Error::new(ErrorCode::Storage, format!("the public key {} cannot be written", path.display()))
            .source(e)
    })
}
