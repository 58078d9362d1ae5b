//! The members of the cluster as plain state: each decision is a function of the state, an input and
//! the time, and returns the changes that the controller stores before it applies them.
//!
//! What people want (`Desired`) and what is seen (`Observed`) are two fields: nothing that a node
//! says about itself undoes a drain.

use std::collections::BTreeMap;

use super::{
    peer::{
        Amounts, Capabilities, Desired, DrainState, DrainView, LinkKind, Observed, OnDeadline, PeerStatus,
        PeerView, Role, Site,
    },
    placement::{Candidate, NoFit, place},
};
use crate::{
    error::{Error, ErrorCode, Result},
    execution::manifest::Demand,
    identity::PublicKey,
    ids::{CommandId, ExecutionId, NodeId},
    store::{NodeRecord, Write},
};

/// From this many active nodes on, a silence of more than half of them is doubted.
const BRAKE_NODES_MIN: usize = 4;
/// For how long it is doubted.
const BRAKE_MS: i64 = 300_000;

const DRAINING: &str = "draining";
const REMOVING: &str = "being removed";

/// What a node is told to do, once.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Drain,
    Resume,
    /// Ends the process once nothing runs there.
    Shutdown,
    /// To run this version of its configuration.
    PushConfig {
        version: String,
        /// Merged when it is sent, and never stored.
        #[serde(skip)]
        body: Vec<u8>,
    },
}

/// Commands that the node has not acknowledged, oldest first.
pub type OpenCommands = Vec<(CommandId, Command)>;

/// A change of the stored state.
#[derive(Debug, Clone)]
pub enum Change {
    Put(Box<NodeRecord>),
    Observed {
        node_id: NodeId,
        observed: Observed,
        last_heartbeat_ms: Option<i64>,
    },
    Desired {
        node_id: NodeId,
        desired: Desired,
        deadline_ms: Option<i64>,
        on_deadline: OnDeadline,
    },
    /// The node's key, commands and enrolment tokens go with it.
    Remove {
        node_id: NodeId,
    },
    Queue {
        node_id: NodeId,
        command_id: CommandId,
        command: Command,
    },
    Acknowledge {
        node_id: NodeId,
        command_ids: Vec<CommandId>,
    },
}

impl Change {
    /// The node that changes.
    pub fn node_id(&self) -> &NodeId {
        match self {
            Change::Put(record) => &record.node_id,
            Change::Observed { node_id, .. }
            | Change::Desired { node_id, .. }
            | Change::Remove { node_id }
            | Change::Queue { node_id, .. }
            | Change::Acknowledge { node_id, .. } => node_id,
        }
    }

    pub fn to_write(&self, now_ms: i64) -> Write {
        match self.clone() {
            Change::Put(record) => Write::PutNode(record),
            Change::Observed { node_id, observed, last_heartbeat_ms } => {
                Write::SetObserved { node_id, observed, last_heartbeat_ms }
            }
            Change::Desired { node_id, desired, deadline_ms, on_deadline } => {
                Write::SetDesired { node_id, desired, deadline_ms, on_deadline }
            }
            Change::Remove { node_id } => Write::RemoveNode { node_id, now_ms },
            Change::Queue { node_id, command_id, command } => Write::QueueCommand {
                command_id,
                node_id,
                body: serde_json::to_string(&command).unwrap_or_default(),
                now_ms,
            },
            Change::Acknowledge { node_id, command_ids } => {
                Write::AcknowledgeCommands { node_id, command_ids, now_ms }
            }
        }
    }
}

/// What a node reports of itself as it registers.
#[derive(Debug, Clone)]
pub struct Registration {
    pub capabilities: Capabilities,
    pub address: String,
    pub version: String,
}

/// What a heartbeat brings.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub capabilities: Option<Capabilities>,
    pub acknowledged: Vec<CommandId>,
    /// Whether the node itself refuses new work; None where it does not say.
    pub draining: Option<bool>,
    /// What it says of its configuration; None where it says nothing of it.
    pub config: Option<ConfigReport>,
}

/// The version that a node runs, and why not a newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigReport {
    pub version: String,
    pub error: Option<String>,
}

