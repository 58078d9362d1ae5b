//! Desired state of nodes: drains, removals, shutdowns, and how they are undone.

use aegis_types::{
    error::{Error, ErrorCode, Result},
    heartbeat::Command,
    ids::{ExecutionId, NodeId},
    node::{Desired, DrainState, DrainView, LinkKind, OnDeadline},
};

use super::{Change, Membership, queue, removed};

fn being_removed(node_id: &NodeId) -> Error {
    Error::new(ErrorCode::FailedPrecondition, format!("node {node_id} is being removed"))
        .remedy("resume it first to keep it")
}

impl Membership {
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
}
