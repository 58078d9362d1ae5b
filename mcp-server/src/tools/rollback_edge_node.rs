//! `rollback_edge_node`: returns a node to an earlier release.

use cluster_core::{
    deploy::NodeOrder,
    types::{
        error::Result,
        ids::{DeploymentId, NodeId},
        principal::Origin,
    },
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::wait,
    disruption::{on_node, running},
    progress::whole,
};
use crate::{
    confirm::{Impact, Plan},
    tools::{
        arguments::WAIT_SECONDS_DEFAULT,
        deployment::{Outcome, followed},
        tool::{Call, Hints, Tool},
    },
};

pub struct RollbackEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// A node with a host in list_peers.
    node_id: NodeId,
    /// deployment_id of the release to return to. Default: the newest good release before the current one.
    #[serde(default)]
    to: Option<DeploymentId>,
    /// Seconds to wait for another deployment of the host, 0-600.
    #[serde(default)]
    #[schemars(skip)]
    lock_wait_seconds: Option<u64>,
    /// Makes retries safe: same key and arguments, same result.
    #[serde(default)]
    idempotency_key: Option<String>,
    /// Seconds to wait for the end, 0-45 (default 20).
    #[serde(default)]
    wait_seconds: Option<u64>,
}

impl Tool for RollbackEdgeNode {
    const NAME: &'static str = "rollback_edge_node";
    const TITLE: &'static str = "Roll a node back";
    const DESCRIPTION: &'static str = "Return a node to an earlier release (its compose stack, settings and \
images); the host keeps five. If the rollback fails, the current release is restored. Returns a deployment_id; \
follow it with get_deployment_status.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: false, open_world: true };
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        let to = arguments.to.as_ref().map(|to| format!(" --to {to}")).unwrap_or_default();
        format!("aegis node rollback {}{to}", arguments.node_id)
    }

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<Plan> {
        wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        if call.core.knows_deployment_key(arguments.idempotency_key.as_deref()).await? {
            return Ok(Plan::nothing());
        }
        let command = Self::command(&arguments);
        let node_id = arguments.node_id;
        let running = on_node(&call.core, &node_id).await?.as_deref().and_then(running);
        let weight = if running.is_some() { Impact::Disruptive } else { Impact::Routine };
        let summary = format!("roll {node_id} back to an earlier release");
        Ok(Plan { weight, summary, facts: running.into_iter().collect(), carries: None, command })
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let Arguments { node_id: node, to, lock_wait_seconds, idempotency_key, .. } = arguments;
        let (core, order) = (call.core.clone(), NodeOrder { node, lock_wait_seconds, idempotency_key });
        let view = whole(async move { core.roll_back(order, to, Origin::Assistant).await }).await?;
        followed(call, view, wait).await
    }
}
