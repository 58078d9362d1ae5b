//! Reservations of executions on nodes that take work.

use std::collections::{BTreeMap, BTreeSet};

use aegis_types::{
    execution::manifest::PlacementRequest,
    ids::{ExecutionId, NodeId},
    node::Desired,
    placement::PlacementStrategy,
    resources::Amounts,
};

use super::{Membership, Node, Reservation};
use crate::placement::{Candidate, PlacementError, Position, Rejection, Until, fits, rank, reasons, why_not};

const KEPT_FREE: &str = "kept free for an execution that has waited for long";

/// Nodes that an execution is not placed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excluded {
    /// Nodes that refused it or cannot get its image, with the reason. They are never asked again.
    pub refused: BTreeMap<NodeId, String>,
    /// Nodes that failed it through their own fault. They are asked again where no other node takes it.
    pub failed: BTreeSet<NodeId>,
}

/// A node that is kept free for one execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    execution_id: ExecutionId,
    node_id: NodeId,
}

impl Membership {
    /// How nodes are chosen from now on.
    pub fn set_strategy(&mut self, strategy: PlacementStrategy) {
        self.strategy = strategy;
        self.reorder_all();
    }

    /// Chooses a node and reserves what is asked for. Equals take turns, in the order of their ids.
    pub fn place(
        &mut self,
        execution_id: &ExecutionId,
        demand: &PlacementRequest,
    ) -> Result<NodeId, PlacementError> {
        self.place_except(execution_id, demand, &Excluded::default())
    }

    /// Places an execution on a node that is not excluded for it.
    pub fn place_except(
        &mut self,
        execution_id: &ExecutionId,
        demand: &PlacementRequest,
        excluded: &Excluded,
    ) -> Result<NodeId, PlacementError> {
        let chosen = self.fit_except(Some(execution_id), demand, excluded)?;
        self.hold.take_if(|hold| hold.execution_id == *execution_id);
        self.reserve(&chosen, execution_id, demand.amounts);
        self.last_placed = Some(chosen.clone());
        Ok(chosen)
    }

    /// Returns the node that a demand would get now, or why it fits no node.
    pub fn fit(&self, demand: &PlacementRequest) -> Result<NodeId, PlacementError> {
        self.fit_except(None, demand, &Excluded::default())
    }

    /// Returns the node that a demand would get now. A node that failed the execution is chosen only if no other node
    /// takes it, now or once it has room.
    pub fn fit_except(
        &self,
        execution_id: Option<&ExecutionId>,
        demand: &PlacementRequest,
        excluded: &Excluded,
    ) -> Result<NodeId, PlacementError> {
        let first = self.first_fit(execution_id, demand, excluded);
        match first {
            Err(no_fit)
                if !excluded.failed.is_empty()
                    && !no_fit.0.iter().any(|unfit| unfit.until == Until::Free) =>
            {
                let refused = Excluded { refused: excluded.refused.clone(), failed: BTreeSet::new() };
                self.first_fit(execution_id, demand, &refused)
            }
            first => first,
        }
    }

    fn first_fit(
        &self,
        execution_id: Option<&ExecutionId>,
        demand: &PlacementRequest,
        excluded: &Excluded,
    ) -> Result<NodeId, PlacementError> {
        let is_held = |node_id: &NodeId| {
            let hold = self.hold.as_ref().filter(|hold| hold.node_id == *node_id);
            hold.is_some_and(|hold| Some(&hold.execution_id) != execution_id)
        };
        let fitting = |node_id: &NodeId| {
            let candidate = self.nodes.get(node_id).and_then(Node::candidate);
            candidate.is_some_and(|candidate| fits(demand, &candidate))
                && !excluded.refused.contains_key(node_id)
                && !excluded.failed.contains(node_id)
                && !is_held(node_id)
        };
        let chosen = match &demand.node_id {
            Some(pin) => Some(pin).filter(|pin| fitting(pin)),
            None => self.order.first(demand, self.last_placed.as_ref(), fitting),
        };
        if let Some(chosen) = chosen {
            return Ok(chosen.clone());
        }
        let candidates = self.nodes.values().filter_map(Node::candidate).map(|mut candidate| {
            if is_held(candidate.node_id) && candidate.blocked.is_none() {
                candidate.blocked = Some(KEPT_FREE);
            }
            candidate
        });
        let (excepted, rest): (Vec<_>, Vec<_>) =
            candidates.partition(|candidate| excluded.reason(candidate.node_id).is_some());
        let mut no_fit = reasons(demand, rest.into_iter());
        for candidate in excepted {
            // Any other reason that rules the node out counts.
            let unfit = match why_not(demand, &candidate) {
                Some((why, Until::Never)) => Some((why, Until::Never)),
                _ => excluded.reason(candidate.node_id),
            };
            no_fit.0.extend(unfit.map(|(why, until)| Rejection {
                node_id: candidate.node_id.clone(),
                why,
                until,
            }));
        }
        no_fit.0.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        Err(no_fit)
    }

