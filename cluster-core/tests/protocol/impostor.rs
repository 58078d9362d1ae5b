//! Another process at the controller's address: what a node signs for it, and what it believes of it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use aegis_proto::aegis::{
    cluster::{
        v1 as pb,
        v1::node_cluster_service_server::{NodeClusterService, NodeClusterServiceServer},
    },
    runtime::v1::ExecutionEvent,
};
use cluster_core::{
    config::endpoint::Endpoint,
    identity::{Admitted, Claims, NodeKey, PublicKey, TOKEN_LIFETIME_SECS, TokenSigner},
    rpc::{controller_client::ControllerClient, controller_line::LinkTls},
    types::{
        error::ErrorCode,
        ids::{ClusterId, NodeId},
        node::Role,
    },
};
use futures::stream::Empty;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    stand_in::unserved,
    support::{Cluster, Node, refused},
};

/// How the impostor proves that it is the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    None,
    /// A signature by a key of its own, which it names.
    Own,
    /// A signature by a key of its own, while it names the controller's.
    Stolen,
}

struct State {
    key: NodeKey,
    signer: TokenSigner,
    cluster_id: ClusterId,
    controller_id: NodeId,
    named: PublicKey,
    challenge: Vec<u8>,
    proof: Proof,
    attesting: Mutex<Option<pb::AttestNodeRequest>>,
    answers: Mutex<Vec<pb::ChallengeNodeRequest>>,
}

#[derive(Clone)]
struct Impostor(Arc<State>);

impl Impostor {
    fn new(data: &Path, cluster_id: &ClusterId, named: Option<PublicKey>, proof: Proof) -> Self {
        let controller_id = NodeId::parse("home").unwrap();
        let key = NodeKey::generate().unwrap();
        let tokens = data.join(format!("{}.pem", uuid::Uuid::new_v4()));
        let signer = TokenSigner::local(&tokens, cluster_id.clone(), controller_id.clone()).unwrap();
        let named = named.unwrap_or(key.public());
        Self(Arc::new(State {
            key,
            signer,
            cluster_id: cluster_id.clone(),
            controller_id,
            named,
            challenge: vec![1; 32],
            proof,
            attesting: Mutex::default(),
            answers: Mutex::default(),
        }))
    }

    fn challenging_with(mut self, challenge: Vec<u8>) -> Self {
        Arc::get_mut(&mut self.0).unwrap().challenge = challenge;
        self
    }

    /// Serves, and makes a node dial this impostor instead of its controller.
    async fn stand_before(&self, node: &mut Node) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let service = NodeClusterServiceServer::new(self.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        node.client = ControllerClient::connect(&Endpoint::Http(url), &LinkTls::Off).await.unwrap();
    }

    fn answers(&self) -> Vec<pb::ChallengeNodeRequest> {
        self.0.answers.lock().unwrap().clone()
    }

    async fn admit(&self, answer: pb::ChallengeNodeRequest) -> pb::ChallengeNodeResponse {
        let state = &self.0;
        let asked = state.attesting.lock().unwrap().clone().unwrap();
        let iat = cluster_core::types::clock::now_ms() / 1000;
        let claims = Claims {
            iss: state.controller_id.clone(),
            aud: state.cluster_id.clone(),
            sub: NodeId::parse(asked.node_id.clone()).unwrap(),
            role: Role::Worker,
            capabilities_hash: String::new(),
            cnf: PublicKey::parse(&asked.public_key).unwrap().thumbprint(),
            jti: "j".into(),
            iat,
            nbf: iat,
            exp: iat + TOKEN_LIFETIME_SECS,
        };
        let token = state.signer.sign(&claims).await.unwrap();
        let (token_keys, session_id) = (state.signer.key_set().unwrap(), uuid::Uuid::new_v4().to_string());
        let statement = Admitted {
            cluster_id: &state.cluster_id,
            controller_id: &state.controller_id,
            controller_key: &state.named,
            node_id: &claims.sub,
            nonce: &answer.nonce,
            session_id: &session_id,
            token: &token,
            token_keys: &token_keys,
            epoch: 1_000_000,
            certificate_chain: &[],
            ca_bundle: &[],
        }
        .statement();
        let signature = (state.proof != Proof::None).then(|| state.key.sign(&statement).to_vec());
        pb::ChallengeNodeResponse {
            node_security_token: token,
            session_id,
            controller_public_key: state.named.as_bytes().to_vec(),
            token_keys,
            epoch: 1_000_000,
            controller_signature: signature.unwrap_or_default(),
            ..Default::default()
        }
    }
}

type Events = Empty<Result<ExecutionEvent, Status>>;
type EdgeCommands = Empty<Result<pb::EdgeCommand, Status>>;

#[tonic::async_trait]
impl NodeClusterService for Impostor {
    type ForwardExecutionStream = Events;
    type ConnectEdgeStream = EdgeCommands;

    async fn attest_node(
        &self,
        request: Request<pb::AttestNodeRequest>,
    ) -> Result<Response<pb::AttestNodeResponse>, Status> {
        *self.0.attesting.lock().unwrap() = Some(request.into_inner());
        Ok(Response::new(pb::AttestNodeResponse {
            challenge_nonce: self.0.challenge.clone(),
            challenge_id: "x".into(),
            cluster_id: self.0.cluster_id.to_string(),
            controller_id: self.0.controller_id.to_string(),
            controller_time_ms: cluster_core::types::clock::now_ms(),
            protocol_version: 1,
        }))
    }

