//! The members of the cluster as plain state: each decision is a function of the state, an input and
//! the time, and returns the changes that the controller stores before it applies them.
//!
//! What people want (`Desired`) and what is seen (`Observed`) are two fields: nothing that a node
//! says about itself undoes a drain.
//!
//! Here is the state and how a stored change becomes true in it; the decisions are in the files below.

mod devices;
mod drain;
mod faults;
mod health;
mod joining;
mod listing;
mod placing;
mod refusals;
mod revoked;

use std::{collections::BTreeMap, time::Duration};

use aegis_identity::PresentedToken;
use aegis_store::Write;
use aegis_types::{
    error::{Error, ErrorCode, Failure, Result},
    heartbeat::{Command, ConfigReport},
    ids::{CommandId, EnrolmentTokenId, ExecutionId, NodeId, Tag},
    node::{Capabilities, Desired, LinkKind, NodeRecord, Observed, OnDeadline, PeerStatus, PeerView},
    placement::PlacementStrategy,
    resources::Amounts,
};
use devices::Reservation;

use super::placement::{Order, Position};
pub use health::Staleness;
pub use joining::Given;
pub use listing::{PeerFilter, PeerPage};
pub use placing::Excluded;
pub use revoked::RevokedKeys;

const DRAINING: &str = "draining";
const REMOVING: &str = "being removed";
/// Shown for what a node has not said.
const UNKNOWN: &str = "unknown";

/// A change of the stored state.
#[derive(Debug, Clone)]
pub enum Change {
    Put(Box<NodeRecord>),
    /// Puts the record and spends the token that admits it, or does neither.
    Enrol {
        token_id: EnrolmentTokenId,
        record: Box<NodeRecord>,
    },
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
            Change::Put(record) | Change::Enrol { record, .. } => &record.node_id,
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
            Change::Enrol { token_id, record } => Write::SpendToken { token_id, node: record, now_ms },
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
                Write::AcknowledgeCommands { node_id, command_ids }
            }
        }
    }
}

/// Facts that a node reports when it registers.
#[derive(Debug, Clone)]
pub struct Registration {
    pub capabilities: Capabilities,
    pub address: String,
    /// Interval between its heartbeats. `None` if the node does not report it.
    pub interval: Option<Duration>,
}

/// Enrolment token of an attesting node, besides its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolment {
    /// Its key alone.
    None,
    /// A token for any name that is free.
    Anybody,
    /// A token for this very node, which may bring another key.
    Bound,
}

impl Enrolment {
    pub fn of(token: Option<&PresentedToken>) -> Self {
        match token {
            None => Self::None,
            Some(PresentedToken { bound: false, .. }) => Self::Anybody,
            Some(PresentedToken { bound: true, .. }) => Self::Bound,
        }
    }
}

/// Content of a heartbeat.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub capabilities: Option<Capabilities>,
    pub acknowledged: Vec<CommandId>,
    /// Whether the node refuses new work. `None` if the node does not report it.
    pub draining: Option<bool>,
    /// State of its configuration. `None` if the node does not report it.
    pub config: Option<ConfigReport>,
    /// Interval between its heartbeats. `None` if the node does not report it.
    pub interval: Option<Duration>,
}

#[derive(Debug)]
struct Node {
    record: NodeRecord,
    /// When it was last heard of, or the controller started.
    heard_ms: i64,
    /// It was heard of in this life of the controller.
    spoke: bool,
    /// Between its heartbeats, as it told.
    interval: Option<Duration>,
    link_up: bool,
    /// Cause of a link that is down, as far as the controller knows it.
    link_failure: Option<Failure>,
    reserved: BTreeMap<ExecutionId, Reservation>,
    /// The sum of what is reserved.
    used: Amounts,
    gpus: devices::Devices,
    commands: Vec<(CommandId, Command)>,
    /// State of its configuration, as last reported to this process.
    config: Option<ConfigReport>,
    /// Position in the placement order. `None` while the node takes no work.
    position: Option<Position>,
    /// Class that the counts hold it in.
    counted: Option<listing::Kind>,
    refusal: Option<refusals::Refusal>,
    faults: Option<faults::Faults>,
    contradiction: Contradiction,
    /// Tags that it claims and may not have.
    overclaimed: Vec<Tag>,
    /// Amounts that it claims, where they are beyond its bound.
    oversized: Option<Amounts>,
    /// The last execution of which it sent more events than are stored, and when.
    excess: Option<(ExecutionId, i64)>,
}