#[derive(Debug)]
struct Node {
    record: NodeRecord,
    /// When it was last heard of in this life of the controller.
    heard_ms: i64,
    link_up: bool,
    reserved: BTreeMap<ExecutionId, Amounts>,
    commands: Vec<(CommandId, Command)>,
    /// As it last said, in this life of the controller.
    config: Option<ConfigReport>,
}

#[derive(Debug, Default)]
pub struct Membership {
    nodes: BTreeMap<NodeId, Node>,
    last_placed: Option<NodeId>,
    brake_since_ms: Option<i64>,
}

fn removed(node_id: &NodeId) -> Error {
    Error::new(ErrorCode::NodeRemoved, format!("node {node_id} was removed"))
        .remedy("deploy it again, or enrol it with a new token")
}

fn being_removed(node_id: &NodeId) -> Error {
    Error::new(ErrorCode::FailedPrecondition, format!("node {node_id} is being removed"))
        .remedy("resume it first to keep it")
}

fn unknown(node_id: &NodeId) -> Error {
    Error::not_found("node", node_id.as_str()).remedy("see list_peers for the nodes there are")
}

impl Membership {
    /// From what was stored. Everybody gets a full interval to be heard again.
    pub fn restore(
        records: Vec<NodeRecord>,
        commands: Vec<(NodeId, CommandId, Command)>,
        now_ms: i64,
    ) -> Self {
        let mut membership = Self::default();
        for record in records {
            membership.insert(record, now_ms);
        }
        for (node_id, command_id, command) in commands {
            if let Some(node) = membership.nodes.get_mut(&node_id) {
                node.commands.push((command_id, command));
            }
        }
        membership
    }

    fn insert(&mut self, record: NodeRecord, now_ms: i64) {
        match self.nodes.get_mut(&record.node_id) {
            Some(node) => node.record = record,
            None => {
                let node = Node {
                    heard_ms: now_ms,
                    // Others are reached once their link stands, or once they have registered.
                    link_up: record.link == LinkKind::Local,
                    reserved: BTreeMap::new(),
                    commands: Vec::new(),
                    config: None,
                    record,
                };
                self.nodes.insert(node.record.node_id.clone(), node);
            }
        }
    }

    pub fn record(&self, node_id: &NodeId) -> Option<&NodeRecord> {
        self.nodes.get(node_id).map(|node| &node.record)
    }

    pub fn records(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().map(|node| &node.record)
    }

    fn node(&self, node_id: &NodeId) -> Result<&Node> {
        self.nodes.get(node_id).ok_or_else(|| unknown(node_id))
    }

    /// A stored change becomes true here.
    pub fn apply(&mut self, change: Change, now_ms: i64) {
        match change {
            Change::Put(record) => self.insert(*record, now_ms),
            Change::Observed { node_id, observed, last_heartbeat_ms } => {
                if let Some(node) = self.nodes.get_mut(&node_id) {
                    node.record.observed = observed;
                    node.record.last_heartbeat_ms = last_heartbeat_ms.or(node.record.last_heartbeat_ms);
                }
            }
            Change::Desired { node_id, desired, deadline_ms, on_deadline } => {
                if let Some(node) = self.nodes.get_mut(&node_id) {
                    node.record.desired = desired;
                    node.record.drain_deadline_ms = deadline_ms;
                    node.record.on_deadline = on_deadline;
                }
            }
            Change::Remove { node_id } => {
                if let Some(node) = self.nodes.get_mut(&node_id) {
                    node.record.desired = Desired::Removed;
                    node.record.observed = Observed::Offline;
                    node.record.public_key = None;
                    node.record.drain_deadline_ms = None;
                    node.record.site = None;
                    node.commands.clear();
                    node.reserved.clear();
                }
            }
            Change::Queue { node_id, command_id, command } => {
                if let Some(node) = self.nodes.get_mut(&node_id) {
                    node.commands.push((command_id, command));
                }
            }
            Change::Acknowledge { node_id, command_ids } => {
                if let Some(node) = self.nodes.get_mut(&node_id) {
                    node.commands.retain(|(id, _)| !command_ids.contains(id));
                }
            }
        }
    }

