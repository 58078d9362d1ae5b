//! `AegisRuntime.ExecuteAgent`, which a controller serves to clients: runs a registered agent and streams its events.
//!
//! Callers bear a token with the scope `operate`. Fields that would change how safely, where or on which data the agent
//! runs are refused by name. Labels (`tenant_id`, `intent`, ids of a workflow and of a parent) are accepted and not kept.
//!
//! The stream is one reader of the execution's events; its end does not end the execution. A client that reconnects names
//! the execution in [`EXECUTION_ID`] and the last event that it saw in [`AFTER_SEQUENCE`], and starts no new execution.
//! With [`IDEMPOTENCY_KEY`] a first call can be repeated.
//!
//! Absent on purpose: the other calls of the service, which [`Offered`] refuses.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use aegis_metrics::Metrics;
use aegis_proto::aegis::runtime::{
    v1 as pb,
    v1::aegis_runtime_server::{AegisRuntime, AegisRuntimeServer},
};
use aegis_rpc::{
    status::to_status,
    via::{self, PeerTransport},
    wire::MESSAGE_BYTES_MAX,
};
use aegis_types::{
    agent::AgentReference,
    error::{Error, ErrorCode, Result},
    execution::{
        lifecycle::State,
        request::{ExecutionRequest, ResourceRequest, Submitter},
        view::{EventView, ExecutionView},
    },
    ids::ExecutionId,
    principal::Origin,
    scope::Scope,
    text::shown,
};
use futures::Stream;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap, server::NamedService};

use super::{operator::Operators, runtime_events::Published};
use crate::{access::Validity, audit::Arguments, executions::Executions};

/// Metadata of the answer, and of a request that goes on with an execution.
pub const EXECUTION_ID: &str = "x-aegis-execution-id";
/// Metadata of a request that goes on: the number of the last event that was seen; 0 where it is left out.
pub const AFTER_SEQUENCE: &str = "x-aegis-after-sequence";
/// Metadata of a request: the same key with the same request is the same execution.
pub const IDEMPOTENCY_KEY: &str = "x-aegis-idempotency-key";

