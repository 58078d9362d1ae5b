//! Nodes that an execution is not placed on again, and why. In memory only: a controller that is started again asks
//! each of them once more.

use aegis_types::{
    error::{ErrorCode, Failure},
    ids::NodeId,
};

use crate::membership::Excluded;

/// Refusals and failures of an execution so far, by node.
#[derive(Debug, Clone, Default)]
pub(super) struct Exclusion {
    pub nodes: Excluded,
    /// Reason of the first node that refused it. It is shown where every node refuses.
    pub first_refusal: Option<Failure>,
}

impl Exclusion {
    /// The node's policy refuses it, or the node cannot get its image.
    pub fn refuse(&mut self, node_id: &NodeId, failure: &Failure) {
        self.nodes.refused.insert(node_id.clone(), failure.message.clone());
        self.first_refusal.get_or_insert_with(|| failure.clone());
    }

    /// The node failed it through its own fault.
    pub fn fail(&mut self, node_id: &NodeId) {
        self.nodes.failed.insert(node_id.clone());
    }
}

/// Whether a failure shows that the node's engine or disk is broken.
pub(super) fn is_fault(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Engine | ErrorCode::Storage)
}

/// Whether another node may take what one node refuses with this code.
pub(super) fn is_refusal(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Forbidden | ErrorCode::ImageNotFound)
}