/// A node that says another thing of its drain than what is wanted, though it has acknowledged that.
#[derive(Debug, Clone, Copy, Default)]
struct Contradiction {
    /// Corrections that were sent since it last said what is wanted.
    corrections: u32,
    since_ms: i64,
}

#[derive(Debug, Default)]
pub struct Membership {
    nodes: BTreeMap<NodeId, Node>,
    last_placed: Option<NodeId>,
    strategy: PlacementStrategy,
    order: Order,
    counts: listing::Counts,
    /// Node on which each execution has its reservation.
    placed: BTreeMap<ExecutionId, NodeId>,
    /// Node that is kept free for the oldest waiting execution.
    hold: Option<placing::Hold>,
    guard_since_ms: Option<i64>,
    guard_is_on: bool,
    revoked: RevokedKeys,
}

fn removed(node_id: &NodeId) -> Error {
    Error::new(ErrorCode::NodeRemoved, format!("node {node_id} was removed"))
        .remedy("deploy it again, or enrol it with a new token")
}

fn unknown(node_id: &NodeId) -> Error {
    Error::not_found("node", node_id.as_str()).remedy("see list_peers for the nodes there are")
}

impl Membership {
    /// Rebuilds the membership from the store. Each node has a full interval to be heard again.
    /// Reservations come with it: a removal under way would otherwise count as finished.
    pub fn restore(
        records: Vec<NodeRecord>,
        commands: Vec<(NodeId, CommandId, Command)>,
        assignments: Vec<(ExecutionId, NodeId, Amounts)>,
        revoked: RevokedKeys,
        now_ms: i64,
    ) -> Self {
        let mut membership = Self { revoked, ..Self::default() };
        for record in records {
            membership.insert(record, now_ms);
        }
        for (node_id, command_id, command) in commands {
            if let Some(node) = membership.nodes.get_mut(&node_id) {
                node.commands.push((command_id, command));
            }
        }
        for (execution_id, node_id, amounts) in assignments {
            membership.reserve(&node_id, &execution_id, amounts);
        }
        membership.reorder_all();
        membership
    }

    fn insert(&mut self, record: NodeRecord, now_ms: i64) {
        match self.nodes.get_mut(&record.node_id) {
            Some(node) => {
                node.record = record;
                node.settle_gpus();
            }
            None => {
                let mut node = Node {
                    heard_ms: now_ms,
                    spoke: false,
                    interval: None,
                    // Others are reached once their link stands, or once they have registered.
                    link_up: record.link == LinkKind::Local,
                    link_failure: None,
                    reserved: BTreeMap::new(),
                    used: Amounts::default(),
                    gpus: devices::Devices::default(),
                    commands: Vec::new(),
                    config: None,
                    position: None,
                    counted: None,
                    record,
                    refusal: None,
                    faults: None,
                    contradiction: Contradiction::default(),
                    overclaimed: Vec::new(),
                    oversized: None,
                    excess: None,
                };
                node.settle_gpus();
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
        let node_id = change.node_id().clone();
        self.change(change, now_ms);
        self.reorder(&node_id);
    }

    fn change(&mut self, change: Change, now_ms: i64) {
        match change {
            Change::Put(record) | Change::Enrol { record, .. } => self.insert(*record, now_ms),
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
                    if let Some(key) = node.record.public_key.take() {
                        self.revoked.insert(node_id.clone(), key);
                    }
                    node.record.drain_deadline_ms = None;
                    node.record.site = None;
                    node.commands.clear();
                    for execution_id in std::mem::take(&mut node.reserved).into_keys() {
                        self.placed.remove(&execution_id);
                    }
                    node.used = Amounts::default();
                    node.settle_gpus();
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

    /// Commands a node to run a version, unless it is known to run it. `changed` says that the version has just changed.
    /// A newer command replaces those that the node has not acknowledged.
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
            self.reorder(node_id);
        }
    }

    pub fn set_link_failure(&mut self, node_id: &NodeId, failure: Option<Failure>) {
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.link_failure = failure;
        }
    }

    pub fn views(&self, now_ms: i64) -> Vec<PeerView> {
        self.nodes.values().map(|node| node.view(now_ms)).collect()
    }

    /// Whether a node was removed, or never was.
    pub fn is_removed(&self, node_id: &NodeId) -> bool {
        self.nodes.get(node_id).is_none_or(|node| node.record.desired == Desired::Removed)
    }

    pub fn view(&self, node_id: &NodeId, now_ms: i64) -> Result<PeerView> {
        self.node(node_id).map(|node| node.view(now_ms))
    }
}

fn queue(node_id: &NodeId, command: Command) -> Change {
    Change::Queue { node_id: node_id.clone(), command_id: CommandId::mint(), command }
}

impl Node {
    fn has_open(&self, commands: &[Command]) -> bool {
        self.commands.iter().any(|(_, open)| commands.contains(open))
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
        if self.contradiction.corrections >= joining::CONTRADICTIONS_SHOWN {
            return Some("it acknowledges drains and resumes, and says the opposite in its heartbeats");
        }
        self.record.capabilities.engine.is_empty().then_some("its container engine does not answer")
    }

