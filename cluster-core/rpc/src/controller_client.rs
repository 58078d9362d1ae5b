//! Calls of a worker to its controller.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aegis_config::endpoint::Endpoint;
use aegis_identity::{
    Admitted, CHALLENGE_BYTES, EnrolmentToken, KeyFile, NodeKey, PublicKey, SequenceWindow, TokenKeys,
    random, statement,
};
use aegis_proto::aegis::cluster::{v1 as pb, v1::node_cluster_service_client::NodeClusterServiceClient};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::order::Held,
    heartbeat::Command,
    ids::{ClusterId, CommandId, NodeId, SessionId},
    node::{Capabilities, Role},
};
use tokio::time::Instant;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::{
    ClusterClock, PROTOCOL_VERSION, SOFTWARE_VERSION, Sealer,
    controller_line::{CALL_TIMEOUT, Line, LinkTls},
    convert::{capabilities_to_wire, command_from_wire, held_to_wire, interval_to_wire, role_to_wire},
    status::from_status,
    wire::Connector,
};
use crate::known_controller::KnownController;

/// Session of an attested worker.
#[derive(Debug)]
pub struct Session {
    pub cluster_id: ClusterId,
    /// Epoch of the controller in which this session was opened.
    pub epoch: u64,
    pub controller_id: NodeId,
    pub controller_key: PublicKey,
    pub token_keys: TokenKeys,
    pub clock: ClusterClock,
    pub sealer: Sealer,
    /// Lifetime of the token, counted from its receipt.
    pub lifetime: Duration,
    pub since: Instant,
    window: Mutex<SequenceWindow>,
}

impl Session {
    /// Returns whether the token is still valid, with time for one call.
    pub fn is_valid(&self) -> bool {
        self.since.elapsed() + CALL_TIMEOUT < self.lifetime
    }

    /// Accepts the sequence number of a call by the controller, once.
    pub fn accept(&self, sequence: u64) -> Result<()> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).accept(sequence)
    }
}

/// Address at which the controller finds this node.
#[derive(Debug, Clone)]
pub enum AdvertisedAddress {
    Fixed(String),
    /// The address from which the node dials, with this port.
    AsSeen {
        scheme: &'static str,
        port: u16,
    },
}

/// Identity of the node that attests.
#[derive(Debug, Clone)]
pub struct JoiningNode {
    pub node_id: NodeId,
    pub role: Role,
    pub keys: Arc<KeyFile>,
    pub address: AdvertisedAddress,
    /// The controller that this node obeys, remembered across restarts.
    pub known: Arc<KnownController>,
    /// Whether the bare challenge is signed too, for a controller of the other implementation.
    pub signs_bare_challenge: bool,
}

/// Content of a heartbeat.
#[derive(Debug, Clone, Default)]
pub struct Beat {
    pub capabilities: Capabilities,
    pub running: usize,
    pub held: Vec<Held>,
    pub acknowledged: Vec<CommandId>,
    pub draining: bool,
    pub config_version: String,
    pub config_error: Option<String>,
    /// Time until the next heartbeat.
    pub interval: Duration,
}

/// One connection to the controller.
#[derive(Debug, Clone)]
pub struct ControllerClient {
    rpc: NodeClusterServiceClient<Channel>,
    line: Line,
}

fn check_protocol(version: u32) -> Result<()> {
    if version <= PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::FailedPrecondition,
        format!("the controller speaks protocol version {version}, and this node up to {PROTOCOL_VERSION}"),
    )
    .remedy("update this node"))
}