    async fn challenge_node(
        &self,
        request: Request<pb::ChallengeNodeRequest>,
    ) -> Result<Response<pb::ChallengeNodeResponse>, Status> {
        let answer = request.into_inner();
        self.0.answers.lock().unwrap().push(answer.clone());
        Ok(Response::new(self.admit(answer).await))
    }

    unserved! {
        register_node: pb::RegisterNodeRequest => pb::RegisterNodeResponse;
        heartbeat: pb::NodeHeartbeatRequest => pb::NodeHeartbeatResponse;
        deregister_node: pb::DeregisterNodeRequest => pb::DeregisterNodeResponse;
        route_execution: pb::RouteExecutionRequest => pb::RouteExecutionResponse;
        forward_execution: pb::ForwardExecutionRequest => Events;
        sync_config: pb::SyncConfigRequest => pb::SyncConfigResponse;
        push_config: pb::PushConfigRequest => pb::PushConfigResponse;
        list_peers: pb::ListPeersRequest => pb::ListPeersResponse;
        connect_edge: tonic::Streaming<pb::EdgeEvent> => EdgeCommands;
        rotate_edge_key: pb::RotateEdgeKeyRequest => pb::RotateEdgeKeyResponse;
        issue_enrollment_token: pb::IssueEnrollmentTokenRequest => pb::IssueEnrollmentTokenResponse;
    }
}

#[tokio::test]
async fn worker_signs_nothing_but_statements_of_its_own() {
    let cluster = Cluster::start().await;
    let data = tempfile::tempdir().unwrap();
    let elsewhere = ClusterId::parse("elsewhere").unwrap();
    let mut node = Node::new(&cluster, "a", Role::Worker).await;
    for length in [0, 1, 31, 33, 182] {
        let impostor = Impostor::new(data.path(), &elsewhere, None, Proof::Own);
        let impostor = impostor.challenging_with(vec![7; length]);
        impostor.stand_before(&mut node).await;
        assert_eq!(refused(node.attest(None).await), ErrorCode::InvalidArgument, "{length} bytes");
        assert!(impostor.answers().is_empty(), "{length} bytes: something was signed");
    }
    for compatible in [false, true] {
        node.applicant.signs_bare_challenge = compatible;
        let impostor = Impostor::new(data.path(), &elsewhere, None, Proof::None);
        impostor.stand_before(&mut node).await;
        assert_eq!(refused(node.attest(None).await), ErrorCode::ControllerMismatch, "nothing was proven");
        let [answer] = impostor.answers().try_into().unwrap();
        let key = node.applicant.keys.current().public();
        let signed = key.verify(&[1; 32], &answer.challenge_signature).is_ok();
        assert_eq!(signed, compatible, "the bare challenge is signed in the compatible mode alone");
        assert!(compatible || answer.challenge_signature.is_empty());
    }
}

#[tokio::test]
async fn another_process_at_the_port_is_no_controller() {
    let cluster = Cluster::start().await;
    let data = tempfile::tempdir().unwrap();
    let cluster_id = cluster.core().cluster_id().unwrap();
    let mut node = cluster.member("a").await;
    let ours = node.session().controller_key;
    let elsewhere = ClusterId::parse("elsewhere").unwrap();
    for (cluster_id, named, proof, answered) in [
        (&elsewhere, None, Proof::Own, 0),
        (&cluster_id, None, Proof::Own, 1),
        (&cluster_id, Some(ours), Proof::Stolen, 1),
        (&cluster_id, Some(ours), Proof::None, 1),
    ] {
        let impostor = Impostor::new(data.path(), cluster_id, named, proof);
        impostor.stand_before(&mut node).await;
        let token = cluster.token(Some("a")).await.token;
        for token in [None, Some(token.as_str())] {
            let refusal = refused(node.attest(token).await);
            assert_eq!(refusal, ErrorCode::ControllerMismatch, "{cluster_id} {named:?} {proof:?}");
        }
        assert_eq!(impostor.answers().len(), 2 * answered, "{cluster_id} {named:?} {proof:?}");
    }
    // A node that knows no controller yet knows the one that made its token.
    let mut newcomer = Node::new(&cluster, "b", Role::Worker).await;
    let impostor = Impostor::new(data.path(), &cluster_id, None, Proof::Own);
    impostor.stand_before(&mut newcomer).await;
    let token = cluster.token(Some("b")).await.token;
    assert_eq!(refused(newcomer.attest(Some(&token)).await), ErrorCode::ControllerMismatch);
    // With its operator's word it follows another, and then that one alone.
    node.applicant.known.forget().unwrap();
    impostor.stand_before(&mut node).await;
    node.attest(None).await.unwrap();
    node.reconnect(&cluster).await;
    assert_eq!(refused(node.attest(None).await), ErrorCode::ControllerMismatch);
    for member in [&mut node, &mut newcomer] {
        member.applicant.known.forget().unwrap();
        member.reconnect(&cluster).await;
    }
    node.join(None).await.unwrap();
    newcomer.join(Some(&token)).await.unwrap();
}
