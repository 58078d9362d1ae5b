//! A deployment as the tools that start or cancel one show it.

use std::time::Duration;

use cluster_core::{
    deploy::{DeploymentState, DeploymentView, Operation},
    types::{
        error::{Failure, Result},
        ids::{DeploymentId, NodeId},
    },
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::tools::tool::Call;

/// A deployment in short: get_deployment_status has its steps.
#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    deployment_id: DeploymentId,
    operation: Operation,
    state: DeploymentState,
    host: String,
    node_id: NodeId,
    /// Pass as since_event to get_deployment_status.
    event: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    next_step: String,
}

impl From<DeploymentView> for Outcome {
    fn from(view: DeploymentView) -> Self {
        Self {
            deployment_id: view.deployment_id,
            operation: view.operation,
            state: view.state,
            host: view.host,
            node_id: view.node_id,
            event: view.event,
            failure: view.failure,
            next_step: view.next_step,
        }
    }
}

/// Waits for the end of a deployment that was just started or cancelled.
pub(super) async fn followed(call: &mut Call, view: DeploymentView, wait: Duration) -> Result<Outcome> {
    let core = call.core.clone();
    let view = call.progress.follow(&core, view, wait, |view| view.state.is_final()).await?;
    Ok(view.into())
}
