//! A node of the other implementation, generated from the published tables alone, without any extension.

use aegis_proto::published::aegis::cluster::{
    v1 as theirs, v1::node_cluster_service_client::NodeClusterServiceClient,
};
use cluster_core::{identity::NodeKey, types::node::PeerStatus};
use tonic::{Request, transport::Channel};

use crate::support::{Cluster, reason};

const COMPATIBLE: &str = "role: controller\n    allow_unsealed_context: true";

struct Theirs {
    rpc: NodeClusterServiceClient<Channel>,
    key: NodeKey,
    name: &'static str,
    address: String,
    token: String,
}

impl Theirs {
    async fn new(cluster: &Cluster, name: &'static str) -> Self {
        let rpc = NodeClusterServiceClient::connect(cluster.endpoint()).await.unwrap();
        let address = format!("http://{}", cluster.node_address);
        Self { rpc, key: NodeKey::generate().unwrap(), name, address, token: String::new() }
    }

    async fn attest(&mut self, enrolment_token: &str) -> Result<(), tonic::Status> {
        let challenge = self
            .rpc
            .attest_node(theirs::AttestNodeRequest {
                node_id: self.name.into(),
                role: theirs::NodeRole::Worker.into(),
                public_key: self.key.public().as_bytes().to_vec(),
                capabilities: Some(theirs::NodeCapabilities { cpu_cores: 2, ..Default::default() }),
                grpc_address: self.address.clone(),
                enrolment_token: enrolment_token.into(),
            })
            .await?
            .into_inner();
        let admitted = self
            .rpc
            .challenge_node(theirs::ChallengeNodeRequest {
                challenge_id: challenge.challenge_id,
                node_id: self.name.into(),
                challenge_signature: self.key.sign(&challenge.challenge_nonce).to_vec(),
                bootstrap_proof: None,
            })
            .await?
            .into_inner();
        assert!(admitted.expires_at.is_some());
        self.token = admitted.node_security_token;
        Ok(())
    }

    fn seal<T>(
        &self,
        inner: &impl prost::Message,
        wrap: impl FnOnce(theirs::SealNodeEnvelope) -> T,
    ) -> Request<T> {
        let payload = inner.encode_to_vec();
        let signature = self.key.sign(&payload).to_vec();
        let node_security_token = self.token.clone();
        let mut request =
            Request::new(wrap(theirs::SealNodeEnvelope { node_security_token, signature, payload }));
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        request
    }

    async fn register(&mut self) -> Result<theirs::RegisterNodeResponse, tonic::Status> {
        let inner = theirs::RegisterNodeInner {
            node_id: self.name.into(),
            capabilities: Some(theirs::NodeCapabilities { cpu_cores: 2, ..Default::default() }),
            grpc_address: self.address.clone(),
        };
        let request = self.seal(&inner, |e| theirs::RegisterNodeRequest { envelope: Some(e) });
        self.rpc.register_node(request).await.map(tonic::Response::into_inner)
    }

    async fn beat(&mut self, name: &str) -> Result<theirs::NodeHeartbeatResponse, tonic::Status> {
        let inner = theirs::NodeHeartbeatInner { node_id: name.into(), ..Default::default() };
        let request = self.seal(&inner, |e| theirs::NodeHeartbeatRequest { envelope: Some(e) });
        self.rpc.heartbeat(request).await.map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn it_attests_registers_beats_and_says_goodbye() {
    let cluster = Cluster::start_with(COMPATIBLE).await;
    let grant = cluster.token(Some("theirs")).await;
    let mut node = Theirs::new(&cluster, "theirs").await;
    assert_eq!(reason(&node.attest("").await.unwrap_err()), "EnrolmentInvalid", "not without a token");
    node.attest(&grant.token).await.unwrap();
    assert!(node.register().await.unwrap().accepted);
    node.beat("theirs").await.unwrap();
    let peer = cluster.peer("theirs").await.unwrap();
    assert_eq!((peer.status, peer.sealed), (PeerStatus::Active, false), "it is marked as what it is");

    // A drain reaches it, and repeats: it has no way to acknowledge.
    let order = cluster_core::core::DrainOrder {
        deadline: std::time::Duration::from_secs(1),
        on_deadline: cluster_core::types::node::OnDeadline::Leave,
    };
    cluster.core().drain(&cluster_core::types::ids::NodeId::parse("theirs").unwrap(), order).await.unwrap();
    for _ in 0..2 {
        let answer = node.beat("theirs").await.unwrap();
        let command = answer.pending_commands[0].command.clone();
        assert_eq!(command, Some(theirs::node_command::Command::Drain(theirs::DrainCommand { drain: true })));
    }

    // It may speak for itself alone, and with its key alone.
    let _other = cluster.member("ours").await;
    assert_eq!(reason(&node.beat("ours").await.unwrap_err()), "NotYours");
    let stolen = std::mem::replace(&mut node.key, NodeKey::generate().unwrap());
    assert_eq!(reason(&node.beat("theirs").await.unwrap_err()), "InvalidSignature");
    node.key = stolen;

    let inner = theirs::DeregisterNodeInner { node_id: "theirs".into(), reason: "off".into() };
    let goodbye = node.seal(&inner, |e| theirs::DeregisterNodeRequest { envelope: Some(e) });
    assert!(node.rpc.deregister_node(goodbye).await.unwrap().into_inner().accepted);
    assert_eq!(cluster.peer("theirs").await.unwrap().status, PeerStatus::Offline);
    node.attest("").await.expect("its key brings it back");
    node.register().await.unwrap();
}

#[tokio::test]
async fn without_the_compatible_mode_it_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let grant = cluster.token(None).await;
    let mut node = Theirs::new(&cluster, "theirs").await;
    let status = node.attest(&grant.token).await.unwrap_err();
    assert_eq!(reason(&status), "InvalidSignature");
    assert!(status.message().contains("bare challenge"), "{}", status.message());
}

#[tokio::test]
async fn a_node_of_ours_is_not_talked_down_to_it() {
    let cluster = Cluster::start_with(COMPATIBLE).await;
    let ours = cluster.member("ours").await;
    // Somebody who has its key, and would rather not be bound by the seal.
    let mut theirs = Theirs::new(&cluster, "ours").await;
    theirs.token = crate::support::sealed_heartbeat(&ours).into_inner().envelope.unwrap().node_security_token;
    assert_eq!(reason(&theirs.beat("ours").await.unwrap_err()), "UnsealedContext");
}
