//! Marks nodes unhealthy after missed heartbeats, unless most nodes are late at once.

use std::time::Duration;

use aegis_types::node::{LinkKind, Observed};

use super::{Change, Membership, Node};

/// From this many active nodes on, a silence of more than half of them is doubted.
const GUARD_NODES_MIN: usize = 4;
/// Longest time for which the silence of most nodes is doubted.
pub(super) const GUARD_MS: i64 = 300_000;

/// Missed intervals before a node counts as unhealthy, as published.
const MISSED_HEARTBEATS: u32 = 3;
/// No node may be silent for longer, whatever interval it tells.
const STALE_MS_MAX: i64 = 900_000;

/// How long nodes may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Staleness {
    /// Silence of a node that does not tell its interval.
    pub threshold: Duration,
    /// The operator has set it: no node is unhealthy before that.
    pub is_set: bool,
}

impl Node {
    /// Follows the interval that the node tells: it may differ from the controller's own.
    fn stale_ms(&self, staleness: Staleness) -> i64 {
        let threshold_ms = i64::try_from(staleness.threshold.as_millis()).unwrap_or(i64::MAX);
        let Some(interval) = self.interval else { return threshold_ms };
        let told = i64::try_from((interval * MISSED_HEARTBEATS).as_millis()).unwrap_or(i64::MAX);
        let told = told.min(STALE_MS_MAX);
        if staleness.is_set { told.max(threshold_ms) } else { told }
    }
}

impl Membership {
    /// Marks nodes that have been silent for too long, unless most are late at once: then the fault is more
    /// likely the controller's own. Late nodes are counted, and not those that are stale already: nodes that
    /// went silent together become stale one after the other.
    pub fn sweep(&mut self, staleness: Staleness, now_ms: i64) -> Vec<Change> {
        let (mut silent, mut late, mut count) = (Vec::new(), 0_usize, 0_usize);
        for node in self.nodes.values().filter(|node| node.record.observed == Observed::Active) {
            count += 1;
            if node.record.link == LinkKind::Local {
                continue;
            }
            let (silence_ms, stale_ms) = (now_ms.saturating_sub(node.heard_ms), node.stale_ms(staleness));
            late += usize::from(silence_ms > stale_ms / 2);
            if silence_ms > stale_ms {
                silent.push(node);
            }
        }
        let doubts = count >= GUARD_NODES_MIN && late * 2 > count;
        let since_ms = if doubts { Some(self.guard_since_ms.unwrap_or(now_ms)) } else { None };
        let is_on = since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) < GUARD_MS);
        if is_on && self.guard_since_ms.is_none() {
            tracing::warn!(
                late,
                active = count,
                "most nodes are late at once: waiting before any is given up"
            );
        }
        let changes = match is_on {
            true => Vec::new(),
            false => silent
                .into_iter()
                .map(|node| Change::Observed {
                    node_id: node.record.node_id.clone(),
                    observed: Observed::Unhealthy,
                    last_heartbeat_ms: Some(node.heard_ms),
                })
                .collect(),
        };
        (self.guard_since_ms, self.guard_is_on) = (since_ms, is_on);
        changes
    }

    /// Carries on what is counted in wall time over a jump of the wall clock. `missed_ms`: for how long the
    /// controller itself has not listened. The changes are the deadlines of drains.
    pub fn rebase(&mut self, jump_ms: i64, missed_ms: i64, now_ms: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        for node in self.nodes.values_mut() {
            let heard_ms = node.heard_ms.saturating_add(jump_ms).saturating_add(missed_ms);
            node.heard_ms = heard_ms.min(now_ms);
            node.contradiction.since_ms = node.contradiction.since_ms.saturating_add(jump_ms);
            if let (Some(deadline_ms), true) = (node.record.drain_deadline_ms, jump_ms != 0) {
                changes.push(Change::Desired {
                    node_id: node.record.node_id.clone(),
                    desired: node.record.desired,
                    deadline_ms: Some(deadline_ms.saturating_add(jump_ms)),
                    on_deadline: node.record.on_deadline,
                });
            }
        }
        self.guard_since_ms = self.guard_since_ms.map(|since_ms| since_ms.saturating_add(jump_ms));
        self.rebase_refusals(jump_ms);
        changes
    }

    /// Returns whether most nodes are late at once. No node is given up then.
    pub fn guard_is_on(&self) -> bool {
        self.guard_is_on
    }
}
