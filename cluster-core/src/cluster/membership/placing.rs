//! What runs where: reservations on nodes that can take work.

use super::{Membership, Node};
use crate::{
    cluster::{
        peer::{Amounts, Desired},
        placement::{Candidate, NoFit, place},
    },
    execution::manifest::Demand,
    ids::{ExecutionId, NodeId},
};

impl Membership {
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
}

impl Node {
    fn used(&self) -> Amounts {
        self.reserved.values().fold(Amounts::default(), |sum, amounts| sum.plus(*amounts))
    }

    pub(super) fn free(&self) -> Amounts {
        self.record.capabilities.total.minus(self.used())
    }
}
