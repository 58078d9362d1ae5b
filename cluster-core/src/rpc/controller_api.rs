//! What a controller serves to nodes: attestation, registration, heartbeats, goodbyes.
//!
//! Handlers convert, call the controller, and map the error. A refusal is logged once, here, with ids.

use std::{net::SocketAddr, pin::Pin};

use aegis_proto::aegis::{
    cluster::v1::{
        self as pb,
        node_cluster_service_server::{NodeClusterService, NodeClusterServiceServer},
    },
    runtime::v1::ExecutionEvent,
};
use futures::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    PROTOCOL_VERSION,
    convert::{capabilities_from_wire, command_to_wire, held_from_wire, role_from_wire},
    envelope::{Expected, Opened, Sealed, begin},
    listener::{Intake, MESSAGE_BYTES_MAX, Via, server},
    status::to_status,
};
use crate::{
    clock::now_ms,
    cluster::{
        controller::{ChallengeAnswer, Controller},
        membership::{Registration, Report},
        nodes::Nodes,
    },
    error::{Error, ErrorCode, Result},
    identity::{Attestation, EnrolmentToken, PublicKey, sha256},
    ids::{CommandId, NodeId, shown},
};

#[derive(Debug, Clone)]
pub struct ControllerApi {
    controller: Controller,
    nodes: Nodes,
}

