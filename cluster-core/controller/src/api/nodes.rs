//! The thirteen calls of `NodeClusterService`, which a controller serves to nodes.
//!
//! Handlers convert, call the controller, and map the error. Every answer is counted, and a refusal is
//! logged once, here, with ids. Proving who called is [`ControllerApi::open`]; what the calls do is in
//! [`attestation`], [`members`] and [`enrolment`].

mod attestation;
mod enrolment;
mod members;

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Instant,
};

use aegis_identity::{Authority, PublicKey};
use aegis_metrics::Metrics;
use aegis_proto::aegis::{
    cluster::{
        v1 as pb,
        v1::node_cluster_service_server::{NodeClusterService, NodeClusterServiceServer},
    },
    runtime::v1::ExecutionEvent,
};
use aegis_rpc::{
    call_limits::{Known, bearer},
    envelope::{Expected, Sealed, begin},
    limits::Limits,
    listener::{Intake, server},
    places::Authenticated,
    refusal_log::RefusalLog,
    status::to_status,
    via::{self, AuthStage, PeerInfo, PeerTransport},
    wire::MESSAGE_BYTES_MAX,
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
    node::Role,
};
use futures::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::operator::Operators;
use crate::{
    api::{config, runtime::RuntimeApi},
    handle::Controller,
    nodes::NodeConnections,
};

/// Bytes that a connection may send ahead of being read: calls are small, and connections may be many.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// Settings of the calls.
#[derive(Debug)]
pub struct ControllerApiSettings {
    /// Nodes of the other implementation are admitted, over loopback alone.
    pub allow_unsealed_context: bool,
    pub operators: Operators,
    /// Address of this controller, for nodes.
    pub endpoint: String,
    /// Authority that certifies nodes. `None` if the operator provides certificates.
    pub authority: Option<Arc<Authority>>,
}

#[derive(Debug, Clone)]
pub struct ControllerApi(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    controller: Controller,
    nodes: NodeConnections,
    metrics: Metrics,
    limits: Limits,
    refusals: RefusalLog,
    settings: ControllerApiSettings,
}

/// A call as it came in.
struct IncomingCall {
    name: &'static str,
    via: PeerTransport,
    proven: Authenticated,
    metadata: MetadataMap,
    at: Instant,
    /// Known as soon as its token is proven.
    caller: OnceLock<NodeId>,
}

/// A node whose call is proven.
#[derive(Debug)]
struct Caller {
    node_id: NodeId,
    /// Role in its record, which may differ from the one that it claims.
    role: Role,
    /// The key that signed the call.
    key: PublicKey,
}

impl IncomingCall {
    fn of<T>(name: &'static str, request: Request<T>) -> (Self, T) {
        let PeerInfo { via, proven } = via::entered(&request);
        let (metadata, _, body) = request.into_parts();
        (Self { name, via, proven, metadata, at: Instant::now(), caller: OnceLock::new() }, body)
    }

    /// Returns the address of an unauthenticated caller. `None` on connections of this machine or of one known node.
    fn stranger(&self) -> Option<IpAddr> {
        match &self.via {
            PeerTransport::Plain(from) | PeerTransport::Tls { from, .. } => {
                Some(from.ip()).filter(|ip| !ip.is_loopback())
            }
            PeerTransport::Unix | PeerTransport::Link(_) => None,
        }
    }
}

impl ControllerApi {
    pub fn new(
        controller: Controller,
        nodes: NodeConnections,
        metrics: Metrics,
        settings: ControllerApiSettings,
    ) -> Self {
        let (limits, refusals) = (Limits::default(), RefusalLog::default());
        Self(Arc::new(Shared { controller, nodes, metrics, limits, refusals, settings }))
    }

