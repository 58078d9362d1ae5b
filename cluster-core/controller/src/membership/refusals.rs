//! Backs off nodes that rejected an assignment, so that placement tries other candidates. The node's reason is reported
//! to waiting executions.

use aegis_types::{
    error::{Error, ErrorCode, Failure},
    ids::{ExecutionId, NodeId},
};

use super::{Membership, Node};

/// Long enough not to ask as fast as a node can answer; its disk, say, is not free any sooner.
const ASKED_AGAIN_AFTER_MS: i64 = 5_000;
/// Only a person can change that, or the end of another controller.
const FENCED_ASKED_AGAIN_AFTER_MS: i64 = 60_000;

/// Long enough for a person to see it.
const EXCESS_SHOWN_MS: i64 = 24 * 3_600_000;

/// A node's own word.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    code: ErrorCode,
    why: String,
    since_ms: i64,
}

impl Refusal {
    /// A node that obeys another controller takes no work of this one, which a person must hear of. The
    /// other refusals are about one execution.
    pub fn problem(&self) -> Option<Failure> {
        (self.code == ErrorCode::Fenced).then(|| Failure {
            code: self.code,
            message: format!("it refuses this controller: {}", self.why),
            remedy: Some("end the other controller of this cluster, then restart this one".to_owned()),
        })
    }

    fn pause_ms(&self) -> i64 {
        if self.code == ErrorCode::Fenced { FENCED_ASKED_AGAIN_AFTER_MS } else { ASKED_AGAIN_AFTER_MS }
    }
}

impl Membership {
    /// The node did not take what it was given. What that reserved is free again.
    pub fn refused(&mut self, node_id: &NodeId, execution_id: &ExecutionId, why: &Error, now_ms: i64) {
        self.release(execution_id);
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.refusal =
                Some(Refusal { code: why.code(), why: why.message().to_owned(), since_ms: now_ms });
            self.reorder(node_id);
        }
    }

    pub(super) fn rebase_refusals(&mut self, jump_ms: i64) {
        for refusal in self.nodes.values_mut().filter_map(|node| node.refusal.as_mut()) {
            refusal.since_ms = refusal.since_ms.saturating_add(jump_ms);
        }
        self.rebase_faults(jump_ms);
    }

    /// True when some node may be asked again from now on.
    pub fn forget_refusals(&mut self, now_ms: i64) -> bool {
        let is_over = |refusal: &Refusal| now_ms.saturating_sub(refusal.since_ms) >= refusal.pause_ms();
        let mut asked_again = Vec::new();
        for node in self.nodes.values_mut() {
            if node.refusal.take_if(|refusal| is_over(refusal)).is_some() {
                asked_again.push(node.record.node_id.clone());
            }
        }
        for node_id in &asked_again {
            self.reorder(node_id);
        }
        let is_cooled = self.end_pauses(now_ms);
        is_cooled || !asked_again.is_empty()
    }
}

impl Membership {
    /// Notes that a node sends more events of an execution than are stored.
    pub fn note_excess(&mut self, node_id: &NodeId, execution_id: ExecutionId, now_ms: i64) {
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.excess = Some((execution_id, now_ms));
        }
    }
}

impl Node {
    /// Returns the problem of a node that lately sent more events of an execution than are stored.
    pub(super) fn excess_problem(&self, now_ms: i64) -> Option<Failure> {
        let (execution_id, since_ms) = self.excess.as_ref()?;
        (now_ms.saturating_sub(*since_ms) < EXCESS_SHOWN_MS).then(|| Failure {
            code: ErrorCode::ResourceExhausted,
            message: format!("it sent more events of {execution_id} than the controller stores of an execution"),
            remedy: Some(
                "lower max_output_mb in the node's policy, or raise spec.runtime.retention.execution_events_mb \
                 on the controller; if its output is within its policy, do not trust the node"
                    .to_owned(),
            ),
        })
    }

    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_ref().map(|refusal| refusal.why.as_str())
    }
}
