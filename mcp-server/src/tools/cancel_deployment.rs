//! `cancel_deployment`: cancels a deployment.

use std::time::Duration;

use cluster_core::{
    deploy::{DeploymentState, DeploymentView, Operation},
    types::{
        error::{Failure, Result},
        ids::{DeploymentId, NodeId},
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::wait,
    catalogue::{Call, Hints, Tool},
    progress::whole,
};

/// Of every tool that begins something on a host.
pub const WAIT_SECONDS_DEFAULT: u64 = 20;

pub struct CancelDeployment;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The id to cancel.
    deployment_id: DeploymentId,
    /// Seconds to wait for the end, 0-45 (default 20).
    #[serde(default)]
    wait_seconds: Option<u64>,
}

/// A deployment in short: get_deployment_status has its steps.
#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    deployment_id: DeploymentId,
    operation: Operation,
    state: DeploymentState,
    host: String,
    node_id: NodeId,
    /// For since_event of get_deployment_status.
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

impl Tool for CancelDeployment {
    const NAME: &'static str = "cancel_deployment";
    const TITLE: &'static str = "Cancel a deployment";
    const DESCRIPTION: &'static str = "Cancel a running deployment, rollback or removal and restore the host \
to its previous state. No effect on one that has finished.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        format!("aegis deployments {} --cancel", arguments.deployment_id)
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let (core, id) = (call.core.clone(), arguments.deployment_id);
        let view = whole(async move { core.cancel_deployment(&id).await }).await?;
        followed(call, view, wait).await
    }
}
