//! A controller that runs no containers, and nodes that consist of the protocol's client side alone.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use aegis_proto::aegis::cluster::{v1 as pb, v1::node_cluster_service_client::NodeClusterServiceClient};
use cluster_core::{
    Core,
    config::{self, Overrides, Settings, endpoint::Endpoint},
    controller::{
        access::TokenTable,
        events::{EventId, NodeEvent},
    },
    core::{EnrolmentGrant, EnrolmentOrder, PeerFilter},
    fs::DataDirectory,
    identity::KeyFile,
    rpc::{
        controller_client::{AdvertisedAddress, Beat, ControllerClient, JoiningNode, Session},
        controller_line::LinkTls,
        known_controller::KnownController,
    },
    types::{
        error::{Error, Result},
        execution::order::Held,
        heartbeat::Command,
        ids::{CommandId, NodeId},
        node::{Capabilities, PeerView, Role},
        resources::Amounts,
    },
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use zeroize::Zeroizing;

pub const OPERATOR_TOKEN: &str = "operators-bearer-token";
/// Heartbeat interval that a node announces, unless the test sets another.
pub const INTERVAL: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(20);

/// Controller whose data directory outlives its restarts.
pub struct Cluster {
    core: Option<Core>,
    cluster: String,
    node_type: &'static str,
    directory: TempDir,
    /// Address of a listener that nodes announce: connections are accepted, and nothing more.
    pub node_address: SocketAddr,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with("role: controller").await
    }

    /// Starts with these lines below `spec.cluster`, indented by four; they include the role.
    pub async fn start_with(cluster: &str) -> Self {
        Self::start_as("orchestrator", cluster).await
    }

    /// Starts a controller that runs containers itself, on this machine's engine.
    pub async fn start_running(cluster: &str) -> Self {
        Self::start_as("hybrid", cluster).await
    }

    async fn start_as(node_type: &'static str, cluster: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let core = Some(start(directory.path(), node_type, cluster).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node_address = listener.local_addr().unwrap();
        // Answers the controller's pings, and no calls.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok(_)) = connection.accept().await {}
                });
            }
        });
        Self { core, cluster: cluster.to_owned(), node_type, directory, node_address }
    }

    pub fn core(&self) -> &Core {
        self.core.as_ref().expect("it runs")
    }

    /// Returns the controller's data directory.
    pub fn data(&self) -> &Path {
        self.directory.path()
    }

    pub async fn restart(&mut self) {
        self.core.take().expect("it runs").shutdown().await;
        self.core = Some(start(self.directory.path(), self.node_type, &self.cluster).await);
    }

    pub fn endpoint(&self) -> String {
        self.core().controller_endpoint().unwrap()
    }

    pub async fn token(&self, node_id: Option<&str>) -> EnrolmentGrant {
        self.token_for(Role::Worker, node_id).await
    }

    pub async fn token_for(&self, role: Role, node_id: Option<&str>) -> EnrolmentGrant {
        let node_id = node_id.map(|id| NodeId::parse(id).unwrap());
        let order = EnrolmentOrder { node_id, role, lifetime: Duration::from_secs(60), tags: None };
        self.core().create_enrolment_token(order).await.unwrap()
    }

    /// Returns a node that has joined.
    pub async fn member(&self, name: &str) -> Node {
        self.member_as(name, Role::Worker).await
    }

    pub async fn member_as(&self, name: &str, role: Role) -> Node {
        let token = self.token_for(role, Some(name)).await.token;
        let mut node = Node::new(self, name, role).await;
        node.join(Some(&token)).await.unwrap();
        node
    }

    pub async fn peer(&self, name: &str) -> Option<PeerView> {
        let mut peers = self.core().peers(PeerFilter::default()).await.unwrap();
        peers.retain(|peer| peer.node_id.as_str() == name);
        peers.pop()
    }

    pub fn events(&self) -> Vec<NodeEvent> {
        self.core().node_events(EventId { epoch: 0, sequence: 0 }, 1_000).unwrap().events
    }
}

