//! How the controller reaches its nodes: itself in process, deployed ones through their SSH links,
//! others directly, at the address they registered (see [`crate::nodes::direct`]).
//!
//! Tasks: one watcher a link, which tells the membership whether it is up; it ends with the link.

pub mod direct;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aegis_config::layers::MergedConfig;
use aegis_identity::PublicKey;
use aegis_rpc::{
    node_proof,
    node_worker::{NodeWorker, RemoteWorker},
    paced_channel::WeakChannel,
    wire::{ByteStream, Connector},
    worker_client::WorkerClient,
};
use aegis_ssh::{Connection, Dialer, LinkHandle, LinkSettings, LinkState, SshStream};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::order::Held,
    ids::NodeId,
};
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use crate::{handle::Controller, nodes::direct::DirectAccess};

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between looks at a node that answers: with the probe's own limit, a death is noticed within 15 s.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(10);
/// Between looks at one that does not.
const ABSENCE_INTERVAL: Duration = Duration::from_millis(500);
/// Reports that the dispatcher has not looked at; a newer heartbeat says it again.
const REPORTS_MAX: usize = 256;
const LINK_STREAMS_MAX: usize = 64;

#[derive(Debug)]
struct Remote {
    client: WorkerClient,
    /// `None` for a node that registered an address of its own.
    link: Option<Arc<LinkHandle>>,
    direct: Option<Direct>,
}

/// Client and watcher of a node on the direct link.
struct Direct {
    dial: Connector,
    /// Version of the certificate under which its client was made.
    version: u64,
    /// The watcher ends with this.
    _watch: DropGuard,
}

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Direct({})", self.version)
    }
}

#[derive(Debug)]
struct Shared {
    controller: Controller,
    local: Option<Arc<dyn NodeWorker>>,
    direct: DirectAccess,
    remote: Mutex<HashMap<NodeId, Remote>>,
    inbound: mpsc::Sender<(NodeId, SshStream)>,
    reports: mpsc::Sender<(NodeId, Vec<Held>)>,
}

/// A channel to the node. Where others of its host could listen in its place, it has shown its key.
async fn connect(link: &LinkHandle, controller: &Controller, node_id: &NodeId) -> io::Result<SshStream> {
    let mut stream = link.connect_node().await?;
    if link.is_open_to_others() {
        let record = controller.record(node_id).await.map_err(io::Error::other)?;
        let pinned = record.and_then(|record| record.public_key);
        let pinned = pinned.ok_or_else(|| io::Error::other(format!("{node_id} has no pinned key")))?;
        let key = PublicKey::parse(&pinned).map_err(io::Error::other)?;
        node_proof::demand(&mut stream, node_id, &key).await?;
    }
    Ok(stream)
}

/// Whether the node's process answers. An sshd, or the kernel, takes connections for one that is stopped.
async fn answers(channel: &WeakChannel) -> bool {
    let Some(channel) = channel.upgrade() else { return false };
    matches!(tokio::time::timeout(PROBE_TIMEOUT, channel.ping()).await, Ok(Ok(())))
}

/// Streams from nodes, each with one receiver.
#[derive(Debug)]
pub struct NodeStreams {
    pub links: mpsc::Receiver<(NodeId, SshStream)>,
    pub reports: mpsc::Receiver<(NodeId, Vec<Held>)>,
}

/// A cheap handle on all nodes.
#[derive(Debug, Clone)]
pub struct NodeConnections(Arc<Shared>);

impl NodeConnections {
    pub fn new(
        controller: Controller,
        local: Option<Arc<dyn NodeWorker>>,
        direct: DirectAccess,
    ) -> (Self, NodeStreams) {
        let (inbound, links) = mpsc::channel(LINK_STREAMS_MAX);
        let (reports_sender, reports) = mpsc::channel(REPORTS_MAX);
        let remote = Mutex::default();
        let shared = Shared { controller, local, direct, remote, inbound, reports: reports_sender };
        (Self(Arc::new(shared)), NodeStreams { links, reports })
    }