    fn view(&self, now_ms: i64) -> PeerView {
        let record = &self.record;
        let heard = if self.spoke { Some(self.heard_ms) } else { record.last_heartbeat_ms };
        PeerView {
            node_id: record.node_id.clone(),
            role: record.role,
            status: PeerStatus::of(record.desired, record.observed),
            desired: record.desired,
            tags: record.capabilities.tags.clone(),
            capacity: record.capabilities.total,
            free: self.free(),
            gpu_devices: self.gpu_views(),
            running: u32::try_from(self.reserved.len()).unwrap_or(u32::MAX),
            last_heartbeat_age_ms: match record.link {
                LinkKind::Local => Some(0),
                _ => heard.map(|ms| now_ms.saturating_sub(ms).max(0).unsigned_abs()),
            },
            link: record.link,
            link_up: self.link_up,
            version: match record.version.as_str() {
                "" => UNKNOWN.to_owned(),
                known => known.to_owned(),
            },
            engine: record.capabilities.engine.clone(),
            models: record.capabilities.models.clone(),
            host: record.site.as_ref().map(|site| site.host.clone()),
            sealed: record.sealed,
            config_version: self.config.as_ref().map(|config| config.version.clone()),
            config_error: self.config.as_ref().and_then(|config| config.error.clone()),
            problem: self.problem(now_ms),
        }
    }

    /// Returns what is wrong with what the node claims: amounts or tags that it was not given.
    fn overclaim_problem(&self) -> Option<Failure> {
        let bound = self.record.bound_size;
        // A deployment may have allowed it since it was claimed.
        if let (Some(claim), Some(bound)) = (self.oversized, bound)
            && claim.exceeds(bound)
        {
            return Some(Failure {
                code: ErrorCode::Forbidden,
                message: format!("it claims {claim}, and its host had {bound} when it was deployed"),
                remedy: Some("deploy it again, so that the host is measured again".to_owned()),
            });
        }
        let allowed = self.record.bound_tags.as_deref().unwrap_or(&self.overclaimed);
        let beyond = self.overclaimed.iter().filter(|tag| !allowed.contains(tag));
        let tags: Vec<_> = beyond.map(Tag::as_str).collect();
        if tags.is_empty() {
            return None;
        }
        let node_id = &self.record.node_id;
        Some(Failure {
            code: ErrorCode::Forbidden,
            message: format!("it claims tags that it was not given: {}", tags.join(", ")),
            remedy: Some(match self.record.site {
                Some(_) => {
                    "deploy it again with these tags, or take them out of its configuration".to_owned()
                }
                None => format!(
                    "enrol it again with a token that allows them: aegis node token create --node-id {node_id}"
                ),
            }),
        })
    }

    fn problem(&self, now_ms: i64) -> Option<Failure> {
        if let Some(failure) = self.link_failure.as_ref().filter(|_| !self.link_up) {
            let message = format!("its SSH connection is down: {}", failure.message);
            return Some(Failure { message, ..failure.clone() });
        }
        if let Some(why) = self.blocked().filter(|why| !matches!(*why, DRAINING | REMOVING)) {
            return Some(Failure { code: ErrorCode::Unavailable, message: why.to_owned(), remedy: None });
        }
        if let Some(refusal) = self.refusal.as_ref().and_then(refusals::Refusal::problem) {
            return Some(refusal);
        }
        if let Some(faults) = &self.faults {
            return Some(faults.problem());
        }
        self.excess_problem(now_ms).or_else(|| self.overclaim_problem())
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
