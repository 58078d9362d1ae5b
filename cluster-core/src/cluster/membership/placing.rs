//! What runs where: reservations on nodes that can take work.

use std::ops::Bound;

use super::{Membership, Node};
use crate::{
    cluster::{
        peer::{Amounts, Desired},
        placement::{Candidate, NoFit, place, reasons},
    },
    execution::manifest::Demand,
    ids::{ExecutionId, NodeId},
};

impl Membership {
    /// Chooses a node and reserves what is asked for. Nodes take turns, in the order of their ids.
    pub fn place(&mut self, execution_id: &ExecutionId, demand: &Demand) -> Result<NodeId, NoFit> {
        let chosen = self.fit(demand)?;
        self.reserve(&chosen, execution_id, demand.amounts);
        self.last_placed = Some(chosen.clone());
        Ok(chosen)
    }

    /// Where a demand would go now, or why it fits nowhere.
    pub fn fit(&self, demand: &Demand) -> Result<NodeId, NoFit> {
        // From the one after the last, around the end.
        let from = self.last_placed.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let to = self.last_placed.as_ref().map_or(Bound::Unbounded, Bound::Included);
        let later = self.nodes.range::<NodeId, _>((from, Bound::Unbounded));
        let wrapped =
            self.last_placed.iter().flat_map(|_| self.nodes.range::<NodeId, _>((Bound::Unbounded, to)));
        let turns = later.chain(wrapped).filter_map(|(_, node)| node.candidate());
        let chosen = place(demand, turns).cloned();
        chosen.ok_or_else(|| reasons(demand, self.nodes.values().filter_map(Node::candidate)))
    }

    pub fn reserve(&mut self, node_id: &NodeId, execution_id: &ExecutionId, amounts: Amounts) {
        self.release(execution_id);
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.used = node.used.plus(amounts);
            node.reserved.insert(execution_id.clone(), amounts);
            self.placed.insert(execution_id.clone(), node_id.clone());
        }
    }

    pub fn release(&mut self, execution_id: &ExecutionId) {
        let Some(node_id) = self.placed.remove(execution_id) else { return };
        let Some(node) = self.nodes.get_mut(&node_id) else { return };
        if let Some(amounts) = node.reserved.remove(execution_id) {
            node.used = node.used.minus(amounts);
        }
    }
}

impl Node {
    /// None for one that never runs executions.
    fn candidate(&self) -> Option<Candidate<'_>> {
        let record = &self.record;
        let counts = record.role.runs_executions() && record.desired != Desired::Removed;
        counts.then(|| Candidate {
            node_id: &record.node_id,
            tags: &record.capabilities.tags,
            blocked: self.blocked(),
            total: record.capabilities.total,
            free: self.free(),
        })
    }

    pub(super) fn free(&self) -> Amounts {
        self.record.capabilities.total.minus(self.used)
    }
}