    // --- joining ---------------------------------------------------------------------------

    /// Whether a node of this name and key may be admitted. Another key for a known id is refused
    /// until an operator issues a token for that id.
    pub fn check_key(&self, node_id: &NodeId, public_key: &PublicKey, has_token: bool) -> Result<()> {
        let Some(node) = self.nodes.get(node_id) else {
            return if has_token {
                Ok(())
            } else {
                Err(Error::new(
                    ErrorCode::EnrolmentInvalid,
                    format!("node {node_id} is not known and brings no enrolment token"),
                )
                .remedy(format!("create one with `aegis node token create --node-id {node_id}`")))
            };
        };
        if node.record.desired == Desired::Removed && !has_token {
            return Err(removed(node_id));
        }
        match &node.record.public_key {
            Some(pinned) if pinned == public_key.as_bytes() || has_token => Ok(()),
            None if has_token => Ok(()),
            _ => Err(Error::new(
                ErrorCode::KeyMismatch,
                format!("node {node_id} is known by another key than {}", &public_key.thumbprint()[..16]),
            )
            .remedy(format!(
                "if its key was lost, run `aegis node token create --node-id {node_id}`; \
                 if not, somebody else uses its name"
            ))),
        }
    }

    /// Whether a deployment may give this id to that host.
    pub fn check_identity(&self, node_id: &NodeId, site: &Site) -> Result<()> {
        let Some(node) = self.nodes.get(node_id) else { return Ok(()) };
        let elsewhere = match &node.record.site {
            _ if node.record.desired == Desired::Removed => return Ok(()),
            Some(known) if known.host == site.host && known.port == site.port => return Ok(()),
            Some(known) => format!("host {} port {}", known.host, known.port),
            None if node.record.link == LinkKind::Local => "this controller itself".to_owned(),
            None => "a node that joined by itself".to_owned(),
        };
        Err(Error::new(
            ErrorCode::Conflict,
            format!(
                "identity {node_id} belongs to {elsewhere}, not to host {} port {}",
                site.host, site.port
            ),
        )
        .remedy("choose another identity"))
    }

    /// The record that admits a node whose key a deployment read over the verified connection.
    pub fn admit(&self, node_id: &NodeId, public_key: &PublicKey, site: Site) -> Result<Vec<Change>> {
        self.check_identity(node_id, &site)?;
        let mut record = match self.nodes.get(node_id) {
            Some(node) => node.record.clone(),
            None => {
                NodeRecord::expected(node_id.clone(), Role::Worker, *public_key.as_bytes(), LinkKind::Ssh)
            }
        };
        // The operator's own deployment is what re-enrols a host whose key was lost.
        record.public_key = Some(*public_key.as_bytes());
        record.site = Some(site);
        record.link = LinkKind::Ssh;
        reinstate(&mut record);
        Ok(vec![Change::Put(Box::new(record))])
    }

    /// The record that a spent token admits.
    pub fn enrol(&self, node_id: &NodeId, role: Role, public_key: &PublicKey, sealed: bool) -> NodeRecord {
        let mut record = match self.nodes.get(node_id) {
            Some(node) => {
                let mut record = node.record.clone();
                record.public_key = Some(*public_key.as_bytes());
                record.role = role;
                if record.desired == Desired::Removed {
                    record.link = LinkKind::Direct;
                }
                reinstate(&mut record);
                record
            }
            None => NodeRecord::expected(node_id.clone(), role, *public_key.as_bytes(), LinkKind::Direct),
        };
        record.sealed = sealed;
        record
    }

