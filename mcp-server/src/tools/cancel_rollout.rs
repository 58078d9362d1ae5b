//! `cancel_rollout`: begins no further host and calls off those that run.

use cluster_core::{Result, ids::RolloutId};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::wait,
    cancel_deployment::WAIT_SECONDS_DEFAULT,
    catalogue::{Call, Hints, Tool},
    progress::whole,
    rollout::{Outcome, followed},
};

pub struct CancelRollout;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// From deploy_edge_nodes.
    rollout_id: RolloutId,
    /// 0-45, default 20.
    #[serde(default)]
    wait_seconds: Option<u64>,
}

impl Tool for CancelRollout {
    const NAME: &'static str = "cancel_rollout";
    const TITLE: &'static str = "Call a rollout off";
    const DESCRIPTION: &'static str = "Begin no further host of a rollout and call off those that run: \
they are put back as they were.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let (core, id) = (call.core.clone(), arguments.rollout_id);
        let view = whole(async move { core.cancel_rollout(&id).await }).await?;
        followed(call, view, wait).await
    }
}