    /// Keeps a node free for an execution that fits nowhere now: one that will fit once it has room. The node stays
    /// the same while it may take the execution. Returns whether there is such a node.
    pub fn hold_for(
        &mut self,
        execution_id: &ExecutionId,
        demand: &PlacementRequest,
        excluded: &Excluded,
    ) -> bool {
        let before = self.hold.take();
        let busy = |candidate: &Candidate<'_>| {
            excluded.reason(candidate.node_id).is_none()
                && why_not(demand, candidate).is_some_and(|(_, until)| until == Until::Free)
        };
        let candidates = || self.nodes.values().filter_map(Node::candidate).filter(busy);
        let kept = before.filter(|hold| {
            hold.execution_id == *execution_id
                && candidates().any(|candidate| *candidate.node_id == hold.node_id)
        });
        self.hold = kept.or_else(|| {
            let least_loaded =
                candidates().min_by_key(|candidate| rank(PlacementStrategy::LeastLoaded, candidate));
            let node_id = least_loaded?.node_id.clone();
            tracing::info!(%node_id, %execution_id, "node is kept free for an execution that waits");
            Some(Hold { execution_id: execution_id.clone(), node_id })
        });
        self.hold.is_some()
    }

    /// Nothing waits for so long that a node is kept free for it.
    pub fn drop_hold(&mut self) {
        self.hold = None;
    }

    pub fn reserve(&mut self, node_id: &NodeId, execution_id: &ExecutionId, amounts: Amounts) {
        self.release(execution_id);
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.used = node.used.plus(amounts);
            node.reserved.insert(execution_id.clone(), Reservation { amounts, gpus: Vec::new() });
            node.settle_gpus();
            self.placed.insert(execution_id.clone(), node_id.clone());
            self.reorder(node_id);
        }
    }

    pub fn release(&mut self, execution_id: &ExecutionId) {
        let Some(node_id) = self.placed.remove(execution_id) else { return };
        let Some(node) = self.nodes.get_mut(&node_id) else { return };
        if let Some(reservation) = node.reserved.remove(execution_id) {
            node.used = node.used.minus(reservation.amounts);
            node.settle_gpus();
            self.reorder(&node_id);
        }
    }

    pub(super) fn reorder_all(&mut self) {
        let ids = self.nodes.keys().cloned().collect::<Vec<_>>();
        for node_id in ids {
            self.reorder(&node_id);
        }
    }

    /// To be called after whatever changes what a node is chosen or counted by. Only those that take work stand in
    /// the order.
    pub(super) fn reorder(&mut self, node_id: &NodeId) {
        let Some(node) = self.nodes.get_mut(node_id) else { return };
        let kind = node.kind();
        self.counts.change(node.counted.replace(kind), kind);
        let position = node.candidate().filter(|candidate| candidate.blocked.is_none()).map(|candidate| {
            Position { tags: candidate.tags.to_vec(), rank: rank(self.strategy, &candidate) }
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

impl Excluded {
    fn reason(&self, node_id: &NodeId) -> Option<(String, Until)> {
        match self.refused.get(node_id) {
            Some(why) => Some((why.clone(), Until::Never)),
            None => {
                let failed = self.failed.contains(node_id);
                failed.then(|| ("failed it before through its own fault".to_owned(), Until::Unblocked))
            }
        }
    }
}

impl Node {
    /// Returns the node as placement sees it. `None` for a node that never runs executions.
    fn candidate(&self) -> Option<Candidate<'_>> {
        let record = &self.record;
        let counts = record.role.runs_executions() && record.desired != Desired::Removed;
        counts.then(|| Candidate {
            node_id: &record.node_id,
            tags: &record.capabilities.tags,
            blocked: self.blocked().or(self.refusal()).or(self.cooling()),
            total: record.capabilities.total,
            free: self.free(),
            gpus_mb: &self.gpus.all_mb,
            free_gpus_mb: &self.gpus.free_mb,
            executions: self.reserved.len(),
        })
    }

    pub(super) fn free(&self) -> Amounts {
        let free = self.record.capabilities.total.minus(self.used);
        self.gpus.of_free(free)
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;
    use crate::membership::Change;
    use aegis_types::node::NodeRecord;
    use aegis_types::{
        error::{Error, ErrorCode},
        ids::Tag,
        node::{Capabilities, LinkKind, Observed, Role},
    };

    const TAGS: [&str; 3] = ["gpu", "eu", "ssd"];

    #[derive(Debug, Clone)]
    enum Step {
        Place(PlacementRequest),
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
        /// The pause after a refusal is over.
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
            Step::Place(PlacementRequest {
                tags,
                preferred_tags,
                node_id: pin.map(id),
                amounts,
                wait_seconds: None,
                priority: 0,
            })
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
    fn by_looking_at_all(membership: &Membership, demand: &PlacementRequest) -> Option<NodeId> {
        let candidates = membership.nodes.values().filter_map(Node::candidate);
        let first = candidates.filter(|candidate| fits(demand, candidate)).min_by_key(|candidate| {
            let preferred = demand.preferred_tags.iter().filter(|tag| candidate.tags.contains(tag)).count();
            let wraps = membership.last_placed.as_ref().is_some_and(|last| candidate.node_id <= last);
            (Reverse(preferred), rank(membership.strategy, candidate), wraps, candidate.node_id)
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
        /// Compares the membership with a simple account of the reservations.
        #[test]
        fn nodes_are_not_overbooked_and_refusals_have_reasons(
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