    /// A node that has sealed its calls once never stops: whoever leaves the seal out then is not it, or
    /// was talked out of it. Only an operator's new token undoes that.
    pub fn seals(&self, node_id: &NodeId, sealed: bool) -> Result<Vec<Change>> {
        let record = &self.node(node_id)?.record;
        match (record.sealed, sealed) {
            (true, false) => {
                Err(Error::new(ErrorCode::UnsealedContext, format!("node {node_id} has sealed its calls before"))
                    .remedy(format!(
                        "to admit another implementation under this id, run `aegis node token create --node-id {node_id}`"
                    )))
            }
            (false, true) => {
                Ok(vec![Change::Put(Box::new(NodeRecord { sealed: true, ..record.clone() }))])
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The record with another key, which its old one signed for.
    pub fn rotate_key(&self, node_id: &NodeId, public_key: &PublicKey) -> Result<Vec<Change>> {
        let mut record = self.node(node_id)?.record.clone();
        record.public_key = Some(*public_key.as_bytes());
        Ok(vec![Change::Put(Box::new(record))])
    }

    pub fn register(&self, node_id: &NodeId, registration: Registration, now_ms: i64) -> Result<Vec<Change>> {
        let mut record = self.node(node_id)?.record.clone();
        record.capabilities = registration.capabilities;
        record.address = registration.address;
        record.version = registration.version;
        record.observed = Observed::Active;
        record.registered_at_ms = Some(now_ms);
        record.last_heartbeat_ms = Some(now_ms);
        Ok(vec![Change::Put(Box::new(record))])
    }

    /// A good heartbeat, answered with the commands that are still open after it. A steady one changes
    /// nothing that is stored.
    pub fn heartbeat(
        &mut self,
        node_id: &NodeId,
        report: Report,
        now_ms: i64,
    ) -> Result<(Vec<Change>, OpenCommands)> {
        let node = self.nodes.get_mut(node_id).ok_or_else(|| unknown(node_id))?;
        node.heard_ms = now_ms;
        node.config = report.config.or(node.config.take());
        let mut changes = Vec::new();
        let known = report
            .acknowledged
            .into_iter()
            .filter(|id| node.commands.iter().any(|(open, _)| open == id))
            .collect::<Vec<_>>();
        let mut open: OpenCommands =
            node.commands.iter().filter(|(id, _)| !known.contains(id)).cloned().collect();
        if let Some(command) = node.correction(report.draining, &open) {
            let command_id = CommandId::mint();
            open.push((command_id.clone(), command.clone()));
            changes.push(Change::Queue { node_id: node_id.clone(), command_id, command });
        }
        if !known.is_empty() {
            changes.push(Change::Acknowledge { node_id: node_id.clone(), command_ids: known });
        }
        if let Some(capabilities) = report.capabilities {
            // Free memory moves all the time and is not worth a write.
            node.record.capabilities.memory_mb_free = capabilities.memory_mb_free;
            if capabilities != node.record.capabilities {
                let mut record = node.record.clone();
                record.capabilities = capabilities;
                record.observed = Observed::Active;
                record.last_heartbeat_ms = Some(now_ms);
                changes.push(Change::Put(Box::new(record)));
                return Ok((changes, open));
            }
        }
        if node.record.observed != Observed::Active {
            changes.push(Change::Observed {
                node_id: node_id.clone(),
                observed: Observed::Active,
                last_heartbeat_ms: Some(now_ms),
            });
        }
        Ok((changes, open))
    }

    /// "Going away": the node stays a member and comes back by its key alone.
    pub fn goodbye(&self, node_id: &NodeId, now_ms: i64) -> Result<Vec<Change>> {
        self.node(node_id)?;
        Ok(vec![Change::Observed {
            node_id: node_id.clone(),
            observed: Observed::Offline,
            last_heartbeat_ms: Some(now_ms),
        }])
    }

    /// Tells a node to run another version, unless it is known to run it. `changed`: what it should run
    /// has changed just now. A newer command takes the place of those that nobody has acknowledged.
    pub fn push_config(&self, node_id: &NodeId, version: &str, changed: bool) -> Result<Vec<Change>> {
        let node = self.node(node_id)?;
        let (mut older, mut queued) = (Vec::new(), false);
        for (command_id, command) in &node.commands {
            match command {
                Command::PushConfig { version: open, .. } if open == version => queued = true,
                Command::PushConfig { .. } => older.push(command_id.clone()),
                Command::Drain | Command::Resume | Command::Shutdown => {}
            }
        }
        let mut changes = Vec::new();
        if !older.is_empty() {
            changes.push(Change::Acknowledge { node_id: node_id.clone(), command_ids: older });
        }
        let runs = node.config.as_ref().map(|config| (config.version.as_str(), config.error.is_none()));
        let needed = match runs {
            Some(runs) => runs != (version, true),
            None => changed,
        };
        if needed && !queued {
            changes
                .push(queue(node_id, Command::PushConfig { version: version.to_owned(), body: Vec::new() }));
        }
        Ok(changes)
    }

    pub fn link_is(&self, node_id: &NodeId, up: bool) -> bool {
        self.nodes.get(node_id).is_none_or(|node| node.link_up == up)
    }

    pub fn set_link(&mut self, node_id: &NodeId, up: bool) {
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.link_up = up;
        }
    }

    // --- health ----------------------------------------------------------------------------

    /// Who has been silent for too long.
    pub fn sweep(&mut self, stale_ms: i64, now_ms: i64) -> Vec<Change> {
        let active = self.nodes.values().filter(|node| node.record.observed == Observed::Active);
        let (mut silent, mut count) = (Vec::new(), 0_usize);
        for node in active {
            count += 1;
            if node.record.link != LinkKind::Local && now_ms.saturating_sub(node.heard_ms) > stale_ms {
                silent.push(node);
            }
        }
        // When most fall silent at once, the fault is more likely ours.
        if count >= BRAKE_NODES_MIN && silent.len() * 2 > count {
            let since_ms = *self.brake_since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since_ms) < BRAKE_MS {
                tracing::warn!(
                    silent = silent.len(),
                    active = count,
                    "most nodes fell silent at once: waiting"
                );
                return Vec::new();
            }
        } else {
            self.brake_since_ms = None;
        }
        silent
            .into_iter()
            .map(|node| Change::Observed {
                node_id: node.record.node_id.clone(),
                observed: Observed::Unhealthy,
                last_heartbeat_ms: Some(node.heard_ms),
            })
            .collect()
    }

    // --- drain -----------------------------------------------------------------------------

    /// Draining again moves the deadline.
    pub fn drain(&self, node_id: &NodeId, deadline_ms: i64, on_deadline: OnDeadline) -> Result<Vec<Change>> {
        let node = self.node(node_id)?;
        let mut changes = match node.record.desired {
            Desired::Removed => return Err(removed(node_id)),
            Desired::Removing => return Err(being_removed(node_id)),
            Desired::Draining => Vec::new(),
            Desired::Schedulable => vec![queue(node_id, Command::Drain)],
        };
        changes.push(Change::Desired {
            node_id: node_id.clone(),
            desired: Desired::Draining,
            deadline_ms: Some(deadline_ms),
            on_deadline,
        });
        Ok(changes)
    }

    /// Removes the node once nothing runs there, which at the deadline is made so; with `force` at once.
    /// Asking again moves the deadline; a node that is removed already stays so.
    pub fn remove(&self, node_id: &NodeId, deadline_ms: i64, force: bool) -> Result<Vec<Change>> {
        let node = self.node(node_id)?;
        if node.record.link == LinkKind::Local {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("node {node_id} is the controller itself"),
            )
            .remedy("drain it instead, or stop it with `aegis stop`"));
        }
        let mut changes = match node.record.desired {
            Desired::Removed => return Ok(Vec::new()),
            Desired::Removing | Desired::Draining => Vec::new(),
            Desired::Schedulable => vec![queue(node_id, Command::Drain)],
        };
        if force || node.reserved.is_empty() {
            return Ok(vec![Change::Remove { node_id: node_id.clone() }]);
        }
        changes.push(Change::Desired {
            node_id: node_id.clone(),
            desired: Desired::Removing,
            deadline_ms: Some(deadline_ms),
            on_deadline: OnDeadline::Cancel,
        });
        Ok(changes)
    }

    /// The removals that nothing holds up any more.
    pub fn finished_removals(&self) -> Vec<Change> {
        self.nodes
            .values()
            .filter(|node| node.record.desired == Desired::Removing && node.reserved.is_empty())
            .map(|node| Change::Remove { node_id: node.record.node_id.clone() })
            .collect()
    }

    /// Has the node end its process, once.
    pub fn shutdown(&self, node_id: &NodeId) -> Result<Vec<Change>> {
        let node = self.node(node_id)?;
        if node.record.desired == Desired::Removed {
            return Err(removed(node_id));
        }
        if node.record.link == LinkKind::Local {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("node {node_id} is the controller itself"),
            )
            .remedy("stop it with `aegis stop`"));
        }
        if node.has_open(&[Command::Shutdown]) {
            return Ok(Vec::new());
        }
        Ok(vec![queue(node_id, Command::Shutdown)])
    }

    pub fn resume(&self, node_id: &NodeId) -> Result<Vec<Change>> {
        let node = self.node(node_id)?;
        match node.record.desired {
            Desired::Removed => Err(removed(node_id)),
            Desired::Schedulable => Ok(Vec::new()),
            Desired::Draining | Desired::Removing => Ok(vec![
                queue(node_id, Command::Resume),
                Change::Desired {
                    node_id: node_id.clone(),
                    desired: Desired::Schedulable,
                    deadline_ms: None,
                    on_deadline: OnDeadline::default(),
                },
            ]),
        }
    }

    /// Executions whose node's drain deadline has passed, where they are to be cancelled then.
    pub fn overdue(&self, now_ms: i64) -> Vec<ExecutionId> {
        self.nodes
            .values()
            .filter(|node| {
                matches!(node.record.desired, Desired::Draining | Desired::Removing)
                    && node.record.on_deadline == OnDeadline::Cancel
                    && node.record.drain_deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms)
            })
            .flat_map(|node| node.reserved.keys().cloned())
            .collect()
    }

    pub fn drain_view(&self, node_id: &NodeId, now_ms: i64) -> Result<DrainView> {
        let node = self.node(node_id)?;
        let blockers = node.reserved.keys().cloned().collect::<Vec<_>>();
        let deadline_in_seconds = node
            .record
            .drain_deadline_ms
            .and_then(|deadline_ms| u64::try_from(deadline_ms.saturating_sub(now_ms)).ok())
            .map(|ms| ms.div_ceil(1000));
        Ok(DrainView {
            node_id: node_id.clone(),
            state: match (node.record.desired, blockers.is_empty()) {
                (Desired::Schedulable, _) => DrainState::Schedulable,
                (Desired::Removed, _) => DrainState::Removed,
                (Desired::Draining | Desired::Removing, true) => DrainState::Drained,
                (Desired::Draining | Desired::Removing, false) => DrainState::Draining,
            },
            blockers,
            deadline_in_seconds,
            on_deadline: node.record.on_deadline,
            acknowledged: !node.has_open(&[Command::Drain, Command::Resume]),
        })
    }

    // --- placement -------------------------------------------------------------------------

    /// Chooses a node and reserves what is asked for.
    pub fn place(&mut self, execution_id: &ExecutionId, demand: &Demand) -> Result<NodeId, NoFit> {
        let chosen = place(demand, self.candidates(), self.last_placed.as_ref())?;
        self.reserve(&chosen, execution_id, demand.amounts);
        self.last_placed = Some(chosen.clone());
        Ok(chosen)
    }

    /// Why a demand fits nowhere now, without placing it.
    pub fn fit(&self, demand: &Demand) -> Result<NodeId, NoFit> {
        place(demand, self.candidates(), self.last_placed.as_ref())
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.nodes
            .values()
            .filter(|node| node.record.role.runs_executions() && node.record.desired != Desired::Removed)
            .map(|node| Candidate {
                node_id: &node.record.node_id,
                tags: &node.record.capabilities.tags,
                blocked: node.blocked(),
                total: node.record.capabilities.total,
                free: node.free(),
            })
    }

    pub fn reserve(&mut self, node_id: &NodeId, execution_id: &ExecutionId, amounts: Amounts) {
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.reserved.insert(execution_id.clone(), amounts);
        }
    }

    pub fn release(&mut self, execution_id: &ExecutionId) {
        for node in self.nodes.values_mut() {
            node.reserved.remove(execution_id);
        }
    }

    pub fn views(&self, now_ms: i64) -> Vec<PeerView> {
        self.nodes.values().map(|node| node.view(now_ms)).collect()
    }

    pub fn view(&self, node_id: &NodeId, now_ms: i64) -> Result<PeerView> {
        self.node(node_id).map(|node| node.view(now_ms))
    }
}

