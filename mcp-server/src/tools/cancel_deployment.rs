//! `cancel_deployment`: cancels a deployment.

use cluster_core::types::{error::Result, ids::DeploymentId};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::{WAIT_SECONDS_DEFAULT, wait},
    deployment::{Outcome, followed},
    progress::whole,
};
use crate::tools::tool::{Call, Hints, Tool};

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