/// Answers a challenge. Only statements with their own domain prefix are signed: a signature over bytes chosen by the
/// peer could be used anywhere.
fn answer(
    applicant: &JoiningNode,
    key: &NodeKey,
    challenge: &pb::AttestNodeResponse,
    (cluster_id, controller_id): (&ClusterId, &NodeId),
    certificate_request: Vec<u8>,
) -> Result<pb::ChallengeNodeRequest> {
    let bytes = challenge.challenge_nonce.as_slice();
    if bytes.len() != CHALLENGE_BYTES {
        return Err(Error::invalid(format!(
            "the controller's challenge has {} bytes, not {CHALLENGE_BYTES}: nothing was signed",
            bytes.len()
        ))
        .remedy("look for another process on the controller's port"));
    }
    let statement =
        statement(cluster_id, controller_id, &applicant.node_id, &key.public(), bytes, &certificate_request);
    let bare = applicant.signs_bare_challenge.then(|| key.sign(bytes).to_vec());
    Ok(pb::ChallengeNodeRequest {
        challenge_id: challenge.challenge_id.clone(),
        node_id: applicant.node_id.to_string(),
        challenge_signature: bare.unwrap_or_default(),
        signature_v1: key.sign(&statement).to_vec(),
        certificate_request,
        nonce: random::<CHALLENGE_BYTES>()?.to_vec(),
        ..Default::default()
    })
}

impl ControllerClient {
    pub async fn connect(endpoint: &Endpoint, tls: &LinkTls) -> Result<Self> {
        let line = Line::open(endpoint, tls).await?;
        Ok(Self { rpc: NodeClusterServiceClient::new(line.channel()), line })
    }

    /// Connects over a stream that the caller opens, to an address that only the caller knows.
    pub async fn connect_over(dial: Connector) -> Result<Self> {
        let line = Line::over(dial).await?;
        Ok(Self { rpc: NodeClusterServiceClient::new(line.channel()), line })
    }

    /// Resolves when the connection under this client is lost.
    pub async fn lost(&self) {
        self.line.lost().await;
    }

    /// Returns whether the connection uses TLS without a client certificate, so that it can only attest.
    pub fn is_bare(&self) -> bool {
        self.line.facts().bare
    }

    fn own_address(&self, applicant: &JoiningNode) -> String {
        match (&applicant.address, self.line.facts().local) {
            (AdvertisedAddress::Fixed(address), _) => address.clone(),
            (AdvertisedAddress::AsSeen { scheme, port }, Some(ip)) => {
                format!("{scheme}://{}", SocketAddr::new(ip, *port))
            }
            // Connected through a socket of this machine.
            (AdvertisedAddress::AsSeen { scheme, port }, None) => format!("{scheme}://127.0.0.1:{port}"),
        }
    }

    /// Performs both steps of the attestation.
    pub async fn attest(
        &mut self,
        applicant: &JoiningNode,
        key: Arc<NodeKey>,
        capabilities: &Capabilities,
        token: Option<Zeroizing<String>>,
        tls: &LinkTls,
    ) -> Result<Session> {
        let certificate = match tls {
            LinkTls::BuiltIn(kept) => kept.request(self.line.facts().refused)?.map(|key| (kept, key)),
            LinkTls::Off | LinkTls::Operator(_) => None,
        };
        let certificate_request =
            certificate.as_ref().map(|(_, key)| key.request_der.clone()).unwrap_or_default();
        let promised = token.as_deref().and_then(|token| EnrolmentToken::parse(token).ok()?.controller);
        let asked = Instant::now();
        let request = self.attestation(applicant, &key, capabilities, token);
        let challenge = self.rpc.attest_node(request).await.map_err(|e| from_status(&e))?.into_inner();
        // Half of the round trip is the best estimate of when the controller read its clock.
        let clock = ClusterClock::new(challenge.controller_time_ms, asked + asked.elapsed() / 2);
        let cluster_id = ClusterId::parse(challenge.cluster_id.clone())?;
        let controller_id = NodeId::parse(challenge.controller_id.clone())?;
        check_protocol(challenge.protocol_version)?;
        applicant.known.check_cluster(&cluster_id)?;
        let came = Instant::now();
        let answer = answer(applicant, &key, &challenge, (&cluster_id, &controller_id), certificate_request)?;
        let nonce = answer.nonce.clone();
        let admitted = self.rpc.challenge_node(answer).await.map_err(|e| from_status(&e))?.into_inner();
        let controller_key = PublicKey::parse(&admitted.controller_public_key)?;
        applicant.known.check(&cluster_id, &controller_key, promised.as_deref())?;
        self.check_proof(&admitted, (&cluster_id, &controller_id, &controller_key), applicant, &nonce)?;
        // A controller with the operator's certificates issues no certificate.
        if let Some((kept, key)) = certificate.filter(|_| !admitted.certificate_chain.is_empty()) {
            kept.keep(&key, &admitted.certificate_chain, &admitted.ca_bundle)?;
        }
        let token_keys = TokenKeys::parse(&admitted.token_keys, cluster_id.clone(), controller_id.clone())?;
        let claims = token_keys.verify(&admitted.node_security_token, clock.now_ms() / 1000)?;
        let lifetime = u64::try_from(claims.exp - claims.iat).unwrap_or(0);
        applicant.known.remember(&cluster_id, &controller_key)?;
        let sealer = Sealer::new(
            key,
            applicant.node_id.clone(),
            cluster_id.to_string(),
            admitted.node_security_token,
            SessionId::parse(admitted.session_id)?,
            admitted.epoch,
            clock,
        );
        Ok(Session {
            cluster_id,
            epoch: admitted.epoch,
            controller_id,
            controller_key,
            token_keys,
            clock,
            sealer,
            lifetime: Duration::from_secs(lifetime),
            since: came,
            window: Mutex::default(),
        })
    }