const EXECUTE_AGENT: &str = "/aegis.runtime.v1.AegisRuntime/ExecuteAgent";
/// At a time; each holds a few events.
const STREAMS_MAX: usize = 1024;
/// Read from the store at a time.
const BATCH_MAX: u32 = 64;
const WAIT: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
pub struct RuntimeApi {
    executions: Executions,
    operators: Operators,
    metrics: Metrics,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl RuntimeApi {
    pub fn new(
        executions: Executions,
        operators: Operators,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        Self { executions, operators, metrics, streams: Arc::new(Semaphore::new(STREAMS_MAX)), stop }
    }

    pub(super) fn into_service(self) -> Offered<AegisRuntimeServer<Self>> {
        let server = AegisRuntimeServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Offered(server)
    }

    async fn execute(
        &self,
        via: &PeerTransport,
        metadata: &MetadataMap,
        body: pb::ExecuteAgentRequest,
        proven: impl FnOnce(),
    ) -> Result<(Reader, Validity)> {
        if let PeerTransport::Tls { names: None, .. } = via {
            return Err(Error::new(ErrorCode::UntrustedCa, "the caller shows no certificate")
                .remedy("connect with a certificate of a CA that this port trusts, or over loopback"));
        }
        let (bearer, validity) = self.operators.known(via, metadata)?;
        proven();
        let arguments = Arguments::default();
        arguments.note(&json!({ "agent_id": body.agent_id, "input": body.input }));
        let submitter = Submitter { origin: Origin::Assistant, identity: bearer.identity.clone() };
        let begun = self.begin(metadata, body, submitter);
        let reader = self.operators.run(bearer, Scope::Operate, "ExecuteAgent", arguments, begun).await?;
        Ok((reader, validity))
    }

    async fn begin(
        &self,
        metadata: &MetadataMap,
        body: pb::ExecuteAgentRequest,
        submitter: Submitter,
    ) -> Result<Reader> {
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            Error::new(ErrorCode::ResourceExhausted, format!("{STREAMS_MAX} streams are open"))
                .remedy("close some; executions go on without them")
        })?;
        let (view, after) = match text(metadata, EXECUTION_ID)? {
            Some(id) => (self.known(&ExecutionId::parse(id)?, &body).await?, after(metadata)?),
            None => {
                let key = text(metadata, IDEMPOTENCY_KEY)?.map(str::to_owned);
                let request = request(body, key)?;
                let executions = self.executions.clone();
                // Once begun it is done whole, also for a client that has gone meanwhile.
                let submitted = tokio::spawn(async move { executions.submit(request, submitter).await });
                (submitted.await.map_err(|e| Error::internal("a submission died").source(e))??, 0)
            }
        };
        let published = Published::new(&view, after);
        let (executions, stop) = (self.executions.clone(), self.stop.clone());
        let id = view.execution_id;
        Ok(Reader { executions, stop, id, after, ready: VecDeque::new(), published, _permit: permit })
    }

    /// An execution to go on with. The request may name its agent, and no other.
    async fn known(&self, id: &ExecutionId, body: &pb::ExecuteAgentRequest) -> Result<ExecutionView> {
        let view = self.executions.get(id).await?;
        if !body.agent_id.is_empty() {
            let asked: AgentReference = body.agent_id.parse()?;
            let same = view.agent.as_ref().is_some_and(|agent| {
                agent.name == asked.name && asked.version.is_none_or(|version| agent.version == Some(version))
            });
            if !same {
                return Err(Error::invalid(format!("{id} does not run the agent {asked}"))
                    .remedy(format!("leave agent_id out, or {EXECUTION_ID} to run it anew")));
            }
        }
        Ok(view)
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Result<Option<&'a str>> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    value.to_str().map(Some).map_err(|_| Error::invalid(format!("{key}: it is not text")))
}

fn after(metadata: &MetadataMap) -> Result<u64> {
    let Some(value) = text(metadata, AFTER_SEQUENCE)? else { return Ok(0) };
    value.parse().map_err(|_| {
        Error::invalid(format!("{AFTER_SEQUENCE}: \"{}\" is not the number of an event", shown(value)))
    })
}

/// The published request as ours, or the fields of it that cannot be held.
fn request(body: pb::ExecuteAgentRequest, idempotency_key: Option<String>) -> Result<ExecutionRequest> {
    let policy = body.security_policy.unwrap_or_default();
    let network = policy.network_policy.unwrap_or_default();
    let files = policy.filesystem_policy.unwrap_or_default();
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refused = [
        ("context_json", !matches!(body.context_json.trim(), "" | "{}" | "null")),
        ("security_policy.network_policy.allowed_domains", !network.allowed_domains.is_empty()),
        ("security_policy.network_policy.blocked_domains", !network.blocked_domains.is_empty()),
        ("security_policy.filesystem_policy.read_paths", !files.read_paths.is_empty()),
        ("security_policy.filesystem_policy.write_paths", !files.write_paths.is_empty()),
        ("security_context_name", set(&body.security_context_name)),
        ("workspace_volume_id", set(&body.workspace_volume_id)),
        ("workspace_volume_mount_path", set(&body.workspace_volume_mount_path)),
        ("workspace_remote_path", set(&body.workspace_remote_path)),
        ("attachments", !body.attachments.is_empty()),
    ];
    let refused: Vec<&str> = refused.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
    if !refused.is_empty() {
        return Err(Error::new(ErrorCode::NotOffered, format!("not offered here: {}", refused.join(", ")))
            .remedy(
                "leave them out; data goes into input, and limits into security_policy.resource_limits",
            ));
    }
    if body.agent_id.is_empty() {
        return Err(
            Error::invalid("agent_id: it is missing").remedy("name a registered agent: NAME or NAME@3")
        );
    }
    let limits = policy.resource_limits.unwrap_or_default();
    // Zero is how this format says "left out".
    let memory_mb = limits.memory_bytes.div_ceil(1024 * 1024);
    let memory_mb = u32::try_from(memory_mb).map_err(|_| Error::invalid("memory_bytes: it is too large"))?;
    Ok(ExecutionRequest {
        agent: Some(body.agent_id.parse()?),
        input: Some(body.input),
        resources: ResourceRequest {
            cpu: (limits.cpu_millicores > 0).then(|| f64::from(limits.cpu_millicores) / 1000.0),
            memory_mb: (memory_mb > 0).then_some(memory_mb),
            ..ResourceRequest::default()
        },
        timeout_seconds: (limits.timeout_seconds > 0).then(|| limits.timeout_seconds.into()),
        queue: true,
        idempotency_key,
        ..ExecutionRequest::default()
    })
}

