//! `resume_node`: takes a drained node back into service.

use cluster_core::types::{error::Result, ids::NodeId, node::PeerStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::progress::whole;
use crate::tools::tool::{Call, Hints, Tool};

pub struct ResumeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// From list_peers.
    node_id: NodeId,
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    node_id: NodeId,
    /// active when it takes work now.
    state: PeerStatus,
    next_step: String,
}

impl Tool for ResumeNode {
    const NAME: &'static str = "resume_node";
    const TITLE: &'static str = "Resume a node";
    const DESCRIPTION: &'static str = "Let a drained node receive new work again.";
    const HINTS: Hints = Hints { read_only: false, destructive: false, idempotent: true, open_world: false };
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        format!("aegis node resume {}", arguments.node_id)
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let core = call.core.clone();
        let view = whole(async move { core.resume(&arguments.node_id).await }).await?;
        let next_step = match view.status {
            PeerStatus::Active => "It takes work again: submit_execution.".to_owned(),
            status => format!(
                "It may take work again, but is {} now; list_peers with response_format detailed says why.",
                serde_json::to_value(status).ok().as_ref().and_then(|v| v.as_str()).unwrap_or("not active")
            ),
        };
        Ok(Outcome { node_id: view.node_id, state: view.status, next_step })
    }
}
