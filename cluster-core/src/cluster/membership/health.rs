//! Who has fallen silent, and when that is doubted.

use std::time::Duration;

use super::{Change, Membership, Node};
use crate::cluster::peer::{LinkKind, Observed};

/// From this many active nodes on, a silence of more than half of them is doubted.
const BRAKE_NODES_MIN: usize = 4;
/// For how long it is doubted.
pub(super) const BRAKE_MS: i64 = 300_000;

/// Missed intervals before a node counts as unhealthy, as published.
const MISSED_HEARTBEATS: u32 = 3;
/// No node may be silent for longer, whatever interval it tells.
const STALE_MS_MAX: i64 = 900_000;

/// How long nodes may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Staleness {
    /// Where a node does not tell its interval.
    pub threshold: Duration,
    /// The operator has set it: no node is unhealthy before that.
    pub is_set: bool,
}

impl Node {
    /// By the interval that the node tells: it may differ from the controller's own.
    fn stale_ms(&self, staleness: Staleness) -> i64 {
        let threshold_ms = i64::try_from(staleness.threshold.as_millis()).unwrap_or(i64::MAX);
        let Some(interval) = self.interval else { return threshold_ms };
        let told = i64::try_from((interval * MISSED_HEARTBEATS).as_millis()).unwrap_or(i64::MAX);
        let told = told.min(STALE_MS_MAX);
        if staleness.is_set { told.max(threshold_ms) } else { told }
    }
}

impl Membership {
    /// Who has been silent for too long.
    pub fn sweep(&mut self, staleness: Staleness, now_ms: i64) -> Vec<Change> {
        let active = self.nodes.values().filter(|node| node.record.observed == Observed::Active);
        let (mut silent, mut count) = (Vec::new(), 0_usize);
        for node in active {
            count += 1;
            let stale_ms = node.stale_ms(staleness);
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
}