    fn attestation(
        &self,
        applicant: &JoiningNode,
        key: &NodeKey,
        capabilities: &Capabilities,
        token: Option<Zeroizing<String>>,
    ) -> pb::AttestNodeRequest {
        pb::AttestNodeRequest {
            node_id: applicant.node_id.to_string(),
            role: role_to_wire(applicant.role).into(),
            public_key: key.public().as_bytes().to_vec(),
            capabilities: Some(capabilities_to_wire(capabilities)),
            grpc_address: self.own_address(applicant),
            enrolment_token: token.map(|token| token.to_string()).unwrap_or_default(),
            nonce: uuid::Uuid::new_v4().to_string(),
            protocol_version: PROTOCOL_VERSION,
            software_version: SOFTWARE_VERSION.to_owned(),
        }
    }

    /// Checks that the controller holds the key that it names. In plaintext, any process on the port could name another
    /// controller's key. TLS and SSH links have proven it already.
    fn check_proof(
        &self,
        admitted: &pb::ChallengeNodeResponse,
        (cluster_id, controller_id, controller_key): (&ClusterId, &NodeId, &PublicKey),
        applicant: &JoiningNode,
        nonce: &[u8],
    ) -> Result<()> {
        if admitted.controller_signature.is_empty() && !self.line.facts().plaintext {
            return Ok(());
        }
        let statement = Admitted {
            cluster_id,
            controller_id,
            controller_key,
            node_id: &applicant.node_id,
            nonce,
            session_id: &admitted.session_id,
            token: &admitted.node_security_token,
            token_keys: &admitted.token_keys,
            epoch: admitted.epoch,
            certificate_chain: &admitted.certificate_chain,
            ca_bundle: &admitted.ca_bundle,
        }
        .statement();
        controller_key.verify(&statement, &admitted.controller_signature).map_err(|error| {
            Error::new(
                ErrorCode::ControllerMismatch,
                "the process at the controller's address does not prove that it holds the controller's key",
            )
            .remedy(
                "look for another process on the controller's port; update a controller of an older version",
            )
            .source(error)
        })
    }

