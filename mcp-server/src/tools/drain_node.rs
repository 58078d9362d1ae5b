//! `drain_node`: takes a node out of service without losing work.

use std::time::Duration;

use cluster_core::{
    Result,
    cluster::peer::{DrainState, DrainView, OnDeadline},
    core::{Core, DrainOrder},
    ids::{ExecutionId, NodeId},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::{check_range, wait},
    catalogue::{Call, Hints, Tool},
    progress::{Followed, whole},
};

pub const DEADLINE_SECONDS_DEFAULT: u64 = 300;
pub const DEADLINE_SECONDS_MAX: u64 = 86_400;
/// Executions that are named; the rest is counted.
const BLOCKERS_SHOWN_MAX: usize = 50;

pub struct DrainNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// As list_peers shows it.
    node_id: NodeId,
    /// How long running work may go on: 0 to 86400, default 300.
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// What happens to work that still runs then: cancel (default) or leave.
    #[serde(default)]
    on_deadline: OnDeadline,
    /// Wait for the end of the drain for up to this many seconds: 0 to 45, default 0. The drain goes on
    /// either way.
    #[serde(default)]
    wait_seconds: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    node_id: NodeId,
    /// draining while work runs, drained when none is left.
    state: DrainState,
    /// Executions that still run there.
    blockers: Vec<ExecutionId>,
    /// How many there are in all.
    blockers_total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_in_seconds: Option<u64>,
    on_deadline: OnDeadline,
    /// Whether the node itself has taken the order.
    acknowledged: bool,
    next_step: String,
}

/// The order that any surface gives.
pub fn order(deadline_seconds: Option<u64>, on_deadline: OnDeadline) -> Result<DrainOrder> {
    let seconds = check_range(
        "deadline_seconds",
        deadline_seconds.unwrap_or(DEADLINE_SECONDS_DEFAULT),
        0..=DEADLINE_SECONDS_MAX,
    )?;
    Ok(DrainOrder { deadline: Duration::from_secs(seconds), on_deadline })
}

impl Followed for DrainView {
    async fn change(&self, core: &Core, wait: Duration) -> Result<Self> {
        core.await_drain(&self.node_id, wait).await
    }

    fn describe(&self) -> String {
        match self.state {
            DrainState::Drained => format!("{} is drained", self.node_id),
            DrainState::Schedulable => format!("{} takes work again", self.node_id),
            DrainState::Removed => format!("{} is removed", self.node_id),
            DrainState::Draining => format!("{} drains: {} still run", self.node_id, self.blockers.len()),
        }
    }
}

impl From<DrainView> for Outcome {
    fn from(mut view: DrainView) -> Self {
        let next_step = match view.state {
            DrainState::Drained => {
                "It runs nothing and gets no new work. resume_node takes it back into service.".to_owned()
            }
            DrainState::Draining => format!(
                "It gets no new work. Call drain_node again with node_id {} and wait_seconds to wait for the \
                 rest, cancel_execution for single ones, or resume_node to undo it.",
                view.node_id
            ),
            DrainState::Schedulable => "It was resumed meanwhile and takes work.".to_owned(),
            DrainState::Removed => "It is no member any more; deploy_edge_node brings it back.".to_owned(),
        };
        let blockers_total = view.blockers.len();
        view.blockers.truncate(BLOCKERS_SHOWN_MAX);
        Self {
            node_id: view.node_id,
            state: view.state,
            blockers: view.blockers,
            blockers_total,
            deadline_in_seconds: view.deadline_in_seconds,
            on_deadline: view.on_deadline,
            acknowledged: view.acknowledged,
            next_step,
        }
    }
}

impl Tool for DrainNode {
    const NAME: &'static str = "drain_node";
    const TITLE: &'static str = "Drain a node";
    const DESCRIPTION: &'static str = "Take a node out of service: it gets no new work, what runs there may \
finish until the deadline and is then cancelled, or left running when on_deadline is leave. Survives restarts; \
resume_node undoes it. The answer names the executions that still run.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: false };
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, 0)?;
        let order = order(arguments.deadline_seconds, arguments.on_deadline)?;
        let core = call.core.clone();
        let started = {
            let (core, node_id) = (core.clone(), arguments.node_id);
            whole(async move { core.drain(&node_id, order).await }).await?
        };
        let view =
            call.progress.follow(&core, started, wait, |view| view.state != DrainState::Draining).await?;
        Ok(view.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_has_a_range() {
        assert_eq!(order(None, OnDeadline::Cancel).unwrap().deadline, Duration::from_secs(300));
        assert!(order(Some(86_401), OnDeadline::Leave).is_err());
    }
}
