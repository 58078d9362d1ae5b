//! What runs where: reservations on nodes that can take work.

use super::{Membership, Node};
use crate::{
    cluster::{
        peer::{Amounts, Desired},
        placement::{Candidate, NoFit, PlacementStrategy, Position, fits, reasons},
    },
    execution::manifest::Demand,
    ids::{ExecutionId, NodeId},
};

impl Membership {
    /// How nodes are chosen from now on.
    pub fn set_strategy(&mut self, strategy: PlacementStrategy) {
        self.strategy = strategy;
        self.reorder_all();
    }

    /// Chooses a node and reserves what is asked for. Equals take turns, in the order of their ids.
    pub fn place(&mut self, execution_id: &ExecutionId, demand: &Demand) -> Result<NodeId, NoFit> {
        let chosen = self.fit(demand)?;
        self.reserve(&chosen, execution_id, demand.amounts);
        self.last_placed = Some(chosen.clone());
        Ok(chosen)
    }

    /// Where a demand would go now, or why it fits nowhere.
    pub fn fit(&self, demand: &Demand) -> Result<NodeId, NoFit> {
        let fitting = |node_id: &NodeId| {
            let candidate = self.nodes.get(node_id).and_then(Node::candidate);
            candidate.is_some_and(|candidate| fits(demand, &candidate))
        };
        let chosen = match &demand.node_id {
            Some(pin) => Some(pin).filter(|pin| fitting(pin)),
            None => self.order.first(demand, self.last_placed.as_ref(), fitting),
        };
        chosen.cloned().ok_or_else(|| reasons(demand, self.nodes.values().filter_map(Node::candidate)))
    }

