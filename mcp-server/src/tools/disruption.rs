//! What a call would disrupt: the facts that a person is shown before it is confirmed.

use cluster_core::{
    core::Core,
    deploy::{DeploymentFilter, DeploymentState},
    types::{
        error::Result,
        ids::{ExecutionId, NodeId},
        node::DrainState,
    },
};

/// Executions that are named; the rest is counted.
const NAMED_MAX: usize = 5;

/// How many executions a node runs, and some of them; none when it runs nothing.
pub fn running(executions: &[ExecutionId]) -> Option<String> {
    let named = executions.iter().take(NAMED_MAX).map(ExecutionId::as_str).collect::<Vec<_>>().join(", ");
    match executions.len() {
        0 => None,
        1 => Some(format!("1 execution runs there: {named}")),
        count if count <= NAMED_MAX => Some(format!("{count} executions run there: {named}")),
        count => Some(format!("{count} executions run there, among them {named}")),
    }
}

/// What the node of a host runs, where its last good deployment made it a member; none for a host that has
/// no node of ours yet.
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

/// None for a node that is no member.
pub async fn on_node(core: &Core, node_id: &NodeId) -> Result<Option<Vec<ExecutionId>>> {
    match core.drain_status(node_id).await {
        Ok(view) => Ok((view.state != DrainState::Removed).then_some(view.blockers)),
        Err(error) if error.code() == cluster_core::types::error::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
