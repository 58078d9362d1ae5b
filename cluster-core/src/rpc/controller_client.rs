//! A worker's calls to its controller.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use aegis_proto::aegis::cluster::v1::{self as pb, node_cluster_service_client::NodeClusterServiceClient};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tonic::transport::{Channel, Endpoint as Target};
use tower::service_fn;
use zeroize::Zeroizing;

use super::{
    ClusterClock, PROTOCOL_VERSION, SOFTWARE_VERSION, Sealer,
    convert::{capabilities_to_wire, command_from_wire, held_to_wire, role_to_wire},
    listener::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
    status::from_status,
};
use crate::{
    cluster::{
        membership::Command,
        peer::{Capabilities, Role},
    },
    config::settings::Endpoint,
    error::{Error, ErrorCode, Result},
    execution::supervisor::Held,
    identity::{KeyFile, NodeKey, PublicKey, SequenceWindow, TokenKeys, statement},
    ids::{ClusterId, CommandId, NodeId, SessionId},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What an attested worker knows of its controller.
#[derive(Debug)]
pub struct Session {
    pub controller_id: NodeId,
    pub controller_key: PublicKey,
    pub token_keys: TokenKeys,
    pub clock: ClusterClock,
    pub sealer: Sealer,
    /// How long the token lasts from when it came.
    pub lifetime: Duration,
    pub since: Instant,
    window: Mutex<SequenceWindow>,
}

impl Session {
    /// Takes a call of the controller once.
    pub fn accept(&self, sequence: u64) -> Result<()> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).accept(sequence)
    }
}

/// Who attests.
#[derive(Debug, Clone)]
pub struct Applicant {
    pub node_id: NodeId,
    pub role: Role,
    pub keys: Arc<KeyFile>,
    pub address: String,
    /// Pinned beforehand, where a deployment wrote it.
    pub controller_key: Option<PublicKey>,
}

/// What a heartbeat says.
#[derive(Debug, Clone, Default)]
pub struct Beat {
    pub capabilities: Capabilities,
    pub running: usize,
    pub held: Vec<Held>,
    pub acknowledged: Vec<CommandId>,
    pub draining: bool,
}

/// One connection to the controller.
#[derive(Debug, Clone)]
pub struct ControllerClient {
    rpc: NodeClusterServiceClient<Channel>,
    lost: watch::Receiver<bool>,
}

