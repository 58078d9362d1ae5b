//! `rollback_edge_node`: has a node run an earlier release again.

use cluster_core::{
    Result,
    deploy::{NodeOrder, Origin},
    ids::{DeploymentId, NodeId},
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::wait,
    cancel_deployment::{Outcome, WAIT_SECONDS_DEFAULT, followed},
    catalogue::{Call, Hints, Tool},
    progress::whole,
};

pub struct RollbackEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// As list_peers shows it; a node that deploy_edge_node made.
    node_id: NodeId,
    /// The deployment whose release is to run again. Default: the newest good one before the current. An
    /// unknown one is answered with those there are.
    #[serde(default)]
    to: Option<DeploymentId>,
    /// How long to wait for another deployment of the host to end: 0 to 600, default 0.
    #[serde(default)]
    lock_wait_seconds: Option<u64>,
    /// 1 to 128 characters: the same key with the same arguments gives the same rollback.
    #[serde(default)]
    idempotency_key: Option<String>,
    /// How long to wait for the end: 0 to 45, default 20. It goes on either way.
    #[serde(default)]
    wait_seconds: Option<u64>,
}

impl Tool for RollbackEdgeNode {
    const NAME: &'static str = "rollback_edge_node";
    const TITLE: &'static str = "Roll a node back";
    const DESCRIPTION: &'static str = "Have a deployed node run an earlier release again: its files, .env and \
images as they were when that release was good. The host keeps the last five. Checked like a deployment; if it \
fails, what runs now is put back. Follow it with get_deployment_status.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: false, open_world: true };
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let Arguments { node_id: node, to, lock_wait_seconds, idempotency_key, .. } = arguments;
        let (core, order) = (call.core.clone(), NodeOrder { node, lock_wait_seconds, idempotency_key });
        let view = whole(async move { core.roll_back(order, to, Origin::Assistant).await }).await?;
        followed(call, view, wait).await
    }
}