impl ControllerApi {
    /// Serves until told to stop; the task ends with the last connection.
    pub fn spawn(controller: Controller, nodes: Nodes, intake: Intake) -> tokio::task::JoinHandle<()> {
        let service = NodeClusterServiceServer::new(Self { controller, nodes })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        tokio::spawn(async move {
            let (connections, stop): (_, CancellationToken) = intake.into_connections();
            let connections = futures::StreamExt::map(connections, Ok::<_, std::io::Error>);
            let served = server()
                .add_service(service)
                .serve_with_incoming_shutdown(connections, stop.cancelled())
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the cluster server ended");
            }
        })
    }

    /// Opens a sealed call: proves who sent it, and that it is meant for this very call.
    async fn open<M: Sealed>(
        &self,
        metadata: &MetadataMap,
        via: &Via,
        envelope: Option<pb::SealNodeEnvelope>,
    ) -> Result<Opened<M>> {
        let controller = &self.controller;
        let (cluster_id, own_id) = (controller.cluster_id().as_str(), controller.id().as_str());
        let expected =
            Expected { keys: controller.token_keys(), audiences: &[cluster_id, own_id], now_ms: now_ms() };
        let unopened = begin(envelope, &expected)?;
        check_via(via, &unopened.claims.sub)?;
        let key = controller.pinned_key(&unopened.claims.sub).await?;
        let opened = unopened.open::<M>(metadata, &expected, &key)?;
        if opened.context.epoch != controller.epoch() {
            return Err(Error::new(
                ErrorCode::SessionUnknown,
                "the session is from an earlier life of this controller",
            )
            .remedy("attest again"));
        }
        controller.sessions().accept(&opened.context, expected.now_ms)?;
        Ok(opened)
    }

    async fn attest(&self, via: Via, request: pb::AttestNodeRequest) -> Result<pb::AttestNodeResponse> {
        let node_id = NodeId::parse(request.node_id)?;
        check_via(&via, &node_id)?;
        let capabilities = request.capabilities.unwrap_or_default();
        let nonce = match request.nonce.as_str() {
            "" => None,
            text => Some(
                uuid::Uuid::parse_str(text)
                    .map_err(|_| Error::invalid(format!("the nonce \"{}\" is not a UUID", shown(text))))?,
            ),
        };
        let token = match request.enrolment_token.as_str() {
            "" => None,
            text => Some(EnrolmentToken::parse(text)?),
        };
        let attestation = Attestation {
            node_id,
            role: role_from_wire(request.role)?,
            public_key: PublicKey::parse(&request.public_key)?,
            nonce,
            token_id: None,
            capabilities_hash: hex::encode(sha256(&prost::Message::encode_to_vec(&capabilities))),
            software_version: shown(&request.software_version),
        };
        let challenge = self.controller.attest(attestation, token).await?;
        Ok(pb::AttestNodeResponse {
            challenge_nonce: challenge.bytes.to_vec(),
            challenge_id: challenge.id,
            cluster_id: self.controller.cluster_id().to_string(),
            controller_id: self.controller.id().to_string(),
            controller_time_ms: now_ms(),
            protocol_version: PROTOCOL_VERSION,
        })
    }

    async fn challenge(
        &self,
        via: Via,
        request: pb::ChallengeNodeRequest,
    ) -> Result<pb::ChallengeNodeResponse> {
        let node_id = NodeId::parse(request.node_id)?;
        check_via(&via, &node_id)?;
        if request.signature_v1.is_empty() {
            return Err(Error::new(
                ErrorCode::InvalidSignature,
                "the answer signs the bare challenge, not the whole statement",
            )
            .remedy("send signature_v1; the compatible mode is not offered in this version"));
        }
        let answer = ChallengeAnswer {
            challenge_id: request.challenge_id,
            node_id: node_id.clone(),
            signature: request.signature_v1,
            certificate_request: request.certificate_request,
        };
        let admission = self.controller.answer(answer).await?;
        tracing::info!(%node_id, session_id = %admission.session_id, "attested");
        Ok(pb::ChallengeNodeResponse {
            node_security_token: admission.token,
            expires_at: Some(prost_types::Timestamp { seconds: admission.expires_at_secs, nanos: 0 }),
            session_id: admission.session_id.to_string(),
            controller_public_key: self.controller.public_key().as_bytes().to_vec(),
            token_keys: admission.token_keys,
            certificate_chain: Vec::new(),
            ca_bundle: Vec::new(),
            epoch: self.controller.epoch(),
        })
    }

    async fn register(
        &self,
        node_id: NodeId,
        inner: pb::RegisterNodeInner,
    ) -> Result<pb::RegisterNodeResponse> {
        let capabilities = capabilities_from_wire(inner.capabilities.unwrap_or_default())?;
        let address = inner.grpc_address;
        // A node that cannot be reached would take work and never run it.
        self.nodes.probe(&node_id, &address).await?;
        let version = super::SOFTWARE_VERSION.to_owned();
        self.controller.register(node_id.clone(), Registration { capabilities, address, version }).await?;
        tracing::info!(%node_id, "registered");
        Ok(pb::RegisterNodeResponse {
            accepted: true,
            cluster_id: self.controller.cluster_id().to_string(),
            message: String::new(),
        })
    }

    async fn beat(
        &self,
        node_id: NodeId,
        inner: pb::NodeHeartbeatInner,
    ) -> Result<pb::NodeHeartbeatResponse> {
        let acknowledged =
            inner.acknowledged_command_ids.into_iter().map(CommandId::parse).collect::<Result<Vec<_>>>()?;
        let capabilities = inner.capabilities.map(capabilities_from_wire).transpose()?;
        let held = inner.running.into_iter().map(held_from_wire).collect::<Result<Vec<_>>>()?;
        let commands =
            self.controller.heartbeat(node_id.clone(), Report { capabilities, acknowledged }).await?;
        self.nodes.report_held(node_id, held);
        let pending_commands = commands.iter().map(|(id, command)| command_to_wire(id, *command)).collect();
        Ok(pb::NodeHeartbeatResponse { pending_commands })
    }
}

/// Inside a node's SSH connection only that node may speak.
fn check_via(via: &Via, node_id: &NodeId) -> Result<()> {
    match via {
        Via::Link(owner) if owner != node_id => Err(Error::new(
            ErrorCode::NotYours,
            format!("{node_id} speaks on the connection that was made to {owner}"),
        )),
        Via::Link(_) | Via::Loopback(_) | Via::Unix => Ok(()),
    }
}

fn via<T>(request: &Request<T>) -> Via {
    // The server sets it on every connection; without it nothing is known, and nobody's link matches.
    let unknown = Via::Loopback(SocketAddr::from(([127, 0, 0, 1], 0)));
    request.extensions().get::<Via>().cloned().unwrap_or(unknown)
}

fn answer<T>(call: &'static str, result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| {
        tracing::warn!(call, reason = %error.code(), error = %error.chain(), "refused");
        to_status(&error)
    })
}

fn not_offered(call: &str) -> Status {
    to_status(&Error::new(ErrorCode::NotOffered, format!("{call} is not offered in this version")))
}