impl ControllerClient {
    pub async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let (dropped, lost) = watch::channel(false);
        let dropped = Arc::new(dropped);
        // The URI only fills the `:authority` of the calls.
        let target = Target::from_static("http://controller")
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let shown = match endpoint {
            Endpoint::Unix(path) => path.display().to_string(),
            Endpoint::Http(url) => url.to_string(),
        };
        let unreachable = |e: tonic::transport::Error| {
            Error::new(ErrorCode::Unavailable, format!("the controller does not answer at {shown}")).source(e)
        };
        let channel = match endpoint {
            Endpoint::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_| watched_unix(path.clone(), dropped.clone()));
                target.connect_with_connector(connector).await.map_err(unreachable)?
            }
            Endpoint::Http(url) => {
                let address = loopback(url)?;
                let connector = service_fn(move |_| watched_tcp(address.clone(), dropped.clone()));
                target.connect_with_connector(connector).await.map_err(unreachable)?
            }
        };
        Ok(Self { rpc: NodeClusterServiceClient::new(channel), lost })
    }

    /// Resolves when the connection under this client is gone.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // Fails only with the sender, which goes with the connection.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Both steps of the attestation.
    pub async fn attest(
        &mut self,
        applicant: &Applicant,
        key: Arc<NodeKey>,
        capabilities: &Capabilities,
        token: Option<Zeroizing<String>>,
    ) -> Result<Session> {
        let public_key = key.public();
        let asked = Instant::now();
        let request = pb::AttestNodeRequest {
            node_id: applicant.node_id.to_string(),
            role: role_to_wire(applicant.role).into(),
            public_key: public_key.as_bytes().to_vec(),
            capabilities: Some(capabilities_to_wire(capabilities)),
            grpc_address: applicant.address.clone(),
            enrolment_token: token.map(|token| token.to_string()).unwrap_or_default(),
            nonce: uuid::Uuid::new_v4().to_string(),
            protocol_version: PROTOCOL_VERSION,
            software_version: SOFTWARE_VERSION.to_owned(),
        };
        let challenge = self.rpc.attest_node(request).await.map_err(|e| from_status(&e))?.into_inner();
        // Half of the way there and back: the best guess of when the controller looked at its clock.
        let clock = ClusterClock::new(challenge.controller_time_ms, asked + asked.elapsed() / 2);
        let cluster_id = ClusterId::parse(challenge.cluster_id)?;
        let controller_id = NodeId::parse(challenge.controller_id)?;
        let statement = statement(
            &cluster_id,
            &controller_id,
            &applicant.node_id,
            &public_key,
            &challenge.challenge_nonce,
            &[],
        );
        let came = Instant::now();
        let answer = pb::ChallengeNodeRequest {
            challenge_id: challenge.challenge_id,
            node_id: applicant.node_id.to_string(),
            // For a controller of the other implementation.
            challenge_signature: key.sign(&challenge.challenge_nonce).to_vec(),
            signature_v1: key.sign(&statement).to_vec(),
            ..Default::default()
        };
        let admitted = self.rpc.challenge_node(answer).await.map_err(|e| from_status(&e))?.into_inner();
        let controller_key = PublicKey::parse(&admitted.controller_public_key)?;
        if applicant.controller_key.is_some_and(|pinned| pinned != controller_key) {
            return Err(Error::new(
                ErrorCode::KeyMismatch,
                "the controller answers with another key than the one this node was deployed with",
            )
            .remedy("if its key was replaced on purpose, deploy this node again"));
        }
        let token_keys = TokenKeys::parse(&admitted.token_keys, cluster_id.clone(), controller_id.clone())?;
        let claims = token_keys.verify(&admitted.node_security_token, clock.now_ms() / 1000)?;
        let lifetime = u64::try_from(claims.exp - claims.iat).unwrap_or(0);
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

    pub async fn register(
        &mut self,
        session: &Session,
        applicant: &Applicant,
        own: &Capabilities,
    ) -> Result<()> {
        let inner = pb::RegisterNodeInner {
            node_id: applicant.node_id.to_string(),
            capabilities: Some(capabilities_to_wire(own)),
            grpc_address: applicant.address.clone(),
            seal: None,
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
            ..Default::default()
        };
        let request = session.sealer.seal(inner, |e| pb::NodeHeartbeatRequest { envelope: Some(e) })?;
        let answer = self.rpc.heartbeat(request).await.map_err(|e| from_status(&e))?.into_inner();
        let commands =
            answer.pending_commands.into_iter().map(command_from_wire).collect::<Result<Vec<_>>>()?;
        Ok(commands.into_iter().flatten().collect())
    }

    /// Changes this node's key to the next one, signed with both. The session goes on for a short overlap:
    /// attest with the new key then.
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

    /// Asks to be no member any more: true once that is done.
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

/// The address of a controller on this machine; others need the direct link.
pub(crate) fn loopback(url: &url::Url) -> Result<String> {
    let refused = || {
        Error::new(
            ErrorCode::NotOffered,
            format!("{url} is not on loopback: the direct link is not offered yet"),
        )
        .remedy("deploy the node from the controller with `aegis deploy HOST`")
    };
    let port = url.port().ok_or_else(refused)?;
    let address = match url.host() {
        Some(url::Host::Ipv4(address)) if address.is_loopback() => address.to_string(),
        Some(url::Host::Ipv6(address)) if address.is_loopback() => format!("[{address}]"),
        Some(url::Host::Domain("localhost")) => "127.0.0.1".to_owned(),
        _ => return Err(refused()),
    };
    if url.scheme() != "http" { Err(refused()) } else { Ok(format!("{address}:{port}")) }
}

async fn watched_unix(
    path: impl AsRef<Path>,
    lost: Arc<watch::Sender<bool>>,
) -> io::Result<TokioIo<Watched<UnixStream>>> {
    let stream = UnixStream::connect(path).await?;
    Ok(TokioIo::new(Watched { stream, lost }))
}

async fn watched_tcp(
    address: String,
    lost: Arc<watch::Sender<bool>>,
) -> io::Result<TokioIo<Watched<TcpStream>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(Watched { stream, lost }))
}

/// Tells when the connection is dropped: a worker that waited for its next heartbeat to notice would be
/// away for half a minute after every restart of its controller.
struct Watched<S> {
    stream: S,
    lost: Arc<watch::Sender<bool>>,
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.lost.send_replace(true);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