    pub async fn register(
        &mut self,
        session: &Session,
        applicant: &JoiningNode,
        own: &Capabilities,
        interval: Duration,
    ) -> Result<()> {
        let inner = pb::RegisterNodeInner {
            node_id: applicant.node_id.to_string(),
            capabilities: Some(capabilities_to_wire(own)),
            grpc_address: self.own_address(applicant),
            seal: None,
            heartbeat_interval_secs: interval_to_wire(interval),
        };
        let request = session.sealer.seal(inner, |e| pb::RegisterNodeRequest { envelope: Some(e) })?;
        let answer = self.rpc.register_node(request).await.map_err(|e| from_status(&e))?.into_inner();
        if answer.accepted {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Forbidden, format!("the controller refuses this node: {}", answer.message)))
    }

    pub async fn heartbeat(
        &mut self,
        session: &Session,
        node_id: &NodeId,
        beat: Beat,
    ) -> Result<Vec<(CommandId, Command)>> {
        let status = if beat.draining { pb::NodeStatus::Draining } else { pb::NodeStatus::Active };
        let inner = pb::NodeHeartbeatInner {
            node_id: node_id.to_string(),
            status: status.into(),
            active_executions: u32::try_from(beat.running).unwrap_or(u32::MAX),
            available_memory_gb: beat.capabilities.memory_mb_free / 1024,
            acknowledged_command_ids: beat.acknowledged.iter().map(ToString::to_string).collect(),
            capabilities: Some(capabilities_to_wire(&beat.capabilities)),
            running: beat.held.iter().map(held_to_wire).collect(),
            config_version: beat.config_version,
            config_error: beat.config_error.unwrap_or_default(),
            heartbeat_interval_secs: interval_to_wire(beat.interval),
            ..Default::default()
        };
        let request = session.sealer.seal(inner, |e| pb::NodeHeartbeatRequest { envelope: Some(e) })?;
        let answer = self.rpc.heartbeat(request).await.map_err(|e| from_status(&e))?.into_inner();
        let commands =
            answer.pending_commands.into_iter().map(command_from_wire).collect::<Result<Vec<_>>>()?;
        Ok(commands.into_iter().flatten().collect())
    }

    /// Returns this node's configuration if it differs from the current one: version and body.
    pub async fn sync_config(
        &mut self,
        session: &Session,
        node_id: &NodeId,
        current: String,
    ) -> Result<Option<(String, Vec<u8>)>> {
        let inner = pb::SyncConfigInner {
            node_id: node_id.to_string(),
            current_config_version: current,
            tenant_id: None,
            seal: None,
        };
        let request = session.sealer.seal(inner, |e| pb::SyncConfigRequest { envelope: Some(e) })?;
        let answer = self.rpc.sync_config(request).await.map_err(|e| from_status(&e))?.into_inner();
        Ok((!answer.up_to_date).then_some((answer.latest_version, answer.config_delta)))
    }

    /// Replaces this node's key with the next key, signed with both. The session remains valid for a short overlap.
    /// Attest with the new key during the overlap.
    pub async fn rotate_key(&mut self, session: &Session, node_id: &NodeId, next: &NodeKey) -> Result<()> {
        let new_public_key = next.public().as_bytes().to_vec();
        let inner = pb::RotateEdgeKeyInner {
            node_id: node_id.to_string(),
            new_public_key: new_public_key.clone(),
            nonce: uuid::Uuid::new_v4().as_bytes().to_vec(),
            seal: None,
        };
        let request = session.sealer.seal(inner, |envelope| {
            let signature_with_new_key = next.sign(&envelope.payload).to_vec();
            pb::RotateEdgeKeyRequest {
                current_envelope: Some(envelope),
                new_public_key,
                signature_with_new_key,
            }
        })?;
        self.rpc.rotate_edge_key(request).await.map_err(|e| from_status(&e))?;
        Ok(())
    }

    pub async fn goodbye(&mut self, session: &Session, node_id: &NodeId, reason: &str) -> Result<()> {
        self.deregister(session, node_id, reason, false).await.map(drop)
    }

    /// Asks to leave the cluster. Returns `true` once the controller has removed the node.
    pub async fn leave(&mut self, session: &Session, node_id: &NodeId, reason: &str) -> Result<bool> {
        self.deregister(session, node_id, reason, true).await
    }

    async fn deregister(
        &mut self,
        session: &Session,
        node_id: &NodeId,
        reason: &str,
        leave: bool,
    ) -> Result<bool> {
        let inner = pb::DeregisterNodeInner {
            node_id: node_id.to_string(),
            reason: reason.to_owned(),
            seal: None,
            leave,
        };
        let request = session.sealer.seal(inner, |e| pb::DeregisterNodeRequest { envelope: Some(e) })?;
        let answer = self.rpc.deregister_node(request).await.map_err(|e| from_status(&e))?;
        Ok(answer.into_inner().accepted)
    }
}