    fn remote(&self) -> MutexGuard<'_, HashMap<NodeId, Remote>> {
        self.0.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the standing link of a node, over an open connection if there is one, in place of the
    /// one it had.
    pub fn attach_link(&self, settings: LinkSettings, dialer: Dialer, adopted: Option<Connection>) {
        let node_id = settings.node.clone();
        // The old one first: two would fight for one socket on the host.
        drop(self.remote().remove(&node_id));
        let link = Arc::new(LinkHandle::start(settings, dialer, adopted, self.0.inbound.clone()));
        let mut state = link.state();
        let (dialled, asked, dialled_id) = (link.clone(), self.0.controller.clone(), node_id.clone());
        let open: Connector = Arc::new(move || {
            let (link, controller, node_id) = (dialled.clone(), asked.clone(), dialled_id.clone());
            Box::pin(async move {
                let stream = connect(&link, &controller, &node_id).await?;
                Ok(Box::new(stream) as Box<dyn ByteStream>)
            })
        });
        let client = WorkerClient::new(self.0.controller.id().clone(), open);
        let (controller, watched) = (self.0.controller.clone(), node_id.clone());
        // The link ends with its client, which its watcher must not keep.
        let probed = client.channel().downgrade();
        tokio::spawn(async move {
            let mut told = None;
            loop {
                let (connected, failure) = {
                    let state = state.borrow_and_update();
                    (matches!(*state, LinkState::Up { .. }), state.failure().cloned())
                };
                // A worker that died behind a living connection must get no work either.
                let up = connected && answers(&probed).await;
                let reported = async {
                    if told != failure {
                        controller.set_link_failure(watched.clone(), failure.clone()).await?;
                        told = failure;
                    }
                    controller.set_link(watched.clone(), up).await
                };
                if reported.await.is_err() {
                    return;
                }
                let interval = if connected && !up { ABSENCE_INTERVAL } else { PRESENCE_INTERVAL };
                if let Ok(Err(_)) = tokio::time::timeout(interval, state.changed()).await {
                    return;
                }
            }
        });
        self.remote().insert(node_id, Remote { client, link: Some(link), direct: None });
    }

    pub fn detach(&self, node_id: &NodeId) {
        drop(self.remote().remove(node_id));
    }

    /// Ends the SSH link of a node, if it has one, so that it can register with an address of its own.
    pub async fn detach_link(&self, node_id: &NodeId) -> Result<()> {
        let linked = {
            let mut remote = self.remote();
            let linked = remote.get(node_id).is_some_and(|known| known.link.is_some());
            if linked { remote.remove(node_id) } else { None }
        };
        match linked {
            Some(_) => self.0.controller.set_link(node_id.clone(), false).await,
            None => Ok(()),
        }
    }

    /// Whether a node that registers can be reached where it says; then it can be called.
    /// `is_near`: the node is on this machine, or inside an SSH connection; others name no address of this
    /// machine's loopback.
    pub async fn probe(&self, node_id: &NodeId, address: &str, is_near: bool) -> Result<()> {
        let unreachable = |why: String| {
            Error::new(
                ErrorCode::Unavailable,
                format!("{node_id} cannot be reached from the controller: {why}"),
            )
            .remedy("advertise an address on which the node listens")
        };
        let link = self.remote().get(node_id).and_then(|remote| remote.link.clone());
        if let Some(link) = link {
            let connecting = connect(&link, &self.0.controller, node_id);
            let probe = tokio::time::timeout(PROBE_TIMEOUT, connecting).await;
            return match probe {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(unreachable(error.to_string())),
                Err(_) => Err(unreachable("its socket does not answer".into())),
            };
        }
        let dial = self.0.direct.dial(node_id, address, is_near)?;
        // One text for all failures: a node must not learn what else listens where.
        let controller = &self.0.controller;
        let client = WorkerClient::new(controller.id().clone(), dial.clone());
        direct::reach(node_id, &dial).await.map_err(|error| {
            tracing::warn!(%node_id, address, error = %error.chain(), "the address of a node does not lead to it");
            match error.code() {
                ErrorCode::Unavailable => unreachable("nothing that is it answers there".into()),
                _ => error,
            }
        })?;
        // It may have been removed meanwhile, and then it is not watched.
        controller.standing(node_id)?;
        controller.set_link(node_id.clone(), true).await?;
        let version = self.0.direct.version();
        let (nodes, watched) = (Arc::downgrade(&self.0), node_id.clone());
        // Another certificate brings another channel.
        let channel = move || Some(Self(nodes.upgrade()?).client(&watched)?.channel());
        let watch = direct::watch(controller.clone(), node_id.clone(), channel);
        let direct = Some(Direct { dial, version, _watch: watch });
        self.remote().insert(node_id.clone(), Remote { client, link: None, direct });
        Ok(())
    }

