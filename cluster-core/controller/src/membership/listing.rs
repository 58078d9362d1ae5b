//! Pages of nodes. Their cost depends on the page, and not on the number of nodes: these are counted as they change.
//! Only a filter by tags, and the nodes between two that match, take a look at each.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use aegis_types::{
    ids::{NodeId, Tag},
    node::{PeerStatus, PeerView, Role},
};

use super::{Membership, Node};

/// Nodes that are asked for.
#[derive(Debug, Clone, Default)]
pub struct PeerFilter {
    /// `None`: every status but removed.
    pub status: Option<PeerStatus>,
    pub role: Option<Role>,
    /// All of them.
    pub tags: Vec<Tag>,
}

impl PeerFilter {
    fn admits(&self, kind: Kind) -> bool {
        let is_wanted = match self.status {
            Some(status) => kind.status == status,
            None => kind.status != PeerStatus::Removed,
        };
        is_wanted && self.role.is_none_or(|role| kind.role == role)
    }

    fn matches(&self, node: &Node) -> bool {
        let tags = &node.record.capabilities.tags;
        self.admits(node.kind()) && self.tags.iter().all(|tag| tags.contains(tag))
    }
}

/// Class of a node in the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    status: PeerStatus,
    role: Role,
}

/// Numbers of nodes of each kind.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<Kind, usize>);

impl Counts {
    /// Counts a node that was of one kind, or not there, and is of another now.
    pub fn change(&mut self, before: Option<Kind>, now: Kind) {
        if before == Some(now) {
            return;
        }
        if let Some(count) = before.and_then(|before| self.0.get_mut(&before)) {
            *count = count.saturating_sub(1);
        }
        *self.0.entry(now).or_default() += 1;
    }

    fn of(&self, filter: &PeerFilter) -> (usize, usize) {
        let matching = || self.0.iter().filter(|(kind, _)| filter.admits(**kind));
        let active = matching().filter(|(kind, _)| kind.status == PeerStatus::Active);
        (matching().map(|(_, count)| count).sum(), active.map(|(_, count)| count).sum())
    }
}

/// Nodes that match a filter, in the order of their ids.
#[derive(Debug)]
pub struct PeerPage {
    pub peers: Vec<PeerView>,
    /// All that match, on every page together.
    pub total: usize,
    /// How many of all that match are active.
    pub active: usize,
    /// Others follow the last of this page.
    pub has_more: bool,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        let record = &self.record;
        Kind { status: PeerStatus::of(record.desired, record.observed), role: record.role }
    }
}

impl Membership {
    /// Returns at most `limit` nodes that match, after a node that may have gone.
    pub fn page(&self, filter: &PeerFilter, after: Option<&NodeId>, limit: usize, now_ms: i64) -> PeerPage {
        let begin = after.map_or(Unbounded, Excluded);
        let mut nodes = self.nodes.range::<NodeId, _>((begin, Unbounded)).map(|(_, node)| node);
        let mut matching = nodes.by_ref().filter(|node| filter.matches(node));
        let peers = matching.by_ref().take(limit).map(|node| node.view(now_ms)).collect();
        let has_more = matching.next().is_some();
        let (total, active) = if filter.tags.is_empty() {
            self.counts.of(filter)
        } else {
            let all = self.nodes.values().filter(|node| filter.matches(node));
            all.fold((0, 0), |(total, active), node| {
                (total + 1, active + usize::from(node.kind().status == PeerStatus::Active))
            })
        };
        PeerPage { peers, total, active, has_more }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::membership::Change;
    use aegis_types::node::NodeRecord;
    use aegis_types::node::{Desired, LinkKind, Observed, OnDeadline};

    fn id(number: u8) -> NodeId {
        NodeId::parse(format!("n{number}")).unwrap()
    }

    fn filters() -> Vec<PeerFilter> {
        let statuses = PeerStatus::ALL.into_iter().map(Some).chain([None]);
        let roles = [None, Some(Role::Worker), Some(Role::Hybrid)];
        let tags = [Vec::new(), vec![Tag::parse("gpu").unwrap()]];
        let filter = |status, role, tags: &Vec<Tag>| PeerFilter { status, role, tags: tags.clone() };
        statuses
            .flat_map(|status| roles.map(|role| (status, role)))
            .flat_map(|(status, role)| tags.each_ref().map(|tags| filter(status, role, tags)))
            .collect()
    }

    proptest! {
        /// Pages together are the nodes that match, and the counts are theirs, after any changes.
        #[test]
        fn pages_hold_what_matches_and_counts_agree(
            changes in prop::collection::vec((0_u8..12, 0_u8..7, any::<bool>()), 1..60),
            limit in 1_usize..5,
        ) {
            let mut membership = Membership::default();
            for (number, change, flag) in changes {
                let node_id = id(number);
                let desired = |desired| Change::Desired {
                    node_id: id(number), desired, deadline_ms: None, on_deadline: OnDeadline::default(),
                };
                let observed =
                    |observed| Change::Observed { node_id: id(number), observed, last_heartbeat_ms: None };
                let change = match change {
                    0 => {
                        let role = if flag { Role::Worker } else { Role::Hybrid };
                        let mut record = NodeRecord::expected(node_id, role, [1; 32], LinkKind::Direct);
                        record.capabilities.tags = if number % 2 == 0 { vec![Tag::parse("gpu").unwrap()] } else { vec![] };
                        Change::Put(Box::new(record))
                    }
                    1 => observed(Observed::Active),
                    2 => observed(Observed::Unhealthy),
                    3 => observed(Observed::Offline),
                    4 => desired(Desired::Draining),
                    5 => desired(Desired::Schedulable),
                    _ => Change::Remove { node_id },
                };
                membership.apply(change, 0);
            }
            for filter in filters() {
                let all: Vec<_> = membership.nodes.values().filter(|node| filter.matches(node)).map(|node| node.view(0)).collect();
                let active = all.iter().filter(|view| view.status == PeerStatus::Active).count();
                let (mut told, mut after) = (Vec::new(), None);
                loop {
                    let page = membership.page(&filter, after.as_ref(), limit, 0);
                    prop_assert_eq!((page.total, page.active), (all.len(), active));
                    prop_assert!(page.peers.len() <= limit);
                    told.extend(page.peers);
                    if !page.has_more {
                        break;
                    }
                    after = told.last().map(|view| view.node_id.clone());
                }
                prop_assert_eq!(told, all);
            }
        }
    }
}
