//! Who has fallen silent, and when that is doubted.

use super::{Change, Membership};
use crate::cluster::peer::{LinkKind, Observed};

/// From this many active nodes on, a silence of more than half of them is doubted.
const BRAKE_NODES_MIN: usize = 4;
/// For how long it is doubted.
pub(super) const BRAKE_MS: i64 = 300_000;

impl Membership {
    /// Who has been silent for too long.
    pub fn sweep(&mut self, stale_ms: i64, now_ms: i64) -> Vec<Change> {
        let active = self.nodes.values().filter(|node| node.record.observed == Observed::Active);
        let (mut silent, mut count) = (Vec::new(), 0_usize);
        for node in active {
            count += 1;
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
