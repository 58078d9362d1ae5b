//! The controller: the owner of the membership, and the one who admits nodes (see [`admission`]).
//!
//! Tasks: one owner task holds the [`Membership`]; everybody else sends it decisions, which it runs one
//! after the other, stores, applies and only then answers. The same task sweeps for silent nodes and
//! for drains that are overdue.

mod admission;
mod layers;
mod owner;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aegis_identity::{
    Challenger, NodeKey, PublicKey, SealContext, TokenKeys, TokenKeysView, TokenSigner, TransitSettings,
};
use aegis_rpc::SOFTWARE_VERSION;
use aegis_store::{Store, Write};
use aegis_types::{
    clock::Clock,
    error::{Error, ErrorCode, Failure, Result},
    heartbeat::Command,
    ids::{ClusterId, CommandId, ExecutionId, GpuUuid, NodeId},
    node::{DrainState, DrainView, LinkKind, NodeHost, NodeRecord, Observed, OnDeadline, PeerView, Role},
    node_event::NodeEventKind,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::owner::{Decide, Decision, Owner, Stored, set_standing};
use super::{
    events::NodeEvents,
    membership::{
        Change, Given, Membership, PeerFilter, PeerPage, Registration, Report, RevokedKeys, Staleness,
    },
    sessions::Sessions,
};

pub use admission::{
    Admission, ChallengeAnswer, ChallengeSignature, Rotation, TokenOrder, TokenState, TokenView,
};
pub use layers::NodeConfigView;

/// Decisions waiting for the owner. A full queue makes callers wait.
const DECISIONS_MAX: usize = 256;
/// Deadline of executions on a node that leaves, as for a drain.
const LEAVE_DEADLINE: Duration = Duration::from_secs(300);
const META_CLUSTER_ID: &str = "cluster_id";
const META_EPOCH: &str = "epoch";

/// How the controller watches its nodes.
#[derive(Debug, Clone, Copy)]
pub struct HealthSettings {
    pub staleness: Staleness,
    pub sweep_interval: Duration,
    pub clock: Clock,
}

#[derive(Debug)]
struct Shared {
    id: NodeId,
    cluster_id: ClusterId,
    epoch: u64,
    key: Arc<NodeKey>,
    signer: Arc<TokenSigner>,
    challenger: Challenger,
    sessions: Sessions,
    events: NodeEvents,
    standings: Standings,
    store: Store,
    decisions: mpsc::Sender<Decision>,
    /// Rises with every change of the membership.
    version: watch::Receiver<u64>,
    overdue: watch::Receiver<Vec<ExecutionId>>,
    /// Configuration changes one after the other.
    config: tokio::sync::Mutex<()>,
    /// Our own newest token, and the second of its signature.
    own_token: tokio::sync::Mutex<Option<(i64, String)>>,
    /// Written by the owner with each sweep.
    doubts_silence: Arc<AtomicBool>,
    /// When an event told of a machine in a node's name.
    refused: Mutex<HashMap<NodeId, i64>>,
    clock: Clock,
}

/// Facts of a member's record that authenticate its calls.
#[derive(Debug, Clone)]
pub struct Standing {
    pub role: Role,
    /// The key that is pinned now.
    pub key: PublicKey,
    /// False for a node of the other implementation.
    pub sealed: bool,
}

/// Standing of every node; `None` for a removed node. The owner writes it after the store.
type Standings = Arc<RwLock<HashMap<NodeId, Option<Standing>>>>;

/// Returns the epoch of a new life of the controller. The time is its floor, so that a database that was
/// restored from a backup is not behind what its nodes have obeyed.
fn next_epoch(stored: u64, now_ms: i64) -> u64 {
    stored.saturating_add(1).max(u64::try_from(now_ms / 1000).unwrap_or(0))
}

/// A cheap handle on the controller.
#[derive(Debug, Clone)]
pub struct Controller(Arc<Shared>);

impl Controller {
    pub async fn start(
        id: NodeId,
        key: Arc<NodeKey>,
        data: &Path,
        store: Store,
        health: HealthSettings,
        transit: Option<TransitSettings>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let cluster_id = match store.meta(META_CLUSTER_ID).await? {
            Some(stored) => ClusterId::parse(stored)?,
            None => {
                let minted = ClusterId::mint();
                let value = minted.to_string();
                store.write(Write::SetMeta { name: META_CLUSTER_ID, value }).await?;
                minted
            }
        };
        let stored = store.meta(META_EPOCH).await?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let epoch = next_epoch(stored, health.clock.now_ms());
        store.write(Write::SetMeta { name: META_EPOCH, value: epoch.to_string() }).await?;
        let signer = Arc::new(match transit {
            Some(transit) => TokenSigner::transit(transit, cluster_id.clone(), id.clone())?,
            None => TokenSigner::local(&data.join("token-key.pem"), cluster_id.clone(), id.clone())?,
        });
        tokio::spawn(signer.clone().keep(stop.clone()));

        let mut commands = Vec::new();
        for (node_id, command_id, body) in store.open_commands().await? {
            match serde_json::from_str::<Command>(&body) {
                Ok(command) => commands.push((node_id, command_id, command)),
                Err(error) => {
                    tracing::error!(%node_id, %command_id, %error, "a stored command cannot be read")
                }
            }
        }
        let (nodes, assignments) = (store.nodes().await?, store.assignments().await?);
        let revoked = RevokedKeys::new(store.revoked_keys().await?);
        let now_ms = health.clock.now_ms();
        let membership = Membership::restore(nodes, commands, assignments, revoked, now_ms);
        let (decisions, queue) = mpsc::channel(DECISIONS_MAX);
        let (version_sender, version) = watch::channel(0);
        let (overdue_sender, overdue) = watch::channel(Vec::new());
        let events = NodeEvents::new(epoch);
        let standings = Standings::default();
        membership.records().for_each(|record| set_standing(&standings, record));
        let doubts_silence = Arc::new(AtomicBool::new(false));
        let owner = Owner {
            id: id.clone(),
            doubts_silence: doubts_silence.clone(),
            membership,
            events: events.clone(),
            standings: standings.clone(),
            store: store.clone(),
            version: version_sender,
            overdue: overdue_sender,
            staleness: health.staleness,
            clock: health.clock,
        };
        tokio::spawn(owner.run(queue, health.sweep_interval, stop));
        let challenger = Challenger::new()?;
        let sessions = Sessions::default();
        Ok(Self(Arc::new(Shared {
            id,
            cluster_id,
            epoch,
            key,
            signer,
            challenger,
            sessions,
            events,
            standings,
            store,
            decisions,
            version,
            overdue,
            config: tokio::sync::Mutex::default(),
            own_token: tokio::sync::Mutex::default(),
            doubts_silence,
            refused: Mutex::default(),
            clock: health.clock,
        })))
    }

    pub fn id(&self) -> &NodeId {
        &self.0.id
    }

    pub fn cluster_id(&self) -> &ClusterId {
        &self.0.cluster_id
    }

    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// The cluster's time.
    pub fn now_ms(&self) -> i64 {
        self.0.clock.now_ms()
    }

    pub fn public_key(&self) -> PublicKey {
        self.0.key.public()
    }

    /// Signs a statement of the controller's. Each kind of statement has a domain prefix of its own.
    pub fn sign(&self, statement: &[u8]) -> [u8; 64] {
        self.0.key.sign(statement)
    }

    /// Returns the keys that verify node security tokens.
    pub fn token_keys(&self) -> Arc<TokenKeys> {
        self.0.signer.keys()
    }

    pub fn token_keys_view(&self) -> TokenKeysView {
        self.0.signer.view()
    }

    /// A new key signs at once; tokens that are out stay valid.
    pub async fn rotate_token_key(&self) -> Result<TokenKeysView> {
        self.0.signer.rotate().await
    }

    pub fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// Returns the log of node events.
    pub fn events(&self) -> &NodeEvents {
        &self.0.events
    }

    /// Whether the membership's owner still takes decisions.
    pub fn is_running(&self) -> bool {
        !self.0.decisions.is_closed()
    }

    /// Changes whenever the membership does, from now on.
    pub fn version(&self) -> watch::Receiver<u64> {
        let mut version = self.0.version.clone();
        version.mark_unchanged();
        version
    }

    /// Whether most nodes are late at once: then nothing that runs on them is given up.
    pub fn doubts_silence(&self) -> bool {
        self.0.doubts_silence.load(Ordering::Acquire)
    }

    /// Executions that a drain's deadline ends.
    pub fn overdue(&self) -> watch::Receiver<Vec<ExecutionId>> {
        self.0.overdue.clone()
    }

    /// Runs a decision on the membership; answers once its changes are stored and applied.
    async fn decide<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Membership, i64) -> Result<(Vec<Change>, T)> + Send + 'static,
    ) -> Result<T> {
        self.send(false, decide).await
    }

    async fn send<T: Send + 'static>(
        &self,
        stirs: bool,
        decide: impl FnOnce(&mut Membership, i64) -> Result<(Vec<Change>, T)> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let decide: Decide = Box::new(move |membership, now_ms| match decide(membership, now_ms) {
            Ok((changes, value)) => {
                let stored: Stored = Box::new(move |stored| drop(answer.send(stored.map(|()| value))));
                (changes, stored)
            }
            Err(error) => (Vec::new(), Box::new(move |_| drop(answer.send(Err(error))))),
        });
        let stopped = || Error::new(ErrorCode::Unavailable, "the controller is stopping");
        self.0.decisions.send(Decision { decide, stirs }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Returns the standing of the node that a token names, or why the node may not call. Reads the last stored change
    /// without the owner, since every call needs it.
    pub fn standing(&self, node_id: &NodeId) -> Result<Standing> {
        let standings = self.0.standings.read().unwrap_or_else(PoisonError::into_inner);
        match standings.get(node_id) {
            Some(Some(standing)) => Ok(standing.clone()),
            Some(None) => Err(Error::new(ErrorCode::NodeRemoved, format!("node {node_id} was removed"))
                .remedy("enrol it again with a new token, or deploy it again")),
            None => Err(Error::new(ErrorCode::Unauthenticated, format!("node {node_id} is not a member"))
                .remedy("attest again")),
        }
    }

    /// The key that a call in this node's session must be signed with, if the session may speak.
    pub fn session_key(&self, node_id: &NodeId, context: &SealContext, now_ms: i64) -> Result<PublicKey> {
        if context.epoch != self.0.epoch {
            return Err(Error::new(
                ErrorCode::SessionUnknown,
                "the session is from an earlier life of this controller",
            )
            .remedy("attest again"));
        }
        self.0.sessions.key(&context.session_id, node_id, now_ms)
    }

    /// The key of a session of this node that a newer one has ended.
    pub fn ended_session_key(
        &self,
        node_id: &NodeId,
        context: &SealContext,
        now_ms: i64,
    ) -> Option<PublicKey> {
        self.0.sessions.ended_key(&context.session_id, node_id, now_ms)
    }

    /// A call in an ended session was signed with the session's key. Two sessions that alternate raise an
    /// alarm.
    pub fn note_contention(&self, node_id: &NodeId, context: &SealContext, now_ms: i64) {
        let sessions = &self.0.sessions;
        let known = sessions.is_contended(node_id, now_ms);
        sessions.note_contention(&context.session_id, node_id, now_ms);
        if !known && sessions.is_contended(node_id, now_ms) {
            tracing::error!(%node_id, "two sessions of this node's key alternate: its key may have been copied");
            self.0.events.append(NodeEventKind::NodeContended, node_id.clone(), now_ms);
        }
    }

    pub async fn record(&self, node_id: &NodeId) -> Result<Option<NodeRecord>> {
        let id = node_id.clone();
        self.decide(move |membership, _| Ok((Vec::new(), membership.record(&id).cloned()))).await
    }

    pub async fn records(&self) -> Result<Vec<NodeRecord>> {
        self.decide(move |membership, _| Ok((Vec::new(), membership.records().cloned().collect()))).await
    }

    // --- members ---------------------------------------------------------------------------

    pub async fn check_identity(&self, node_id: NodeId, site: NodeHost) -> Result<()> {
        self.decide(move |membership, _| {
            membership.check_identity(&node_id, &site).map(|()| (Vec::new(), ()))
        })
        .await
    }

    /// Records another address of the host that a node was deployed to.
    pub async fn relocate(&self, node_id: NodeId, host: String, port: u16) -> Result<()> {
        self.decide(move |membership, _| Ok((membership.relocate(&node_id, host, port)?, ()))).await
    }

    /// Admits a node whose key a deployment read on its host.
    pub async fn admit(
        &self,
        node_id: NodeId,
        key: PublicKey,
        site: NodeHost,
        given: Option<Given>,
    ) -> Result<()> {
        let id = node_id.clone();
        let admit = move |membership: &mut Membership, _| {
            let changes = match given {
                Some(given) => membership.admit_deployed(&id, &key, site, &given),
                None => membership.admit(&id, &key, site),
            };
            Ok((changes?, ()))
        };
        self.decide(admit).await?;
        self.0.sessions.rekey(&node_id, &key);
        Ok(())
    }

    /// Returns the thumbprints of a node's keys that were revoked when it was removed.
    pub async fn revoked_keys(&self, node_id: NodeId) -> Result<Vec<String>> {
        self.decide(move |membership, _| Ok((Vec::new(), membership.revoked_keys(&node_id)))).await
    }

    /// Undoes an admission whose deployment failed.
    pub async fn withdraw(&self, node_id: NodeId) -> Result<()> {
        self.decide(move |membership, _| {
            let known = membership.record(&node_id).is_some();
            Ok((known.then_some(Change::Remove { node_id }).into_iter().collect(), ()))
        })
        .await
    }

    pub async fn register(&self, node_id: NodeId, registration: Registration) -> Result<()> {
        let (id, runtimes) = (node_id.clone(), registration.capabilities.runtimes.clone());
        self.decide(move |membership, now_ms| {
            membership.heard(&node_id, registration.interval, now_ms);
            membership.note_claims(&node_id, &registration.capabilities);
            Ok((membership.register(&node_id, registration, now_ms)?, ()))
        })
        .await?;
        self.assign(&id, runtimes).await
    }

    /// The controller's own node, in a hybrid.
    pub async fn register_local(&self, registration: Registration) -> Result<()> {
        let (id, key) = (self.0.id.clone(), *self.public_key().as_bytes());
        let runtimes = registration.capabilities.runtimes.clone();
        self.decide(move |membership, now_ms| {
            let mut record = match membership.record(&id) {
                Some(record) => record.clone(),
                None => NodeRecord::expected(id, Role::Hybrid, key, LinkKind::Local),
            };
            record.role = Role::Hybrid;
            record.public_key = Some(key);
            record.capabilities = registration.capabilities;
            record.version = SOFTWARE_VERSION.to_owned();
            record.observed = Observed::Active;
            record.registered_at_ms = Some(now_ms);
            Ok((vec![Change::Put(Box::new(record))], ()))
        })
        .await?;
        self.assign(&self.0.id, runtimes).await
    }

    /// A heartbeat, answered with what the node is to do.
    pub async fn heartbeat(&self, node_id: NodeId, report: Report) -> Result<Vec<(CommandId, Command)>> {
        self.decide(move |membership, now_ms| membership.heartbeat(&node_id, report, now_ms)).await
    }

    pub async fn goodbye(&self, node_id: NodeId) -> Result<()> {
        self.decide(move |membership, now_ms| Ok((membership.goodbye(&node_id, now_ms)?, ()))).await
    }

    pub async fn set_link(&self, node_id: NodeId, up: bool) -> Result<()> {
        let (id, known) = (node_id.clone(), up);
        let same = self.decide(move |membership, _| Ok((Vec::new(), membership.link_is(&id, known)))).await?;
        if same {
            return Ok(());
        }
        let set = move |membership: &mut Membership, _| {
            membership.set_link(&node_id, up);
            Ok((Vec::new(), ()))
        };
        self.send(true, set).await
    }

    /// Notes why the SSH connection of a node is down, or that nothing is known against it.
    pub async fn set_link_failure(&self, node_id: NodeId, failure: Option<Failure>) -> Result<()> {
        self.with_placement(move |membership| membership.set_link_failure(&node_id, failure)).await
    }

    pub async fn views(&self) -> Result<Vec<PeerView>> {
        let views = self.decide(|membership, now_ms| Ok((Vec::new(), membership.views(now_ms)))).await?;
        Ok(views.into_iter().map(|view| self.with_contention(view)).collect())
    }

    /// Returns at most `limit` nodes that match, after a node that may have gone.
    pub async fn page(&self, filter: PeerFilter, after: Option<NodeId>, limit: usize) -> Result<PeerPage> {
        let page = self.decide(move |membership, now_ms| {
            Ok((Vec::new(), membership.page(&filter, after.as_ref(), limit, now_ms)))
        });
        let page = page.await?;
        let peers = page.peers.into_iter().map(|view| self.with_contention(view)).collect();
        Ok(PeerPage { peers, ..page })
    }

    pub async fn view(&self, node_id: NodeId) -> Result<PeerView> {
        let view =
            self.decide(move |membership, now_ms| Ok((Vec::new(), membership.view(&node_id, now_ms)?)));
        Ok(self.with_contention(view.await?))
    }

    /// Views with what is stored, for who needs both.
    pub async fn members(&self) -> Result<Vec<(PeerView, NodeRecord)>> {
        let views = self.views().await?;
        let records = self.records().await?;
        let record = |id: &NodeId| records.iter().find(|record| record.node_id == *id).cloned();
        Ok(views.into_iter().filter_map(|view| record(&view.node_id).map(|known| (view, known))).collect())
    }

    fn with_contention(&self, mut view: PeerView) -> PeerView {
        if self.0.sessions.is_contended(&view.node_id, self.now_ms()) {
            view.problem = Some(Failure {
                code: ErrorCode::KeyMismatch,
                message: "two sessions of its key alternate: somebody may have a copy of the key".to_owned(),
                remedy: Some(format!(
                    "stop one of the two machines; if the key was copied, remove {} and enrol it again",
                    view.node_id
                )),
            });
        }
        view
    }

    // --- drain -----------------------------------------------------------------------------

    pub async fn drain(
        &self,
        node_id: NodeId,
        deadline: Duration,
        on_deadline: OnDeadline,
    ) -> Result<DrainView> {
        let id = node_id.clone();
        self.decide(move |membership, now_ms| {
            let deadline_ms = now_ms + i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX / 2);
            Ok((membership.drain(&id, deadline_ms, on_deadline)?, ()))
        })
        .await?;
        self.drain_view(node_id).await
    }

    pub async fn drain_view(&self, node_id: NodeId) -> Result<DrainView> {
        self.decide(move |membership, now_ms| Ok((Vec::new(), membership.drain_view(&node_id, now_ms)?)))
            .await
    }

    pub async fn resume(&self, node_id: NodeId) -> Result<PeerView> {
        let id = node_id.clone();
        self.decide(move |membership, _| Ok((membership.resume(&id)?, ()))).await?;
        self.view(node_id).await
    }

    /// Drains the node, then removes it: see [`Membership::remove`].
    pub async fn remove(&self, node_id: NodeId, deadline: Duration, force: bool) -> Result<DrainView> {
        let id = node_id.clone();
        self.decide(move |membership, now_ms| {
            let deadline_ms = now_ms + i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX / 2);
            Ok((membership.remove(&id, deadline_ms, force)?, ()))
        })
        .await?;
        self.drain_view(node_id).await
    }

    /// Removes a node at its own request. Returns `true` once the controller has removed it.
    pub async fn leave(&self, node_id: NodeId) -> Result<bool> {
        Ok(self.remove(node_id, LEAVE_DEADLINE, false).await?.state == DrainState::Removed)
    }

    pub async fn shut_down(&self, node_id: NodeId) -> Result<()> {
        self.decide(move |membership, _| Ok((membership.shutdown(&node_id)?, ()))).await
    }

    // --- placement -------------------------------------------------------------------------

    /// Releases the reservation of an execution.
    pub async fn release(&self, execution_id: ExecutionId) -> Result<()> {
        let release = move |membership: &mut Membership, _| {
            membership.release(&execution_id);
            Ok((Vec::new(), ()))
        };
        self.send(true, release).await
    }

    /// The node did not take it, and is not asked again for a moment.
    pub async fn refused(&self, node_id: NodeId, execution_id: ExecutionId, why: Error) -> Result<()> {
        let refused = move |membership: &mut Membership, now_ms| {
            membership.refused(&node_id, &execution_id, &why, now_ms);
            Ok((Vec::new(), ()))
        };
        self.send(true, refused).await
    }

    /// An execution failed on the node, and the node is to blame.
    pub async fn node_failed(&self, node_id: NodeId, why: String) -> Result<()> {
        let failed = move |membership: &mut Membership, now_ms| {
            membership.node_failed(&node_id, &why, now_ms);
            Ok((Vec::new(), ()))
        };
        self.send(true, failed).await
    }

    /// A container of an execution runs on the node.
    pub async fn node_ran(&self, node_id: NodeId) -> Result<()> {
        let ran = move |membership: &mut Membership, _| {
            membership.node_ran(&node_id);
            Ok((Vec::new(), ()))
        };
        self.send(true, ran).await
    }

    /// Notes that a node sends more events of an execution than are stored.
    pub async fn note_excess(&self, node_id: NodeId, execution_id: ExecutionId) -> Result<()> {
        let excess = move |membership: &mut Membership, now_ms| {
            membership.note_excess(&node_id, execution_id, now_ms);
            Ok((Vec::new(), ()))
        };
        self.send(true, excess).await
    }

    /// Notes which devices running executions of a node have, as the node tells.
    pub(crate) async fn note_gpus(
        &self,
        node_id: NodeId,
        held: Vec<(ExecutionId, Vec<GpuUuid>)>,
    ) -> Result<()> {
        let note = move |membership: &mut Membership| {
            let note = |(id, gpus): &(ExecutionId, Vec<GpuUuid>)| membership.note_gpus(&node_id, id, gpus);
            held.iter().map(note).fold(false, |any, is_new| any | is_new)
        };
        if self.with_placement(note).await? {
            // What waits for a larger device may fit now.
            self.send(true, |_, _| Ok((Vec::new(), ()))).await?;
        }
        Ok(())
    }

    /// Runs a placement decision; what it reserves holds until it is released.
    pub async fn with_placement<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Membership) -> T + Send + 'static,
    ) -> Result<T> {
        self.decide(move |membership, _| Ok((Vec::new(), decide(membership)))).await
    }
}