type Events = Pin<Box<dyn Stream<Item = Result<ExecutionEvent, Status>> + Send>>;
type EdgeCommands = Pin<Box<dyn Stream<Item = Result<pb::EdgeCommand, Status>> + Send>>;

#[tonic::async_trait]
impl NodeClusterService for ControllerApi {
    type ForwardExecutionStream = Events;
    type ConnectEdgeStream = EdgeCommands;

    async fn attest_node(
        &self,
        request: Request<pb::AttestNodeRequest>,
    ) -> Result<Response<pb::AttestNodeResponse>, Status> {
        let via = via(&request);
        answer("AttestNode", self.attest(via, request.into_inner()).await)
    }

    async fn challenge_node(
        &self,
        request: Request<pb::ChallengeNodeRequest>,
    ) -> Result<Response<pb::ChallengeNodeResponse>, Status> {
        let via = via(&request);
        answer("ChallengeNode", self.challenge(via, request.into_inner()).await)
    }

    async fn register_node(
        &self,
        request: Request<pb::RegisterNodeRequest>,
    ) -> Result<Response<pb::RegisterNodeResponse>, Status> {
        let via = via(&request);
        let (metadata, _, body) = request.into_parts();
        let result = async {
            let opened = self.open::<pb::RegisterNodeInner>(&metadata, &via, body.envelope).await?;
            self.register(opened.claims.sub, opened.message).await
        };
        answer("RegisterNode", result.await)
    }

    async fn heartbeat(
        &self,
        request: Request<pb::NodeHeartbeatRequest>,
    ) -> Result<Response<pb::NodeHeartbeatResponse>, Status> {
        let via = via(&request);
        let (metadata, _, body) = request.into_parts();
        let result = async {
            let opened = self.open::<pb::NodeHeartbeatInner>(&metadata, &via, body.envelope).await?;
            self.beat(opened.claims.sub, opened.message).await
        };
        answer("Heartbeat", result.await)
    }

    async fn deregister_node(
        &self,
        request: Request<pb::DeregisterNodeRequest>,
    ) -> Result<Response<pb::DeregisterNodeResponse>, Status> {
        let via = via(&request);
        let (metadata, _, body) = request.into_parts();
        let result = async {
            let opened = self.open::<pb::DeregisterNodeInner>(&metadata, &via, body.envelope).await?;
            let node_id = opened.claims.sub;
            tracing::info!(%node_id, reason = %shown(&opened.message.reason), "said goodbye");
            self.controller.goodbye(node_id).await?;
            Ok(pb::DeregisterNodeResponse { accepted: true })
        };
        answer("DeregisterNode", result.await)
    }

    async fn route_execution(
        &self,
        _: Request<pb::RouteExecutionRequest>,
    ) -> Result<Response<pb::RouteExecutionResponse>, Status> {
        Err(not_offered("RouteExecution"))
    }

    async fn forward_execution(
        &self,
        _: Request<pb::ForwardExecutionRequest>,
    ) -> Result<Response<Events>, Status> {
        Err(not_offered("ForwardExecution to a controller"))
    }

    async fn sync_config(
        &self,
        _: Request<pb::SyncConfigRequest>,
    ) -> Result<Response<pb::SyncConfigResponse>, Status> {
        Err(not_offered("SyncConfig"))
    }

    async fn push_config(
        &self,
        _: Request<pb::PushConfigRequest>,
    ) -> Result<Response<pb::PushConfigResponse>, Status> {
        Err(not_offered("PushConfig"))
    }

    async fn list_peers(
        &self,
        _: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        Err(not_offered("ListPeers"))
    }

    async fn connect_edge(
        &self,
        _: Request<tonic::Streaming<pb::EdgeEvent>>,
    ) -> Result<Response<EdgeCommands>, Status> {
        Err(not_offered("ConnectEdge"))
    }

    async fn rotate_edge_key(
        &self,
        _: Request<pb::RotateEdgeKeyRequest>,
    ) -> Result<Response<pb::RotateEdgeKeyResponse>, Status> {
        Err(not_offered("RotateEdgeKey"))
    }

    async fn issue_enrollment_token(
        &self,
        _: Request<pb::IssueEnrollmentTokenRequest>,
    ) -> Result<Response<pb::IssueEnrollmentTokenResponse>, Status> {
        Err(not_offered("IssueEnrollmentToken"))
    }
}
