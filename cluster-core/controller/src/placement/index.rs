//! Nodes in the order in which a strategy looks at them, kept as they change, so that a decision looks
//! at few of them. Pure.
//!
//! Nodes with the same tags stand together: which tags are asked for or preferred is judged once for all
//! of them. Absent on purpose: what is free, which differs from demand to demand and is asked of the caller.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use aegis_types::{
    execution::manifest::PlacementRequest,
    ids::{NodeId, Tag},
};

/// Nodes by rank, then by id. A lower rank comes first.
type Ranks = BTreeMap<u64, BTreeSet<NodeId>>;

/// Nodes that take work.
#[derive(Debug, Default)]
pub struct Order {
    all: Ranks,
    by_tags: BTreeMap<Vec<Tag>, Ranks>,
}

/// Position of a node in an [`Order`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub tags: Vec<Tag>,
    pub rank: u64,
}

impl Order {
    pub fn insert(&mut self, node_id: &NodeId, at: &Position) {
        self.all.entry(at.rank).or_default().insert(node_id.clone());
        if !self.by_tags.contains_key(&at.tags) {
            self.by_tags.insert(at.tags.clone(), Ranks::new());
        }
        if let Some(ranks) = self.by_tags.get_mut(&at.tags) {
            ranks.entry(at.rank).or_default().insert(node_id.clone());
        }
    }

    pub fn remove(&mut self, node_id: &NodeId, at: &Position) {
        take_out(&mut self.all, node_id, at.rank);
        if let Some(ranks) = self.by_tags.get_mut(&at.tags) {
            take_out(ranks, node_id, at.rank);
            if ranks.is_empty() {
                self.by_tags.remove(&at.tags);
            }
        }
    }

    /// The first that has all tags asked for and, says the caller, room: more of the preferred tags come
    /// first, then the lower rank, then whose turn it is after `last`.
    pub fn first(
        &self,
        demand: &PlacementRequest,
        last: Option<&NodeId>,
        has_room: impl Fn(&NodeId) -> bool,
    ) -> Option<&NodeId> {
        if demand.tags.is_empty() && demand.preferred_tags.is_empty() {
            return best_of(&[&self.all], last, &has_room);
        }
        let mut by_preference: BTreeMap<Reverse<usize>, Vec<&Ranks>> = BTreeMap::new();
        for (tags, ranks) in &self.by_tags {
            if demand.tags.iter().all(|tag| tags.contains(tag)) {
                let preferred = demand.preferred_tags.iter().filter(|tag| tags.contains(tag)).count();
                by_preference.entry(Reverse(preferred)).or_default().push(ranks);
            }
        }
        by_preference.values().find_map(|alike| best_of(alike, last, &has_room))
    }
}

fn take_out(ranks: &mut Ranks, node_id: &NodeId, rank: u64) {
    if let Some(equals) = ranks.get_mut(&rank) {
        equals.remove(node_id);
        if equals.is_empty() {
            ranks.remove(&rank);
        }
    }
}

/// The first of several that have as many of the preferred tags.
fn best_of<'a>(
    alike: &[&'a Ranks],
    last: Option<&NodeId>,
    has_room: impl Fn(&NodeId) -> bool,
) -> Option<&'a NodeId> {
    let mut best: Option<(u64, bool, &NodeId)> = None;
    for ranks in alike {
        let found = first_of(ranks, last, best.map(|(rank, ..)| rank), &has_room);
        best = best.into_iter().chain(found).min();
    }
    best.map(|(_, _, node_id)| node_id)
}

/// Returns the first node with its rank, and whether its turn comes after the wrap. Returns `None` above the rank of
/// another node.
fn first_of<'a>(
    ranks: &'a Ranks,
    last: Option<&NodeId>,
    rank_max: Option<u64>,
    has_room: impl Fn(&NodeId) -> bool,
) -> Option<(u64, bool, &'a NodeId)> {
    let up_to = rank_max.map_or(Bound::Unbounded, Bound::Included);
    ranks.range((Bound::Unbounded, up_to)).find_map(|(rank, equals)| {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = equals.range::<NodeId, _>((from, Bound::Unbounded)).map(|node_id| (false, node_id));
        let wrapped = last.into_iter().flat_map(|last| equals.range::<NodeId, _>(..=last));
        let turns = later.chain(wrapped.map(|node_id| (true, node_id)));
        turns
            .into_iter()
            .find(|(_, node_id)| has_room(node_id))
            .map(|(wraps, node_id)| (*rank, wraps, node_id))
    })
}
