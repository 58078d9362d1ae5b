//! `cancel_rollout`: starts no further host and cancels those in progress.

use cluster_core::types::{error::Result, ids::RolloutId};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::wait,
    progress::whole,
    rollout::{Outcome, followed},
};
use crate::tools::{
    arguments::WAIT_SECONDS_DEFAULT,
    tool::{Call, Hints, Tool},
};

pub struct CancelRollout;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Returned by deploy_edge_nodes.
    rollout_id: RolloutId,
    /// Seconds to wait for the end, 0-45 (default 20).
    #[serde(default)]
    wait_seconds: Option<u64>,
}

impl Tool for CancelRollout {
    const NAME: &'static str = "cancel_rollout";
    const TITLE: &'static str = "Cancel a rollout";
    const DESCRIPTION: &'static str = "Cancel a rollout: no further host is started, and hosts in progress are \
restored to their previous state. Finished hosts stay deployed.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        format!("aegis rollouts {} --cancel", arguments.rollout_id)
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let (core, id) = (call.core.clone(), arguments.rollout_id);
        let view = whole(async move { core.cancel_rollout(&id).await }).await?;
        followed(call, view, wait).await
    }
}