    pub fn reserve(&mut self, node_id: &NodeId, execution_id: &ExecutionId, amounts: Amounts) {
        self.release(execution_id);
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.used = node.used.plus(amounts);
            node.reserved.insert(execution_id.clone(), amounts);
            self.placed.insert(execution_id.clone(), node_id.clone());
            self.reorder(node_id);
        }
    }

    pub fn release(&mut self, execution_id: &ExecutionId) {
        let Some(node_id) = self.placed.remove(execution_id) else { return };
        let Some(node) = self.nodes.get_mut(&node_id) else { return };
        if let Some(amounts) = node.reserved.remove(execution_id) {
            node.used = node.used.minus(amounts);
            self.reorder(&node_id);
        }
    }

    pub(super) fn reorder_all(&mut self) {
        let ids = self.nodes.keys().cloned().collect::<Vec<_>>();
        for node_id in ids {
            self.reorder(&node_id);
        }
    }

    /// To be called after whatever changes what a node is chosen by. Only those that take work stand in
    /// the order.
    pub(super) fn reorder(&mut self, node_id: &NodeId) {
        let Some(node) = self.nodes.get_mut(node_id) else { return };
        let position = node.candidate().filter(|candidate| candidate.blocked.is_none()).map(|candidate| {
            Position { tags: candidate.tags.to_vec(), rank: self.strategy.rank(&candidate) }
        });
        if position != node.position {
            if let Some(before) = std::mem::replace(&mut node.position, position) {
                self.order.remove(node_id, &before);
            }
            if let Some(now) = &node.position {
                self.order.insert(node_id, now);
            }
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
            blocked: self.blocked().or(self.refusal()),
            total: record.capabilities.total,
            free: self.free(),
            executions: self.reserved.len(),
        })
    }

    pub(super) fn free(&self) -> Amounts {
        self.record.capabilities.total.minus(self.used)
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        cluster::{
            membership::Change,
            peer::{Capabilities, LinkKind, Observed, Role},
        },
        error::{Error, ErrorCode},
        ids::Tag,
        store::NodeRecord,
    };

    const TAGS: [&str; 3] = ["gpu", "eu", "ssd"];

    #[derive(Debug, Clone)]
    enum Step {
        Place(Demand),
        /// One of those that were placed, by its place among them.
        Release(usize),
        Drain(usize, bool),
        /// Its link stands, or does not.
        Link(usize, bool),
        /// It reports other tags and more room.
        Report(usize, Vec<Tag>, Amounts),
        Choose(PlacementStrategy),
        /// It says no to what it is given.
        Refuse(usize),
        /// Who said no may be asked again.
        AskAgain,
    }

    fn tags(max: usize) -> impl proptest::strategy::Strategy<Value = Vec<Tag>> {
        let tags = TAGS.map(|tag| Tag::parse(tag).unwrap()).to_vec();
        proptest::sample::subsequence(tags, 0..=max)
    }

    fn amounts(gpus: u32) -> impl proptest::strategy::Strategy<Value = Amounts> {
        (1..=4_000_u32, 1..=4_096_u32, 0..=gpus, 0..=16_u32).prop_map(
            |(cpu_millicores, memory_mb, gpus, vram)| Amounts {
                cpu_millicores,
                memory_mb,
                gpus,
                vram_gb: if gpus == 0 { 0 } else { vram },
            },
        )
    }

    fn step() -> impl proptest::strategy::Strategy<Value = Step> {
        let demand = (tags(2), tags(3), prop::option::weighted(0.1, 0..4_usize), amounts(2));
        let place = demand.prop_map(|(tags, preferred_tags, pin, amounts)| {
            Step::Place(Demand { tags, preferred_tags, node_id: pin.map(id), amounts })
        });
        let strategy = prop::sample::select(vec![
            PlacementStrategy::RoundRobin,
            PlacementStrategy::LeastLoaded,
            PlacementStrategy::BinPack,
            PlacementStrategy::Spread,
        ]);
        prop_oneof![
            8 => place,
            4 => (0..16_usize).prop_map(Step::Release),
            1 => (0..4_usize, any::<bool>()).prop_map(|(node, drain)| Step::Drain(node, drain)),
            1 => (0..4_usize, any::<bool>()).prop_map(|(node, up)| Step::Link(node, up)),
            1 => (0..4_usize, tags(3), amounts(4)).prop_map(|(node, tags, total)| Step::Report(node, tags, total)),
            1 => strategy.prop_map(Step::Choose),
            1 => (0..4_usize).prop_map(Step::Refuse),
            1 => Just(Step::AskAgain),
        ]
    }

    fn id(number: usize) -> NodeId {
        NodeId::parse(format!("n{number}")).unwrap()
    }

    /// The same rule, by a look at every node.
    fn by_looking_at_all(membership: &Membership, demand: &Demand) -> Option<NodeId> {
        let candidates = membership.nodes.values().filter_map(Node::candidate);
        let first = candidates.filter(|candidate| fits(demand, candidate)).min_by_key(|candidate| {
            let preferred = demand.preferred_tags.iter().filter(|tag| candidate.tags.contains(tag)).count();
            let wraps = membership.last_placed.as_ref().is_some_and(|last| candidate.node_id <= last);
            (Reverse(preferred), membership.strategy.rank(candidate), wraps, candidate.node_id)
        });
        first.map(|candidate| candidate.node_id.clone())
    }

    fn within(need: Amounts, has: Amounts) -> bool {
        need.cpu_millicores <= has.cpu_millicores
            && need.memory_mb <= has.memory_mb
            && need.gpus <= has.gpus
            && need.vram_gb <= has.vram_gb
    }

    proptest! {
        /// Beside the membership a plain account is kept of who was given what.
        #[test]
        fn no_node_is_given_more_than_it_has_and_every_refusal_has_its_reasons(
            mut nodes in prop::collection::vec((tags(3), amounts(4)), 1..5),
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut membership = Membership::default();
            for (number, (tags, total)) in nodes.iter().enumerate() {
                let mut record = NodeRecord::expected(id(number), Role::Worker, [1; 32], LinkKind::Direct);
                record.observed = Observed::Active;
                record.capabilities = Capabilities {
                    tags: tags.clone(), total: *total, engine: "docker".into(), ..Default::default()
                };
                membership.apply(Change::Put(Box::new(record)), 0);
                membership.set_link(&id(number), true);
            }
            let mut given: Vec<(ExecutionId, NodeId, Amounts)> = Vec::new();
            let used = |given: &[(ExecutionId, NodeId, Amounts)], node: &NodeId| {
                given.iter().filter(|(_, on, _)| on == node).fold(Amounts::default(), |sum, (.., amounts)| sum.plus(*amounts))
            };
            for step in steps {
                match step {
                    Step::Choose(strategy) => membership.set_strategy(strategy),
                    Step::Refuse(number) => {
                        let full = Error::new(ErrorCode::ResourceExhausted, "full");
                        membership.refused(&id(number), &ExecutionId::mint(), &full, 0);
                    }
                    Step::AskAgain => {
                        membership.forget_refusals(i64::MAX);
                    }
                    Step::Release(number) if number < given.len() => {
                        let (execution_id, ..) = given.remove(number);
                        membership.release(&execution_id);
                    }
                    Step::Release(_) => {}
                    Step::Drain(number, drain) if number < nodes.len() => {
                        let desired = if drain { Desired::Draining } else { Desired::Schedulable };
                        membership.apply(Change::Desired {
                            node_id: id(number), desired, deadline_ms: None, on_deadline: Default::default(),
                        }, 0);
                    }
                    Step::Link(number, up) => membership.set_link(&id(number), up),
                    Step::Report(number, tags, more) if number < nodes.len() => {
                        nodes[number] = (tags.clone(), nodes[number].1.plus(more));
                        let mut record = membership.nodes[&id(number)].record.clone();
                        (record.capabilities.tags, record.capabilities.total) = (tags, nodes[number].1);
                        membership.apply(Change::Put(Box::new(record)), 0);
                    }
                    Step::Drain(..) | Step::Report(..) => {}
                    Step::Place(demand) => {
                        let execution_id = ExecutionId::mint();
                        let first = by_looking_at_all(&membership, &demand);
                        prop_assert_eq!(membership.fit(&demand).ok(), first);
                        match membership.place(&execution_id, &demand) {
                            Ok(node) => {
                                given.push((execution_id, node.clone(), demand.amounts));
                                let number: usize = node.as_str()[1..].parse().unwrap();
                                prop_assert!(within(used(&given, &node), nodes[number].1), "{node} is given too much");
                                prop_assert!(demand.tags.iter().all(|tag| nodes[number].0.contains(tag)));
                                prop_assert!(demand.node_id.is_none_or(|pin| pin == node));
                            }
                            Err(no_fit) => {
                                prop_assert_eq!(no_fit.0.len(), nodes.len(), "each node has its reason");
                            }
                        }
                    }
                }
                for number in 0..nodes.len() {
                    let node = &membership.nodes[&id(number)];
                    prop_assert_eq!(node.used, used(&given, &id(number)), "what is released is free again");
                }
            }
        }
    }
}
