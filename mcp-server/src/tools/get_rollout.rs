//! `get_rollout`: how a rollout stands, waiting for a change when asked.

use cluster_core::{
    deploy::RolloutView,
    types::{error::Result, ids::RolloutId},
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{arguments::wait, rollout::Outcome};
use crate::tools::tool::{Call, Hints, Tool};

pub struct GetRollout;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Returned by deploy_edge_nodes.
    rollout_id: RolloutId,
    /// Seconds to wait, 0-45 (default 0): for the end, or with since_event for any change.
    #[serde(default)]
    wait_seconds: Option<u64>,
    /// event of the last answer.
    #[serde(default)]
    since_event: Option<u64>,
}

impl Tool for GetRollout {
    const NAME: &'static str = "get_rollout";
    const TITLE: &'static str = "Follow a rollout";
    const DESCRIPTION: &'static str = "Read the progress of a rollout: a summary, then each host's state and \
current step, or why it failed (failed hosts first).";
    const HINTS: Hints = Hints { read_only: true, destructive: false, idempotent: true, open_world: false };
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, 0)?;
        let core = call.core.clone();
        let known = core.rollout(&arguments.rollout_id).await?;
        let since = arguments.since_event;
        let news =
            move |view: &RolloutView| view.state.is_final() || since.is_some_and(|event| view.event > event);
        let view = call.progress.follow(&core, known, wait, news).await?;
        Ok(view.into())
    }
}