/// One client's place in an execution's events.
#[derive(Debug)]
struct Reader {
    executions: Executions,
    stop: CancellationToken,
    id: ExecutionId,
    after: u64,
    ready: VecDeque<EventView>,
    published: Published,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Returns the next event, and `None` after the last one.
    async fn next(&mut self) -> Result<Option<pb::ExecutionEvent>> {
        let stop = self.stop.clone();
        match stop.run_until_cancelled(self.pull()).await {
            Some(event) => event,
            None => Err(Error::new(ErrorCode::Unavailable, "the controller is stopping")
                .remedy(format!("call again with {EXECUTION_ID} and {AFTER_SEQUENCE}"))),
        }
    }

    async fn pull(&mut self) -> Result<Option<pb::ExecutionEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.after = event.sequence;
                return Ok(Some(self.published.of(event)));
            }
            self.ready = self.executions.events(&self.id, self.after, BATCH_MAX).await?.into();
            if !self.ready.is_empty() {
                continue;
            }
            let after = self.after;
            let changed = |view: &ExecutionView| view.last_sequence > after || view.state.is_settled();
            let view = self.executions.wait(&self.id, WAIT, changed).await?;
            if view.last_sequence > after || !view.state.is_settled() {
                continue;
            }
            return match view.state {
                // Not its end: its node may come back and tell.
                State::Lost => {
                    Err(Error::new(ErrorCode::Lost, "its node is gone; what became of it is not known")
                        .remedy(format!("call again later with {EXECUTION_ID} and {AFTER_SEQUENCE}")))
                }
                _ => Ok(None),
            };
        }
    }
}

fn token_ended() -> Error {
    Error::new(ErrorCode::Unauthenticated, "the token of this stream was revoked or has expired").remedy(format!(
        "call again with another token, {EXECUTION_ID} and {AFTER_SEQUENCE}: the execution goes on by itself"
    ))
}

type Events = Pin<Box<dyn Stream<Item = Result<pb::ExecutionEvent, Status>> + Send>>;

#[tonic::async_trait]
impl AegisRuntime for RuntimeApi {
    type ExecuteAgentStream = Events;

