//! Nodes whose engine fails executions through its own fault: they cool off for growing pauses, so that a broken
//! engine does not take the work of healthy nodes.

use aegis_types::{
    error::{ErrorCode, Failure},
    ids::NodeId,
};

use super::{Membership, Node};

/// Pauses after the first failures in a row; the last one is for all that follow. The first is short, since a cluster
/// of one node has no other.
const PAUSES_MS: [i64; 3] = [5_000, 30_000, 300_000];

/// Failures of a node in a row.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    in_a_row: u32,
    why: String,
    since_ms: i64,
    /// Why it takes no work; `None` once its pause is over.
    cooling: Option<String>,
}

impl Faults {
    fn pause_ms(&self) -> i64 {
        let place = usize::try_from(self.in_a_row).unwrap_or(usize::MAX).clamp(1, PAUSES_MS.len());
        PAUSES_MS[place - 1]
    }

    pub fn problem(&self) -> Failure {
        let times = if self.in_a_row == 1 { "an execution" } else { "executions" };
        Failure {
            code: ErrorCode::Engine,
            message: format!("its engine failed {times} ({} in a row): {}", self.in_a_row, self.why),
            remedy: Some("see the container engine's own log on the node".to_owned()),
        }
    }
}

impl Membership {
    /// An execution failed on the node, and the node is to blame. Executions that fail during its pause began before
    /// it and count no more.
    pub fn node_failed(&mut self, node_id: &NodeId, why: &str, now_ms: i64) {
        let Some(node) = self.nodes.get_mut(node_id) else { return };
        let in_a_row = match &node.faults {
            Some(faults) if faults.cooling.is_some() => return,
            Some(faults) => faults.in_a_row.saturating_add(1),
            None => 1,
        };
        let mut faults = Faults { in_a_row, why: why.to_owned(), since_ms: now_ms, cooling: None };
        let seconds = faults.pause_ms() / 1000;
        tracing::warn!(%node_id, in_a_row, seconds, why, "node cools off");
        faults.cooling = Some(format!("cools off for {seconds} s: its engine failed: {why}"));
        node.faults = Some(faults);
        self.reorder(node_id);
    }

    /// A container of an execution runs on the node: its engine works.
    pub fn node_ran(&mut self, node_id: &NodeId) {
        if let Some(node) = self.nodes.get_mut(node_id)
            && node.faults.take().is_some()
        {
            self.reorder(node_id);
        }
    }

    pub(super) fn rebase_faults(&mut self, jump_ms: i64) {
        for faults in self.nodes.values_mut().filter_map(|node| node.faults.as_mut()) {
            faults.since_ms = faults.since_ms.saturating_add(jump_ms);
        }
    }

    /// Ends the pauses that are over. Returns whether there was one.
    pub(super) fn end_pauses(&mut self, now_ms: i64) -> bool {
        let mut over = Vec::new();
        for node in self.nodes.values_mut() {
            let Some(faults) = &mut node.faults else { continue };
            if faults.cooling.is_some() && now_ms.saturating_sub(faults.since_ms) >= faults.pause_ms() {
                faults.cooling = None;
                over.push(node.record.node_id.clone());
            }
        }
        for node_id in &over {
            self.reorder(node_id);
        }
        !over.is_empty()
    }
}

impl Node {
    pub(super) fn cooling(&self) -> Option<&str> {
        self.faults.as_ref()?.cooling.as_deref()
    }
}
