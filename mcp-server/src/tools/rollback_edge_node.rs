//! `rollback_edge_node`: has a node run an earlier release again.

use cluster_core::{
    Result,
    deploy::{NodeOrder, Origin},
    ids::{DeploymentId, NodeId},
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::confirm::{Plan, Weight};

use super::{
    arguments::wait,
    cancel_deployment::{Outcome, WAIT_SECONDS_DEFAULT, followed},
    catalogue::{Call, Hints, Tool},
    disruption::{on_node, running},
    progress::whole,
};

pub struct RollbackEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// From list_peers.
    node_id: NodeId,
    /// deployment_id of a release. Default: the last good one before.
    #[serde(default)]
    to: Option<DeploymentId>,
    /// For another deployment there: 0-600.
    #[serde(default)]
    #[schemars(skip)]
    lock_wait_seconds: Option<u64>,
    /// Same key, same deployment.
    #[serde(default)]
    idempotency_key: Option<String>,
    /// 0-45, default 20.
    #[serde(default)]
    wait_seconds: Option<u64>,
}

impl Tool for RollbackEdgeNode {
    const NAME: &'static str = "rollback_edge_node";
    const TITLE: &'static str = "Roll a node back";
    const DESCRIPTION: &'static str = "Have a node run an earlier release again; the host keeps five. If \
it fails, what runs now is put back.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: false, open_world: true };
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<Plan> {
        wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        if call.core.knows_deployment_key(arguments.idempotency_key.as_deref()).await? {
            return Ok(Plan::nothing());
        }
        let node_id = arguments.node_id;
        let running = on_node(&call.core, &node_id).await?.as_deref().and_then(running);
        let weight = if running.is_some() { Weight::Disruptive } else { Weight::Routine };
        let command = format!("aegis node rollback {node_id}");
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