    /// Forwards the executions of a heartbeat. A report is dropped if the receiver is too slow.
    pub fn report_held(&self, node_id: NodeId, held: Vec<Held>) {
        let _ = self.0.reports.try_send((node_id, held));
    }

    /// Returns the worker of a node that can be called now.
    ///
    /// # Errors
    /// `Unavailable` if the node has no connection, or has not attested since the controller started.
    pub fn worker(&self, node_id: &NodeId) -> Result<Arc<dyn NodeWorker>> {
        if node_id == self.0.controller.id()
            && let Some(local) = &self.0.local
        {
            return Ok(local.clone());
        }
        Ok(Arc::new(self.remote_worker(node_id)?))
    }

    fn remote_worker(&self, node_id: &NodeId) -> Result<RemoteWorker> {
        let away = |why: &str| Error::new(ErrorCode::Unavailable, format!("{node_id} {why}"));
        let client = self.client(node_id).ok_or_else(|| away("has no connection"))?;
        let sealer = self.0.controller.sessions().sealer(node_id);
        let sealer = sealer.ok_or_else(|| away("has not attested since the controller started"))?;
        Ok(RemoteWorker { client, sealer })
    }

    fn client(&self, node_id: &NodeId) -> Option<WorkerClient> {
        let version = self.0.direct.version();
        let mut remote = self.remote();
        let known = remote.get_mut(node_id)?;
        if let Some(direct) = known.direct.as_mut().filter(|direct| direct.version != version) {
            // New calls go over a connection that shows the new certificate; what runs on the old one goes on.
            known.client = WorkerClient::new(self.0.controller.id().clone(), direct.dial.clone());
            direct.version = version;
        }
        Some(known.client.clone())
    }

    /// A command waits for a node: it is asked to fetch it now. One that cannot be called fetches it
    /// with its next heartbeat.
    pub fn nudge(&self, node_id: &NodeId) {
        if let Ok(RemoteWorker { client, sealer }) = self.remote_worker(node_id) {
            tokio::spawn(async move {
                if let Err(error) = client.nudge(&sealer).await {
                    tracing::debug!(error = %error.chain(), "not nudged");
                }
            });
        }
    }

    /// Sends a node its configuration now. One that cannot be called, or is called in vain, fetches it
    /// with its next heartbeat.
    pub fn push_config(&self, node_id: &NodeId, config: MergedConfig) {
        let Ok(RemoteWorker { client, sealer }) = self.remote_worker(node_id) else { return };
        let node_id = node_id.clone();
        tokio::spawn(async move {
            match client.push_config(&sealer, &node_id, &config).await {
                Ok(accepted) => tracing::debug!(%node_id, accepted, "the configuration was pushed"),
                Err(error) => tracing::debug!(%node_id, error = %error.chain(), "not pushed"),
            }
            // What came of it is told, and acknowledged, by a heartbeat.
            if let Err(error) = client.nudge(&sealer).await {
                tracing::debug!(%node_id, error = %error.chain(), "not nudged");
            }
        });
    }

    /// The connection of a node's link, to run something on its host.
    pub fn connection(&self, node_id: &NodeId) -> Option<Connection> {
        let link = self.remote().get(node_id).and_then(|remote| remote.link.clone());
        link.and_then(|link| link.connection())
    }

    /// Ends all links.
    pub fn stop(&self) {
        self.remote().clear();
    }
}