/// A removed node that is admitted anew begins anew.
fn reinstate(record: &mut NodeRecord) {
    if record.desired == Desired::Removed {
        record.desired = Desired::Schedulable;
        record.observed = Observed::Expected;
        record.registered_at_ms = None;
    }
}

fn queue(node_id: &NodeId, command: Command) -> Change {
    Change::Queue { node_id: node_id.clone(), command_id: CommandId::mint(), command }
}

impl Node {
    fn has_open(&self, commands: &[Command]) -> bool {
        self.commands.iter().any(|(_, open)| commands.contains(open))
    }

    /// What the node must be told since it does other than what is wanted: it may have lost its memory, or
    /// kept that of an earlier membership. Nothing while a command on the matter is under way.
    fn correction(&self, draining: Option<bool>, open: &[(CommandId, Command)]) -> Option<Command> {
        let under_way = open.iter().any(|(_, command)| matches!(command, Command::Drain | Command::Resume));
        let wanted = matches!(self.record.desired, Desired::Draining | Desired::Removing);
        match draining {
            Some(draining) if draining != wanted && !under_way => {
                Some(if wanted { Command::Drain } else { Command::Resume })
            }
            _ => None,
        }
    }

    fn blocked(&self) -> Option<&'static str> {
        match self.record.desired {
            Desired::Draining => return Some(DRAINING),
            Desired::Removing => return Some(REMOVING),
            Desired::Schedulable | Desired::Removed => {}
        }
        match self.record.observed {
            Observed::Expected => return Some("has not registered yet"),
            Observed::Unhealthy => return Some("unhealthy: its heartbeats are missing"),
            Observed::Offline => return Some("offline: it said goodbye"),
            Observed::Active => {}
        }
        if !self.link_up {
            return Some(match self.record.link {
                LinkKind::Direct => "it does not answer at its address",
                LinkKind::Ssh | LinkKind::Local => "its SSH connection is down, or it does not answer there",
            });
        }
        // Until it knows, it would refuse what it is given.
        if self.has_open(&[Command::Resume]) {
            return Some("resuming: it has not acknowledged yet");
        }
        self.record.capabilities.engine.is_empty().then_some("its container engine does not answer")
    }

    fn used(&self) -> Amounts {
        self.reserved.values().fold(Amounts::default(), |sum, amounts| sum.plus(*amounts))
    }

    fn free(&self) -> Amounts {
        self.record.capabilities.total.minus(self.used())
    }

    fn view(&self, now_ms: i64) -> PeerView {
        let record = &self.record;
        let heard = record.last_heartbeat_ms.map(|stored| stored.max(self.heard_ms));
        PeerView {
            node_id: record.node_id.clone(),
            role: record.role,
            status: PeerStatus::of(record.desired, record.observed),
            desired: record.desired,
            tags: record.capabilities.tags.clone(),
            capacity: record.capabilities.total,
            free: self.free(),
            running: u32::try_from(self.reserved.len()).unwrap_or(u32::MAX),
            last_heartbeat_age_ms: match record.link {
                LinkKind::Local => Some(0),
                _ => heard.map(|ms| now_ms.saturating_sub(ms).max(0).unsigned_abs()),
            },
            link: record.link,
            link_up: self.link_up,
            version: record.version.clone(),
            engine: record.capabilities.engine.clone(),
            models: record.capabilities.models.clone(),
            host: record.site.as_ref().map(|site| site.host.clone()),
            sealed: record.sealed,
            config_version: self.config.as_ref().map(|config| config.version.clone()),
            config_error: self.config.as_ref().and_then(|config| config.error.clone()),
            problem: self.blocked().filter(|why| !matches!(*why, DRAINING | REMOVING)).map(|why| {
                crate::error::Failure { code: ErrorCode::Unavailable, message: why.to_owned(), remedy: None }
            }),
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