    async fn execute_agent(
        &self,
        request: Request<pb::ExecuteAgentRequest>,
    ) -> Result<Response<Events>, Status> {
        let (entered, at) = (via::entered(&request), Instant::now());
        let (metadata, _, body) = request.into_parts();
        let result = self.execute(&entered.via, &metadata, body, || entered.proven.set(None)).await;
        self.metrics.call("ExecuteAgent", result.as_ref().err().map(Error::code), at.elapsed());
        let (reader, validity) = result.map_err(|error| {
            let via = &entered.via;
            tracing::warn!(call = "ExecuteAgent", ?via, reason = %error.code(), error = %error.chain(), "refused");
            to_status(&error)
        })?;
        let id = reader.id.to_string().parse();
        let events = futures::stream::unfold(Some((reader, validity)), |open| async move {
            let (mut reader, validity) = open?;
            let next = tokio::select! {
                next = reader.next() => next,
                () = validity.ended() => Err(token_ended()),
            };
            match next {
                Ok(event) => Some((Ok(event?), Some((reader, validity)))),
                Err(error) => {
                    tracing::debug!(execution_id = %reader.id, error = %error.chain(), "a stream ends early");
                    Some((Err(to_status(&error)), None))
                }
            }
        });
        let mut response = Response::new(Box::pin(events) as Events);
        // An id is a label, which any header takes.
        if let Ok(id) = id {
            response.metadata_mut().insert(EXECUTION_ID, id);
        }
        Ok(response)
    }
}

/// The published service with the one call of it that is served; the others are refused by name.
#[derive(Debug, Clone)]
pub(super) struct Offered<S>(S);

impl<S: NamedService> NamedService for Offered<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<tonic::body::Body>> for Offered<S>
where
    S: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send + 'static,
        >,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        if request.uri().path() == EXECUTE_AGENT {
            return Box::pin(self.0.call(request));
        }
        let call = request.uri().path().rsplit('/').next().map(shown).unwrap_or_default();
        let refusal = Error::new(ErrorCode::NotOffered, format!("{call} is not offered in this version"))
            .remedy("ExecuteAgent is; executions are listed and cancelled over HTTP, at /v1/executions");
        Box::pin(std::future::ready(Ok(to_status(&refusal).into_http())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> pb::ExecuteAgentRequest {
        pb::ExecuteAgentRequest { agent_id: "a@2".into(), input: "in".into(), ..Default::default() }
    }

    #[test]
    fn what_labels_a_request_is_accepted_and_limits_are_taken() {
        let limits = pb::ResourceLimits { cpu_millicores: 250, memory_bytes: 64 << 20, timeout_seconds: 9 };
        let asked = pb::ExecuteAgentRequest {
            tenant_id: "t".into(),
            intent: Some("i".into()),
            workflow_execution_id: Some("w".into()),
            context_json: " {} ".into(),
            security_policy: Some(pb::SecurityPolicy { resource_limits: Some(limits), ..Default::default() }),
            ..body()
        };
        let request = request(asked, Some("key".into())).unwrap();
        assert_eq!(request.agent.unwrap().to_string(), "a@2");
        assert_eq!((request.resources.cpu, request.resources.memory_mb), (Some(0.25), Some(64)));
        assert_eq!((request.timeout_seconds, request.idempotency_key.as_deref()), (Some(9), Some("key")));
    }

    #[test]
    fn what_says_how_safely_or_on_what_it_runs_is_refused_by_name() {
        let domains = pb::NetworkPolicy { allowed_domains: vec!["a.example".into()], ..Default::default() };
        let policy = pb::SecurityPolicy { network_policy: Some(domains), ..Default::default() };
        for (asked, name) in [
            (pb::ExecuteAgentRequest { context_json: "{\"a\":1}".into(), ..body() }, "context_json"),
            (pb::ExecuteAgentRequest { security_policy: Some(policy), ..body() }, "allowed_domains"),
            (
                pb::ExecuteAgentRequest { security_context_name: Some("s".into()), ..body() },
                "security_context_name",
            ),
            (
                pb::ExecuteAgentRequest { workspace_volume_id: Some("v".into()), ..body() },
                "workspace_volume_id",
            ),
            (pb::ExecuteAgentRequest { attachments: vec![Default::default()], ..body() }, "attachments"),
        ] {
            let error = request(asked, None).unwrap_err();
            assert!(error.code() == ErrorCode::NotOffered && error.message().contains(name), "{error}");
        }
        let nameless = pb::ExecuteAgentRequest { agent_id: String::new(), ..body() };
        assert_eq!(request(nameless, None).unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
