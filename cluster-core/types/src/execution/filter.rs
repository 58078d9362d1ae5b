//! Filter of the list of executions.

use super::lifecycle::State;
use crate::{
    agent::AgentReference,
    ids::{ExecutionId, NodeId, Tag},
};

/// Conditions that all hold; without any, a list shows all executions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutionFilter {
    /// One of these states.
    pub states: Vec<State>,
    /// The node that an execution is or was on last.
    pub node_id: Option<NodeId>,
    /// A registered agent, in this version or in any.
    pub agent: Option<AgentReference>,
    /// All of these labels.
    pub labels: Vec<Tag>,
    /// Older than this execution: the next page of a list.
    pub before: Option<ExecutionId>,
}
