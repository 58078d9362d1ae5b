//! Sealed envelope: a node security token, the payload, and a signature over exactly its bytes.
//!
//! [`begin`], [`Unopened::read`] and [`Unproven::open`] check in the order of the protocol, before anything acts. They
//! check the token, the node's record and session, and that token, payload and metadata name the same node. Then follow
//! the signature; path, audience and token hash; and the issue time. The session checks the sequence last.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use aegis_identity::{Claims, NodeKey, PublicKey, SealContext, SealExpectation, TokenKeys, sha256};
use aegis_proto::aegis::{agent::v1 as agent, cluster::v1 as pb};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{NodeId, SessionId},
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, metadata::MetadataMap};
use zeroize::Zeroizing;

/// Message that is sent sealed, with its path, its context, and the node that it concerns.
pub trait Sealed: Message + Default {
    const METHOD: &'static str;
    fn context(&self) -> Option<&pb::SealContext>;
    fn set_context(&mut self, context: pb::SealContext);
    /// Returns the node that the message names; `None` if it names only its sender.
    fn node_id(&self) -> Option<&str>;
}

macro_rules! sealed {
    ($($message:path, $method:literal, $node:expr;)+) => {$(
        impl Sealed for $message {
            const METHOD: &'static str = $method;
            fn context(&self) -> Option<&pb::SealContext> {
                self.seal.as_ref()
            }
            fn set_context(&mut self, context: pb::SealContext) {
                self.seal = Some(context);
            }
            fn node_id(&self) -> Option<&str> {
                let name: fn(&Self) -> Option<&str> = $node;
                name(self)
            }
        }
    )+};
}

sealed! {
    pb::RegisterNodeInner, "/aegis.cluster.v1.NodeClusterService/RegisterNode", |m| Some(&m.node_id);
    pb::NodeHeartbeatInner, "/aegis.cluster.v1.NodeClusterService/Heartbeat", |m| Some(&m.node_id);
    pb::DeregisterNodeInner, "/aegis.cluster.v1.NodeClusterService/DeregisterNode", |m| Some(&m.node_id);
    pb::ListPeersInner, "/aegis.cluster.v1.NodeClusterService/ListPeers", |_| None;
    pb::RouteExecutionInner, "/aegis.cluster.v1.NodeClusterService/RouteExecution", |_| None;
    pb::RotateEdgeKeyInner, "/aegis.cluster.v1.NodeClusterService/RotateEdgeKey", |m| Some(&m.node_id);
    pb::SyncConfigInner, "/aegis.cluster.v1.NodeClusterService/SyncConfig", |m| Some(&m.node_id);
    // Names the receiver, not the sender.
    pb::PushConfigInner, "/aegis.cluster.v1.NodeClusterService/PushConfig", |_| None;
    pb::ForwardExecutionInner, "/aegis.cluster.v1.NodeClusterService/ForwardExecution", |_| None;
    agent::CancelExecutionInner, "/aegis.agent.v1.WorkerService/CancelExecution", |_| None;
    agent::NudgeInner, "/aegis.agent.v1.WorkerService/Nudge", |_| None;
    agent::PutContentInner, "/aegis.agent.v1.WorkerService/PutContent", |_| None;
    agent::GetArtifactsInner, "/aegis.agent.v1.WorkerService/GetArtifacts", |_| None;
    agent::ReleaseExecutionsInner, "/aegis.agent.v1.WorkerService/ReleaseExecutions", |_| None;
}

/// The controller's time on a node. It is measured once at attestation and advanced by the monotonic clock, so a wrong
/// or jumping wall clock does not matter.
#[derive(Debug, Clone, Copy)]
pub struct ClusterClock {
    base_ms: i64,
    at: Instant,
}

impl ClusterClock {
    pub fn new(controller_time_ms: i64, at: Instant) -> Self {
        Self { base_ms: controller_time_ms, at }
    }