    /// Serves until the stop token is cancelled. The task ends with the last connection. `runtime` is served to clients on
    /// the same port.
    pub fn spawn(self, intake: Intake, runtime: Option<RuntimeApi>) -> tokio::task::JoinHandle<()> {
        let known = self.known();
        let service = NodeClusterServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        tokio::spawn(async move {
            let (connections, stop): (_, CancellationToken) = intake.into_connections();
            let connections = futures::StreamExt::map(connections, Ok::<_, std::io::Error>);
            let served = server(known)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .add_service(service)
                .add_optional_service(runtime.map(RuntimeApi::into_service))
                .serve_with_incoming_shutdown(connections, stop.cancelled())
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the cluster server ended");
            }
        })
    }

    /// Whether a request bears a token of a member or an operator.
    fn known(&self) -> Known {
        let (controller, tokens) = (self.0.controller.clone(), self.0.settings.operators.tokens.clone());
        Known::of(move |headers| {
            let Some(token) = bearer(headers) else { return false };
            let header = headers.get("authorization").and_then(|value| value.to_str().ok());
            controller.token_keys().verify(token, controller.now_ms() / 1000).is_ok()
                || tokens.check(header).is_ok()
        })
    }

    /// Opens a sealed call: proves who sent it, and that it is meant for this very call.
    async fn open<M: Sealed>(
        &self,
        arrival: &IncomingCall,
        envelope: Option<pb::SealNodeEnvelope>,
    ) -> Result<(Caller, M)> {
        let controller = &self.0.controller;
        let (cluster_id, own_id) = (controller.cluster_id().as_str(), controller.id().as_str());
        let keys = controller.token_keys();
        let expected =
            Expected { keys: &keys, audiences: &[cluster_id, own_id], now_ms: controller.now_ms() };
        let unopened = begin(envelope, &expected)?;
        let node_id = unopened.claims.sub.clone();
        // First set wins, and this is the only one.
        let _ = arrival.caller.set(node_id.clone());
        via::check(&arrival.via, &node_id, AuthStage::Admitted)?;
        let standing = controller.standing(&node_id)?;
        let role = standing.role;
        let unproven = unopened.read::<M>()?;
        if unproven.context.is_none() && self.may_leave_unsealed(&arrival.via, standing.sealed) {
            let message = unproven.open_unsealed(&arrival.metadata, &standing.key)?;
            arrival.proven.set(Some(&node_id));
            self.0.limits.admit_member(&node_id)?;
            return Ok((Caller { node_id, role, key: standing.key }, message));
        }
        let key = match unproven.context.clone() {
            Some(context) => match controller.session_key(&node_id, &context, expected.now_ms) {
                Ok(key) => key,
                Err(error) => {
                    // Anybody could name an ended session: it counts once its key is seen to have signed.
                    if let Some(key) = controller.ended_session_key(&node_id, &context, expected.now_ms)
                        && unproven.open(&arrival.metadata, &expected, &key).is_ok()
                    {
                        controller.note_contention(&node_id, &context, expected.now_ms);
                    }
                    return Err(error);
                }
            },
            // Refused below, with its name, if nothing before that is wrong.
            None => standing.key,
        };
        let opened = unproven.open(&arrival.metadata, &expected, &key)?;
        controller.sessions().accept(&opened.context.session_id, opened.context.sequence)?;
        arrival.proven.set(Some(&node_id));
        self.0.limits.admit_member(&node_id)?;
        Ok((Caller { node_id, role, key }, opened.message))
    }

    /// Returns whether a call may lack a sealed context. A captured call could be replayed then, so that only connections
    /// without eavesdroppers may.
    fn may_leave_unsealed(&self, via: &PeerTransport, sealed: bool) -> bool {
        !sealed && self.admits_bare(via)
    }

    /// Whether a node of the other implementation may come in this way.
    fn admits_bare(&self, via: &PeerTransport) -> bool {
        let near = matches!(via, PeerTransport::Plain(from) if from.ip().is_loopback());
        self.0.settings.allow_unsealed_context && near
    }

    fn answer<T>(&self, arrival: &IncomingCall, result: Result<T>) -> Result<Response<T>, Status> {
        let refused = result.as_ref().err().map(Error::code);
        self.0.metrics.call(arrival.name, refused, arrival.at.elapsed());
        result.map(Response::new).map_err(|error| {
            let node_id = arrival.caller.get().map(NodeId::as_str);
            let (call, via, reason) = (arrival.name, &arrival.via, error.code());
            if let Some(suppressed) = self.0.refusals.admit(call, reason) {
                tracing::warn!(call, node_id, ?via, %reason, suppressed, error = %error.chain(), "refused");
            }
            to_status(&error)
        })
    }
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
        let (arrival, body) = IncomingCall::of("AttestNode", request);
        self.answer(&arrival, self.attest(&arrival, body).await)
    }

    async fn challenge_node(
        &self,
        request: Request<pb::ChallengeNodeRequest>,
    ) -> Result<Response<pb::ChallengeNodeResponse>, Status> {
        let (api, (arrival, body)) = (self.clone(), IncomingCall::of("ChallengeNode", request));
        to_completion(async move { api.answer(&arrival, api.challenge(&arrival, body).await) }).await
    }

    async fn register_node(
        &self,
        request: Request<pb::RegisterNodeRequest>,
    ) -> Result<Response<pb::RegisterNodeResponse>, Status> {
        let (api, (arrival, body)) = (self.clone(), IncomingCall::of("RegisterNode", request));
        to_completion(async move {
            let result = async {
                let (caller, inner) = api.open::<pb::RegisterNodeInner>(&arrival, body.envelope).await?;
                api.register(caller, inner, arrival.stranger().is_none()).await
            };
            api.answer(&arrival, result.await)
        })
        .await
    }

    async fn heartbeat(
        &self,
        request: Request<pb::NodeHeartbeatRequest>,
    ) -> Result<Response<pb::NodeHeartbeatResponse>, Status> {
        let (arrival, body) = IncomingCall::of("Heartbeat", request);
        let result = async {
            let (caller, inner) = self.open::<pb::NodeHeartbeatInner>(&arrival, body.envelope).await?;
            self.beat(caller, inner).await
        };
        self.answer(&arrival, result.await)
    }

    async fn deregister_node(
        &self,
        request: Request<pb::DeregisterNodeRequest>,
    ) -> Result<Response<pb::DeregisterNodeResponse>, Status> {
        let (api, (arrival, body)) = (self.clone(), IncomingCall::of("DeregisterNode", request));
        to_completion(async move {
            let result = async {
                let (caller, inner) = api.open::<pb::DeregisterNodeInner>(&arrival, body.envelope).await?;
                api.deregister(caller, inner).await
            };
            api.answer(&arrival, result.await)
        })
        .await
    }

    async fn route_execution(
        &self,
        request: Request<pb::RouteExecutionRequest>,
    ) -> Result<Response<pb::RouteExecutionResponse>, Status> {
        let (arrival, body) = IncomingCall::of("RouteExecution", request);
        let result = async {
            let (caller, inner) = self.open::<pb::RouteExecutionInner>(&arrival, body.envelope).await?;
            self.route(caller, inner).await
        };
        self.answer(&arrival, result.await)
    }

    async fn forward_execution(
        &self,
        request: Request<pb::ForwardExecutionRequest>,
    ) -> Result<Response<Events>, Status> {
        let (arrival, body) = IncomingCall::of("ForwardExecution", request);
        let result = async {
            let (caller, _) = self.open::<pb::ForwardExecutionInner>(&arrival, body.envelope).await?;
            Err(not_a_worker(&caller, "ForwardExecution"))
        };
        self.answer(&arrival, result.await)
    }

    async fn sync_config(
        &self,
        request: Request<pb::SyncConfigRequest>,
    ) -> Result<Response<pb::SyncConfigResponse>, Status> {
        let (arrival, body) = IncomingCall::of("SyncConfig", request);
        let result = async {
            let (caller, inner) = self.open::<pb::SyncConfigInner>(&arrival, body.envelope).await?;
            config::sync(&self.0.controller, &caller.node_id, inner).await
        };
        self.answer(&arrival, result.await)
    }

    async fn push_config(
        &self,
        request: Request<pb::PushConfigRequest>,
    ) -> Result<Response<pb::PushConfigResponse>, Status> {
        let (arrival, body) = IncomingCall::of("PushConfig", request);
        let result = async {
            let (caller, _) = self.open::<pb::PushConfigInner>(&arrival, body.envelope).await?;
            Err(not_a_worker(&caller, "PushConfig"))
        };
        self.answer(&arrival, result.await)
    }

    async fn list_peers(
        &self,
        request: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        let (arrival, body) = IncomingCall::of("ListPeers", request);
        let result = async {
            let (caller, inner) = self.open::<pb::ListPeersInner>(&arrival, body.envelope).await?;
            self.peers(caller, inner).await
        };
        self.answer(&arrival, result.await)
    }

    async fn connect_edge(
        &self,
        request: Request<tonic::Streaming<pb::EdgeEvent>>,
    ) -> Result<Response<EdgeCommands>, Status> {
        let (arrival, _) = IncomingCall::of("ConnectEdge", request);
        let refusal = Error::new(ErrorCode::NotOffered, "ConnectEdge is not offered in this version")
            .remedy("join as a worker: AttestNode, ChallengeNode, RegisterNode, Heartbeat");
        self.answer(&arrival, Err(refusal))
    }

    async fn rotate_edge_key(
        &self,
        request: Request<pb::RotateEdgeKeyRequest>,
    ) -> Result<Response<pb::RotateEdgeKeyResponse>, Status> {
        let (api, (arrival, body)) = (self.clone(), IncomingCall::of("RotateEdgeKey", request));
        to_completion(async move {
            let result = async {
                let payload = body.current_envelope.as_ref().map(|envelope| envelope.payload.clone());
                let opened = api.open::<pb::RotateEdgeKeyInner>(&arrival, body.current_envelope).await?;
                let proof = members::NewKeyProof {
                    key: body.new_public_key,
                    signature: body.signature_with_new_key,
                    payload: payload.unwrap_or_default(),
                };
                api.rotate_key(opened.0, opened.1, proof).await
            };
            api.answer(&arrival, result.await)
        })
        .await
    }

    async fn issue_enrollment_token(
        &self,
        request: Request<pb::IssueEnrollmentTokenRequest>,
    ) -> Result<Response<pb::IssueEnrollmentTokenResponse>, Status> {
        let (api, (arrival, body)) = (self.clone(), IncomingCall::of("IssueEnrollmentToken", request));
        to_completion(async move { api.answer(&arrival, api.issue_token(&arrival, body).await) }).await
    }
}

/// Runs a call to completion even if its caller hangs up, so that no call is half applied. Limits for unauthenticated
/// callers and for members bound the number of calls in progress.
async fn to_completion<T: Send + 'static>(
    call: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let ended = tokio::spawn(call).await;
    ended.unwrap_or_else(|_| Err(to_status(&Error::internal("the call ended before it was done"))))
}

/// Nodes are served here, and serve their controller elsewhere.
fn not_a_worker(caller: &Caller, call: &str) -> Error {
    Error::new(
        ErrorCode::NotYours,
        format!(
            "{call} is a controller's call to its workers, and {} is no controller of this node",
            caller.node_id
        ),
    )
    .remedy("submit executions and push configurations at the controller, which forwards them")
}
