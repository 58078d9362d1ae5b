//! `cancel_execution`: stops an execution.

use cluster_core::{
    core::{Core, PeerFilter},
    types::{
        error::{Error, Result},
        execution::{lifecycle::State, view::ExecutionView},
        ids::{ExecutionId, NodeId},
        node::PeerStatus,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::progress::whole;
use crate::tools::tool::{Call, Hints, Tool};

pub const REASON_LENGTH_MAX: usize = 500;
pub const REASON_DEFAULT: &str = "cancelled by its caller";

pub struct CancelExecution;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The id to cancel.
    execution_id: ExecutionId,
    /// Recorded with the execution; at most 500 characters.
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    execution_id: ExecutionId,
    state: State,
    next_step: String,
}

/// Whether the node of an execution can be told to stop it now.
async fn node_answers(core: &Core, node_id: Option<&NodeId>) -> Result<bool> {
    let Some(node_id) = node_id else { return Ok(true) };
    let peers = core.peers(PeerFilter::default()).await?;
    let peer = peers.into_iter().find(|peer| peer.node_id == *node_id);
    Ok(peer.is_some_and(|peer| {
        peer.link_up && !matches!(peer.status, PeerStatus::Unhealthy | PeerStatus::Offline)
    }))
}

fn next_step(view: &ExecutionView, node_answers: bool) -> String {
    let id = &view.execution_id;
    let node = view.node_id.as_ref().map(ToString::to_string).unwrap_or_default();
    match view.state {
        State::Cancelled if !node_answers => format!(
            "Cancelled, but node {node} does not answer now: the container may still run there. It is stopped as \
             soon as the node is back."
        ),
        State::Cancelled => "Cancelled; get_execution reads its output.".to_owned(),
        state if state.is_final() => {
            format!("The execution had already ended ({}); nothing was changed.", state.name())
        }
        State::Pending => {
            format!(
                "Being cancelled; no node has it yet. Call get_execution with execution_id {id} to see it end."
            )
        }
        _ if !node_answers => format!(
            "Node {node} does not answer now: the container is stopped as soon as the node is back. Call \
             get_execution with execution_id {id} to see whether it ended."
        ),
        _ => format!(
            "Node {node} was told to stop it; call get_execution with execution_id {id} and wait_seconds to see it end."
        ),
    }
}

/// A reason that can be stored and shown.
pub fn reason(given: Option<String>) -> Result<String> {
    let reason = given.unwrap_or_else(|| REASON_DEFAULT.to_owned());
    if reason.is_empty() || reason.chars().count() > REASON_LENGTH_MAX {
        return Err(Error::invalid(format!("reason: it must have 1 to {REASON_LENGTH_MAX} characters")));
    }
    Ok(crate::text::clean(&reason).into_owned())
}

impl Tool for CancelExecution {
    const NAME: &'static str = "cancel_execution";
    const TITLE: &'static str = "Cancel an execution";
    const DESCRIPTION: &'static str = "Stop a running or queued execution. Its output stays readable. No effect \
on one that has ended.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: false };
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        format!("aegis executions cancel {}", arguments.execution_id)
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let reason = reason(arguments.reason)?;
        let core = call.core.clone();
        let id = arguments.execution_id;
        let view = whole(async move { core.cancel_execution(&id, &reason).await }).await?;
        let reaches = node_answers(&call.core, view.node_id.as_ref()).await?;
        let next_step = next_step(&view, reaches);
        Ok(Outcome { execution_id: view.execution_id, state: view.state, next_step })
    }
}
