//! Disruption by a call: the facts that a person sees before confirming.

use cluster_core::{
    core::Core,
    deploy::{DeploymentFilter, DeploymentState},
    types::{
        error::Result,
        ids::{ExecutionId, NodeId},
        node::DrainState,
    },
};

/// Number of executions that are named; the rest is counted.
const NAMED_MAX: usize = 5;

/// Describes the executions that run on a node; `None` if the node is idle.
pub fn running(executions: &[ExecutionId]) -> Option<String> {
    let named = executions.iter().take(NAMED_MAX).map(ExecutionId::as_str).collect::<Vec<_>>().join(", ");
    match executions.len() {
        0 => None,
        1 => Some(format!("1 execution runs there: {named}")),
        count if count <= NAMED_MAX => Some(format!("{count} executions run there: {named}")),
        count => Some(format!("{count} executions run there, among them {named}")),
    }
}

/// Returns the executions on a host's node, if its last good deployment made it a member. Returns `None` for a host
/// without a node.
pub async fn on_host(core: &Core, host: &str) -> Result<Option<Vec<ExecutionId>>> {
    let filter = DeploymentFilter {
        state: Some(DeploymentState::Ready),
        host: Some(host.to_owned()),
        limit: 1,
        offset: 0,
    };
    let (deployments, _) = core.deployments(filter).await?;
    let Some(last) = deployments.into_iter().next() else { return Ok(None) };
    on_node(core, &last.node_id).await
}

/// Returns the executions on a node; `None` if the node is no member.
pub async fn on_node(core: &Core, node_id: &NodeId) -> Result<Option<Vec<ExecutionId>>> {
    match core.drain_status(node_id).await {
        Ok(view) => Ok((view.state != DrainState::Removed).then_some(view.blockers)),
        Err(error) if error.code() == cluster_core::types::error::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
