//! Calls that a worker serves to its controller: executions, their cancellation and their release.
//!
//! `ForwardExecution` is the only call of the published service for a worker. Every call is sealed with the controller's
//! key, which the worker learned when it attested.

mod content;

use std::{pin::Pin, sync::Arc, time::Instant};

use aegis_config::applied::AppliedConfig;
use aegis_identity::SealContext;
use aegis_metrics::Metrics;
use aegis_proto::aegis::{
    agent::{
        v1 as agent,
        v1::worker_service_server::{WorkerService, WorkerServiceServer},
    },
    cluster::{
        v1 as pb,
        v1::node_cluster_service_server::{NodeClusterService, NodeClusterServiceServer},
    },
    runtime::v1::ExecutionEvent,
};
use aegis_rpc::{
    call_limits::{Known, bearer},
    controller_client::Session,
    envelope::{Expected, Sealed, begin},
    event_encoding,
    listener::{Intake, server},
    refusal_log::RefusalLog,
    status::{from_status, to_status},
    via::{self, AuthStage, PeerInfo},
    wire::MESSAGE_BYTES_MAX,
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        content::ImageOffer,
        manifest::Manifest,
        order::{Attempt, Order, SecretEnv},
    },
    ids::{ExecutionId, NodeId},
    registry::{PullLogin, Registry},
    secret::Secret,
};
use futures::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{api::content::ArtifactsStream, supervisor::Supervisor};

/// The current session. `None` before the first attestation.
pub type CurrentSession = Arc<arc_swap::ArcSwapOption<Session>>;

#[derive(Debug, Clone)]
pub struct WorkerApi {
    node_id: NodeId,
    session: CurrentSession,
    supervisor: Supervisor,
    applied: AppliedConfig,
    /// Wakes the task that sends heartbeats.
    nudge: Arc<Notify>,
    metrics: Metrics,
    refusals: Arc<RefusalLog>,
}

impl WorkerApi {
    /// Serves until told to stop; the task ends with the last connection.
    pub fn spawn(
        node_id: NodeId,
        session: CurrentSession,
        supervisor: Supervisor,
        applied: AppliedConfig,
        nudge: Arc<Notify>,
        metrics: Metrics,
        intake: Intake,
    ) -> tokio::task::JoinHandle<()> {
        let refusals = Arc::default();
        let known = known(session.clone());
        let api = Self { node_id, session, supervisor, applied, nudge, metrics, refusals };
        let cluster = NodeClusterServiceServer::new(api.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let worker = WorkerServiceServer::new(api).max_decoding_message_size(MESSAGE_BYTES_MAX);
        tokio::spawn(async move {
            let (connections, stop) = intake.into_connections();
            let connections = connections.map(Ok::<_, std::io::Error>);
            let served = server(known)
                .add_service(cluster)
                .add_service(worker)
                .serve_with_incoming_shutdown(connections, stop.cancelled())
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the node's server ended");
            }
        })
    }

    /// Opens a sealed call of the controller.
    fn open<M: Sealed>(
        &self,
        metadata: &MetadataMap,
        entered: &PeerInfo,
        envelope: Option<pb::SealNodeEnvelope>,
    ) -> Result<M> {
        let session = self.session.load_full().ok_or_else(|| {
            Error::new(ErrorCode::SessionUnknown, "this node has not attested to its controller yet")
        })?;
        via::check(&entered.via, &session.controller_id, AuthStage::Admitted)?;
        let own_id = self.node_id.as_str();
        let expected =
            Expected { keys: &session.token_keys, audiences: &[own_id], now_ms: session.clock.now_ms() };
        let unopened = begin(envelope, &expected)?;
        if unopened.claims.sub != session.controller_id || !unopened.claims.role.is_controller() {
            return Err(Error::new(ErrorCode::NotYours, "only the controller may call this"));
        }
        let unproven = unopened.read::<M>()?;
        let current = |context: &SealContext| context.session_id == *session.sealer.session_id();
        if unproven.context.as_ref().is_some_and(|context| !current(context)) {
            return Err(Error::new(ErrorCode::SessionUnknown, "the call belongs to an older session"));
        }
        let opened = unproven.open(metadata, &expected, &session.controller_key)?;
        self.supervisor.control().check_epoch(opened.context.epoch)?;
        session.accept(opened.context.sequence)?;
        entered.proven.set(Some(&session.controller_id));
        Ok(opened.message)
    }

    /// Every answer is counted, and a refusal is logged once.
    fn answer<T>(&self, call: &'static str, at: Instant, result: Result<T>) -> Result<Response<T>, Status> {
        let refused = result.as_ref().err().map(Error::code);
        self.metrics.call(call, refused, at.elapsed());
        result.map(Response::new).map_err(|error| {
            let reason = error.code();
            if let Some(suppressed) = self.refusals.admit(call, reason) {
                tracing::warn!(call, %reason, suppressed, error = %error.chain(), "refused");
            }
            to_status(&error)
        })
    }

