//! A worker that is served in this process, with calls sealed as by its controller.

use std::{os::unix::net::UnixListener, path::Path, sync::Arc};

use aegis_proto::aegis::cluster::{v1 as pb, v1::node_cluster_service_client::NodeClusterServiceClient};
use arc_swap::ArcSwapOption;
use cluster_core::{
    config::{self, Overrides, Settings, applied::AppliedConfig, schema::Policy},
    engine::Engine,
    fs::DataDirectory,
    identity::{Claims, NodeKey, TOKEN_LIFETIME_SECS, TokenSigner},
    metrics::Metrics,
    rpc::{
        Sealer,
        controller_client::{AdvertisedAddress, Session},
        listener::Intake,
    },
    types::{
        ids::{ClusterId, NodeId, SessionId},
        node::Role,
    },
    worker::{api::WorkerApi, supervisor::Supervisor},
};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::support::{Cluster, Node, url_of};

/// Node that serves a worker's services. Its engine never answers, and is never asked.
pub struct Served {
    pub session: Arc<Session>,
    pub applied: AppliedConfig,
    pub address: String,
    _directory: TempDir,
    _engine: UnixListener,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Served {
    /// Joins as `a`, and serves.
    pub async fn start(cluster: &Cluster) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let intake = Intake::new(Metrics::default(), stop.clone());
        let bound = intake.listen_tcp("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
        let address = format!("http://{bound}");

        let mut node = Node::new(cluster, "a", Role::Worker).await;
        node.applicant.address = AdvertisedAddress::Fixed(address.clone());
        let grant = cluster.token(Some("a")).await;
        node.attest(Some(&grant.token)).await.unwrap();
        let current = Arc::new(ArcSwapOption::from(node.session.take().map(Arc::new)));
        let session = current.load_full().unwrap();

        let socket = directory.path().join("engine.sock");
        let engine_socket = UnixListener::bind(&socket).unwrap();
        let engine = Engine::new(Some(&socket)).unwrap();
        let data = DataDirectory::own(&directory.path().join("data")).unwrap();
        let own_id = node.applicant.node_id.clone();
        let policy = Policy { max_output_mb: Some(1), ..Policy::default() };
        let network = "bridge".to_owned();
        let supervisor = Supervisor::recover(&data, own_id.clone(), engine, policy, network, Vec::new());
        let (_, applied) = AppliedConfig::restore(settings(cluster, data.path()), data.path());
        let supervisor = supervisor.unwrap();
        let nudge = Arc::new(Notify::new());
        WorkerApi::spawn(own_id, current, supervisor, applied.clone(), nudge, Metrics::default(), intake);
        let own = crate::support::capabilities();
        node.client.register(&session, &node.applicant, &own, crate::support::INTERVAL).await.unwrap();
        Self { session, applied, address, _directory: directory, _engine: engine_socket, stop }
    }

    pub async fn raw(&self) -> NodeClusterServiceClient<Channel> {
        NodeClusterServiceClient::connect(self.address.clone()).await.unwrap()
    }

    pub fn version(&self) -> String {
        self.applied.report().0
    }
}

fn settings(cluster: &Cluster, data: &Path) -> Settings {
    let config = config::parse(&format!(
        "spec:\n  node: {{id: a, type: edge}}\n  cluster:\n    role: worker\n    controller:\n      \
         endpoint: {}\n",
        url_of(cluster)
    ));
    let overrides = Overrides { data_dir: Some(data.to_owned()), ..Overrides::default() };
    Settings::of(&config.unwrap(), &overrides).unwrap()
}

/// Seals as the controller itself would, with the keys in the controller's data directory.
pub struct Forge {
    key: Arc<NodeKey>,
    signer: TokenSigner,
    cluster_id: ClusterId,
    controller_id: NodeId,
}

impl Forge {
    pub fn of(cluster: &Cluster, session: &Session) -> Self {
        let (key, tokens) = (cluster.data().join("node-keypair.pem"), cluster.data().join("token-key.pem"));
        let controller_id = session.controller_id.clone();
        let context = pb::ListPeersInner::default();
        let sealed = session.sealer.seal(context, |envelope| envelope).unwrap().into_inner();
        let inner: pb::ListPeersInner = prost::Message::decode(sealed.payload.as_slice()).unwrap();
        let cluster_id = ClusterId::parse(inner.seal.unwrap().audience).unwrap();
        let key = Arc::new(NodeKey::load_or_create(&key).unwrap());
        assert_eq!(key.public(), session.controller_key);
        let signer = TokenSigner::local(&tokens, cluster_id.clone(), controller_id.clone()).unwrap();
        Self { key, signer, cluster_id, controller_id }
    }

    pub async fn sealer(
        &self,
        session: &Session,
        audience: &str,
        session_id: SessionId,
        epoch: u64,
    ) -> Sealer {
        let iat = session.clock.now_ms() / 1000;
        let claims = Claims {
            iss: self.controller_id.clone(),
            aud: self.cluster_id.clone(),
            sub: self.controller_id.clone(),
            role: Role::Controller,
            capabilities_hash: String::new(),
            cnf: self.key.public().thumbprint(),
            jti: uuid::Uuid::new_v4().to_string(),
            iat,
            nbf: iat,
            exp: iat + TOKEN_LIFETIME_SECS,
        };
        let token = self.signer.sign(&claims).await.unwrap();
        let (key, id) = (self.key.clone(), self.controller_id.clone());
        Sealer::new(key, id, audience.to_owned(), token, session_id, epoch, session.clock)
    }
}