    pub fn now_ms(&self) -> i64 {
        self.base_ms.saturating_add(i64::try_from(self.at.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

/// Seals the calls of one session in one direction.
pub struct Sealer {
    key: Arc<NodeKey>,
    sender: NodeId,
    audience: String,
    token: Zeroizing<String>,
    token_sha256: [u8; 32],
    session_id: SessionId,
    epoch: u64,
    clock: ClusterClock,
    sequence: AtomicU64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer({} -> {})", self.sender, self.audience)
    }
}

impl Sealer {
    pub fn new(
        key: Arc<NodeKey>,
        sender: NodeId,
        audience: String,
        token: String,
        session_id: SessionId,
        epoch: u64,
        clock: ClusterClock,
    ) -> Self {
        let token_sha256 = sha256(token.as_bytes());
        let sequence = AtomicU64::new(0);
        let token = Zeroizing::new(token);
        Self { key, sender, audience, token, token_sha256, session_id, epoch, clock, sequence }
    }

    pub fn session_id(&self) -> &SessionId {
        &self.session_id
    }

    /// Makes the request around the sealed message.
    pub fn seal<M: Sealed, R>(
        &self,
        mut message: M,
        wrap: impl FnOnce(pb::SealNodeEnvelope) -> R,
    ) -> Result<Request<R>> {
        message.set_context(pb::SealContext {
            method: M::METHOD.to_owned(),
            sender: self.sender.to_string(),
            audience: self.audience.clone(),
            session_id: self.session_id.to_string(),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            issued_at_ms: self.clock.now_ms(),
            epoch: self.epoch,
            token_sha256: self.token_sha256.to_vec(),
        });
        let payload = message.encode_to_vec();
        let signature = self.key.sign(&payload).to_vec();
        let token = self.token.to_string();
        let bearer = format!("Bearer {token}")
            .parse()
            .map_err(|_| Error::internal("a token does not fit into a header"))?;
        let mut request =
            Request::new(wrap(pb::SealNodeEnvelope { node_security_token: token, signature, payload }));
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}

/// Values that a receiver checks a call against.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    pub keys: &'a TokenKeys,
    pub audiences: &'a [&'a str],
    /// The controller's time.
    pub now_ms: i64,
}

/// Call with a proven sender. The sequence is not checked yet.
#[derive(Debug)]
pub struct Opened<M> {
    pub context: SealContext,
    pub message: M,
}

/// Envelope with a valid token. The record of the named node must be checked next.
#[derive(Debug)]
pub struct Unopened {
    pub claims: Claims,
    envelope: pb::SealNodeEnvelope,
}

/// Decoded but unverified message, used only to find the key for its verification.
#[derive(Debug)]
pub struct Unproven<M> {
    pub claims: Claims,
    /// Context of the payload; `None` in the published protocol, where the payload is not bound to a call.
    pub context: Option<SealContext>,
    message: M,
    envelope: pb::SealNodeEnvelope,
}

/// Step 1: checks the token.
pub fn begin(envelope: Option<pb::SealNodeEnvelope>, expected: &Expected<'_>) -> Result<Unopened> {
    let envelope =
        envelope.ok_or_else(|| Error::new(ErrorCode::Unauthenticated, "the call has no sealed envelope"))?;
    let claims = expected.keys.verify(&envelope.node_security_token, expected.now_ms / 1000)?;
    Ok(Unopened { claims, envelope })
}

impl Unopened {
    /// Step 2: decodes the payload, once the node's record allows the node to call.
    pub fn read<M: Sealed>(self) -> Result<Unproven<M>> {
        let Self { claims, envelope } = self;
        let message = M::decode(envelope.payload.as_slice())
            .map_err(|e| Error::invalid("the sealed payload is not the message of this call").source(e))?;
        let context = message.context().cloned().map(context_of).transpose()?;
        Ok(Unproven { claims, context, message, envelope })
    }
}

impl<M: Sealed> Unproven<M> {
    /// Step 3: checks everything else with the key of the node's session.
    pub fn open(self, metadata: &MetadataMap, expected: &Expected<'_>, key: &PublicKey) -> Result<Opened<M>> {
        let context = self.context.clone().ok_or_else(unsealed)?;
        let token_sha256 = sha256(self.envelope.node_security_token.as_bytes());
        let Self { claims, message, .. } = self.proven(metadata, key)?;
        if context.sender != claims.sub {
            return Err(not_itself(&claims));
        }
        context.check(&SealExpectation {
            method: M::METHOD,
            audiences: expected.audiences,
            token_sha256,
            // Both sides use the controller's time.
            clock_offset_ms: 0,
            now_ms: expected.now_ms,
        })?;
        Ok(Opened { context, message })
    }

    /// Opens a payload of the published protocol: checks everything except the context. Only for a node that was
    /// admitted this way.
    pub fn open_unsealed(self, metadata: &MetadataMap, key: &PublicKey) -> Result<M> {
        let Self { message, .. } = self.proven(metadata, key)?;
        match message.node_id() {
            Some(_) => Ok(message),
            // Nothing would bind the message to its sender.
            None => Err(unsealed()),
        }
    }

    /// Checks that token, payload and metadata name the same node, and that its key signed the payload.
    fn proven(self, metadata: &MetadataMap, key: &PublicKey) -> Result<Self> {
        if self.claims.cnf != key.thumbprint() {
            return Err(Error::new(ErrorCode::KeyMismatch, "the token was issued for another key")
                .remedy("attest again"));
        }
        let bearer = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        if bearer != Some(self.envelope.node_security_token.as_str()) {
            return Err(Error::new(
                ErrorCode::Unauthenticated,
                "the token in the metadata is not the one in the envelope",
            ));
        }
        let sender = self.context.as_ref().map(|context| context.sender.as_str());
        // Without either there is no context, which the caller checks.
        let named = self.message.node_id().or(sender);
        if named.is_some_and(|named| named != self.claims.sub.as_str()) {
            return Err(not_itself(&self.claims));
        }
        key.verify(&self.envelope.payload, &self.envelope.signature)?;
        Ok(self)
    }
}

fn unsealed() -> Error {
    Error::new(ErrorCode::UnsealedContext, "the payload carries no SealContext").remedy(
        "seal it; nodes of the other implementation need spec.cluster.allow_unsealed_context on the controller",
    )
}

fn not_itself(claims: &Claims) -> Error {
    Error::new(ErrorCode::NotYours, format!("{} may speak only for itself", claims.sub))
}

fn context_of(context: pb::SealContext) -> Result<SealContext> {
    let token_sha256 = context
        .token_sha256
        .try_into()
        .map_err(|_| Error::new(ErrorCode::InvalidSignature, "the sealed token hash has not 32 bytes"))?;
    Ok(SealContext {
        method: context.method,
        sender: NodeId::parse(context.sender)?,
        audience: context.audience,
        session_id: SessionId::parse(context.session_id)?,
        sequence: context.sequence,
        issued_at_ms: context.issued_at_ms,
        epoch: context.epoch,
        token_sha256,
    })
}

#[cfg(test)]
mod tests;