    async fn forward(&self, inner: pb::ForwardExecutionInner) -> Result<Events> {
        let manifest: Manifest = serde_json::from_str(&inner.manifest_json)
            .map_err(|e| Error::invalid("the manifest cannot be read").source(e))?;
        let order = Order {
            execution_id: ExecutionId::parse(inner.execution_id)?,
            attempt: inner.attempt,
            login: inner.registry_login.map(|login| PullLogin {
                registry: Registry::of(&manifest.image),
                username: login.username,
                password: Secret::new(login.password),
            }),
            manifest,
            input: inner.input,
            secrets: SecretEnv(inner.secret_env.into_iter().collect()),
        };
        let execution_id = order.execution_id.clone();
        let offer = inner.image_offer.map(|offer| ImageOffer {
            digest: offer.digest,
            architecture: offer.architecture,
            exact: offer.exact,
        });
        self.supervisor.require(&order, inner.after_sequence, offer.as_ref()).await?;
        let events = self.supervisor.accept(order, inner.after_sequence).await?;
        Ok(Box::pin(events.map(move |event| match event {
            Ok(event) => Ok(event_encoding::to_wire(&execution_id, &event)),
            Err(error) => Err(to_status(&error)),
        })))
    }
}

/// Whether a request bears a token that this node's controller has signed.
fn known(session: CurrentSession) -> Known {
    Known::of(move |headers| {
        let (Some(session), Some(token)) = (session.load_full(), bearer(headers)) else { return false };
        session.token_keys.verify(token, session.clock.now_ms() / 1000).is_ok()
    })
}

type Events = Pin<Box<dyn Stream<Item = Result<ExecutionEvent, Status>> + Send>>;
type EdgeCommands = Pin<Box<dyn Stream<Item = Result<pb::EdgeCommand, Status>> + Send>>;

fn not_here(call: &str) -> Status {
    let error =
        Error::new(ErrorCode::NotOffered, format!("{call} is served by the controller, not by a worker"));
    to_status(&error)
}

#[tonic::async_trait]
impl WorkerService for WorkerApi {
    async fn cancel_execution(
        &self,
        request: Request<agent::CancelExecutionRequest>,
    ) -> Result<Response<agent::CancelExecutionResponse>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, body) = request.into_parts();
        let result =
            self.open::<agent::CancelExecutionInner>(&metadata, &entered, body.envelope).and_then(|inner| {
                let execution_id = ExecutionId::parse(inner.execution_id)?;
                let cancelling = self.supervisor.cancel(&execution_id, inner.attempt, &inner.reason)?;
                Ok(agent::CancelExecutionResponse { cancelling })
            });
        self.answer("CancelExecution", at, result)
    }

    async fn nudge(
        &self,
        request: Request<agent::NudgeRequest>,
    ) -> Result<Response<agent::NudgeResponse>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, body) = request.into_parts();
        let result = self.open::<agent::NudgeInner>(&metadata, &entered, body.envelope).map(|_| {
            self.nudge.notify_one();
            agent::NudgeResponse {}
        });
        self.answer("Nudge", at, result)
    }

    async fn release_executions(
        &self,
        request: Request<agent::ReleaseExecutionsRequest>,
    ) -> Result<Response<agent::ReleaseExecutionsResponse>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, body) = request.into_parts();
        let result = async {
            let inner = self.open::<agent::ReleaseExecutionsInner>(&metadata, &entered, body.envelope)?;
            let attempts = inner.attempts.into_iter().map(|attempt| {
                Ok(Attempt {
                    execution_id: ExecutionId::parse(attempt.execution_id)?,
                    number: attempt.attempt,
                })
            });
            self.supervisor.release(&attempts.collect::<Result<Vec<_>>>()?).await?;
            Ok(agent::ReleaseExecutionsResponse {})
        };
        self.answer("ReleaseExecutions", at, result.await)
    }

    type GetArtifactsStream = ArtifactsStream;

    async fn put_content(
        &self,
        request: Request<Streaming<agent::PutContentRequest>>,
    ) -> Result<Response<agent::PutContentResponse>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, mut messages) = request.into_parts();
        let result = async {
            let first = messages.message().await.map_err(|status| from_status(&status))?;
            let envelope = first.and_then(|first| first.envelope);
            let inner = self.open::<agent::PutContentInner>(&metadata, &entered, envelope)?;
            let content = content::content(inner)?;
            self.supervisor.incoming().receive(content, content::pieces(messages)).await?;
            Ok(agent::PutContentResponse {})
        };
        self.answer("PutContent", at, result.await)
    }

    async fn get_artifacts(
        &self,
        request: Request<agent::GetArtifactsRequest>,
    ) -> Result<Response<ArtifactsStream>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, body) = request.into_parts();
        let result = async {
            let inner = self.open::<agent::GetArtifactsInner>(&metadata, &entered, body.envelope)?;
            let execution_id = ExecutionId::parse(inner.execution_id)?;
            let found = self.supervisor.artifacts(&execution_id, inner.attempt)?;
            content::answer(found, inner.offset).await
        };
        self.answer("GetArtifacts", at, result.await)
    }
}