async fn start(data: &Path, node_type: &str, cluster: &str) -> Core {
    let config = config::parse(&format!(
        "spec:\n  node: {{id: home, type: {node_type}}}\n  cluster:\n    cluster_grpc_port: 0\n    {cluster}\n"
    ))
    .unwrap();
    let overrides = Overrides { data_dir: Some(data.to_owned()), ..Overrides::default() };
    let settings = Settings::of(&config, &overrides).unwrap();
    // The last handle on the directory may go a moment after the shutdown.
    let deadline = tokio::time::Instant::now() + LIMIT;
    let owned = loop {
        match DataDirectory::own(data) {
            Ok(owned) => break owned,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    Core::start(settings, Arc::new(owned), TokenTable::new(Some(OPERATOR_TOKEN))).await.unwrap()
}

pub struct Node {
    pub applicant: JoiningNode,
    pub client: ControllerClient,
    pub session: Option<Session>,
    /// Drain state that the node reports in its heartbeats.
    pub draining: bool,
    pub interval: Duration,
    directory: Arc<TempDir>,
}

impl Node {
    pub async fn new(cluster: &Cluster, name: &str, role: Role) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyFile::open(&directory.path().join("key.pem")).unwrap();
        let applicant = JoiningNode {
            node_id: NodeId::parse(name).unwrap(),
            role,
            keys: Arc::new(keys),
            address: AdvertisedAddress::Fixed(format!("http://{}", cluster.node_address)),
            known: Arc::new(KnownController::open(directory.path(), None).unwrap()),
            signs_bare_challenge: false,
        };
        let client = connect(cluster).await;
        Self {
            applicant,
            client,
            session: None,
            draining: false,
            interval: INTERVAL,
            directory: Arc::new(directory),
        }
    }

    /// Copies the key to another machine.
    pub async fn copy(&self, cluster: &Cluster) -> Self {
        Self {
            applicant: self.applicant.clone(),
            client: connect(cluster).await,
            session: None,
            draining: false,
            interval: INTERVAL,
            directory: self.directory.clone(),
        }
    }

    pub async fn reconnect(&mut self, cluster: &Cluster) {
        self.client = connect(cluster).await;
    }

    pub async fn attest(&mut self, token: Option<&str>) -> Result<()> {
        let token = token.map(|token| Zeroizing::new(token.to_owned()));
        let key = self.applicant.keys.current();
        self.session =
            Some(self.client.attest(&self.applicant, key, &capabilities(), token, &LinkTls::Off).await?);
        Ok(())
    }

    pub async fn join(&mut self, token: Option<&str>) -> Result<()> {
        self.attest(token).await?;
        let (client, session) = (&mut self.client, self.session.as_ref().unwrap());
        client.register(session, &self.applicant, &capabilities(), self.interval).await
    }

    pub fn session(&self) -> &Session {
        self.session.as_ref().expect("it has attested")
    }

    pub async fn beat(&mut self) -> Result<Vec<(CommandId, Command)>> {
        self.beat_acknowledging(Vec::new()).await
    }

    pub async fn beat_acknowledging(
        &mut self,
        acknowledged: Vec<CommandId>,
    ) -> Result<Vec<(CommandId, Command)>> {
        let draining = self.draining;
        let interval = self.interval;
        let beat = Beat { capabilities: capabilities(), acknowledged, draining, interval, ..Beat::default() };
        let session = self.session.as_ref().unwrap();
        self.client.heartbeat(session, &self.applicant.node_id, beat).await
    }
}

pub fn url_of(cluster: &Cluster) -> url::Url {
    url::Url::parse(&cluster.endpoint()).unwrap()
}

async fn connect(cluster: &Cluster) -> ControllerClient {
    ControllerClient::connect(&Endpoint::Http(url_of(cluster)), &LinkTls::Off).await.unwrap()
}

/// Opens a client below the real one, for calls that the real one would never send.
pub async fn raw(cluster: &Cluster) -> NodeClusterServiceClient<Channel> {
    NodeClusterServiceClient::connect(cluster.endpoint()).await.unwrap()
}

pub fn capabilities() -> Capabilities {
    Capabilities {
        total: Amounts { cpu_millicores: 4_000, memory_mb: 8_192, gpus: 0, vram_gb: 0 },
        engine: "docker 26.1.5".into(),
        ..Default::default()
    }
}

/// Returns the machine-readable reason of an error.
pub fn reason(status: &tonic::Status) -> String {
    use tonic_types::StatusExt as _;
    let info = status.get_error_details().error_info().cloned().expect("a refusal names its reason");
    assert_eq!(info.domain, "aegis.cluster");
    info.reason
}

pub fn refused<T: std::fmt::Debug>(result: Result<T>) -> cluster_core::types::error::ErrorCode {
    result.map_err(|error: Error| error.code()).expect_err("it is refused")
}

/// Returns a heartbeat as on the wire: metadata and envelope.
pub fn sealed_heartbeat(node: &Node) -> tonic::Request<pb::NodeHeartbeatRequest> {
    sealed_heartbeat_with(node, &[])
}

/// Returns a heartbeat of a node that reports these executions.
pub fn sealed_heartbeat_with(node: &Node, held: &[Held]) -> tonic::Request<pb::NodeHeartbeatRequest> {
    let running = held.iter().map(|held| pb::RunningExecution {
        execution_id: held.execution_id.to_string(),
        attempt: held.attempt,
        last_sequence: held.last_sequence,
        gpu_uuids: Vec::new(),
    });
    let inner = pb::NodeHeartbeatInner {
        node_id: node.applicant.node_id.to_string(),
        running: running.collect(),
        ..Default::default()
    };
    node.session()
        .sealer
        .seal(inner, |envelope| pb::NodeHeartbeatRequest { envelope: Some(envelope) })
        .unwrap()
}