#[tonic::async_trait]
impl NodeClusterService for WorkerApi {
    type ForwardExecutionStream = Events;
    type ConnectEdgeStream = EdgeCommands;

    async fn forward_execution(
        &self,
        request: Request<pb::ForwardExecutionRequest>,
    ) -> Result<Response<Events>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, body) = request.into_parts();
        let result = async {
            let inner = self.open::<pb::ForwardExecutionInner>(&metadata, &entered, body.envelope)?;
            self.forward(inner).await
        };
        self.answer("ForwardExecution", at, result.await)
    }

    async fn attest_node(
        &self,
        _: Request<pb::AttestNodeRequest>,
    ) -> Result<Response<pb::AttestNodeResponse>, Status> {
        Err(not_here("AttestNode"))
    }

    async fn challenge_node(
        &self,
        _: Request<pb::ChallengeNodeRequest>,
    ) -> Result<Response<pb::ChallengeNodeResponse>, Status> {
        Err(not_here("ChallengeNode"))
    }

    async fn register_node(
        &self,
        _: Request<pb::RegisterNodeRequest>,
    ) -> Result<Response<pb::RegisterNodeResponse>, Status> {
        Err(not_here("RegisterNode"))
    }

    async fn heartbeat(
        &self,
        _: Request<pb::NodeHeartbeatRequest>,
    ) -> Result<Response<pb::NodeHeartbeatResponse>, Status> {
        Err(not_here("Heartbeat"))
    }

    async fn deregister_node(
        &self,
        _: Request<pb::DeregisterNodeRequest>,
    ) -> Result<Response<pb::DeregisterNodeResponse>, Status> {
        Err(not_here("DeregisterNode"))
    }

    async fn route_execution(
        &self,
        _: Request<pb::RouteExecutionRequest>,
    ) -> Result<Response<pb::RouteExecutionResponse>, Status> {
        Err(not_here("RouteExecution"))
    }

    async fn sync_config(
        &self,
        _: Request<pb::SyncConfigRequest>,
    ) -> Result<Response<pb::SyncConfigResponse>, Status> {
        Err(not_here("SyncConfig"))
    }

    async fn push_config(
        &self,
        request: Request<pb::PushConfigRequest>,
    ) -> Result<Response<pb::PushConfigResponse>, Status> {
        let (at, entered) = (Instant::now(), via::entered(&request));
        let (metadata, _, body) = request.into_parts();
        let result = self
            .open::<pb::PushConfigInner>(&metadata, &entered, body.envelope)
            .and_then(|inner| push_config(&self.applied, &self.node_id, &inner));
        self.answer("PushConfig", at, result)
    }

    async fn list_peers(
        &self,
        _: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        Err(not_here("ListPeers"))
    }

    async fn connect_edge(
        &self,
        _: Request<Streaming<pb::EdgeEvent>>,
    ) -> Result<Response<EdgeCommands>, Status> {
        Err(not_here("ConnectEdge"))
    }

    async fn rotate_edge_key(
        &self,
        _: Request<pb::RotateEdgeKeyRequest>,
    ) -> Result<Response<pb::RotateEdgeKeyResponse>, Status> {
        Err(not_here("RotateEdgeKey"))
    }

    async fn issue_enrollment_token(
        &self,
        _: Request<pb::IssueEnrollmentTokenRequest>,
    ) -> Result<Response<pb::IssueEnrollmentTokenResponse>, Status> {
        Err(not_here("IssueEnrollmentToken"))
    }
}

/// Applies a pushed configuration. Answers `accepted: false` if the node keeps the one it has.
fn push_config(
    applied: &AppliedConfig,
    own_id: &NodeId,
    inner: &pb::PushConfigInner,
) -> Result<pb::PushConfigResponse> {
    if inner.target_node_id != own_id.as_str() {
        return Err(Error::new(ErrorCode::NotYours, "the configuration is for another node"));
    }
    let accepted = applied.apply(&inner.config_version, &inner.config_payload).is_ok();
    Ok(pb::PushConfigResponse { accepted })
}
