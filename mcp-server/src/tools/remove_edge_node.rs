//! `remove_edge_node`: undoes `deploy_edge_node`.

use cluster_core::{
    Result,
    cluster::peer::OnDeadline,
    deploy::{NodeOrder, Origin, Removal},
    ids::NodeId,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::wait,
    cancel_deployment::{Outcome, WAIT_SECONDS_DEFAULT, followed},
    catalogue::{Call, Hints, Tool},
    drain_node::order as drain_order,
    progress::whole,
};

pub struct RemoveEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// As list_peers shows it; a node that deploy_edge_node made.
    node_id: NodeId,
    /// How long running work may go on before it is cancelled: 0 to 86400, default 300.
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// True only when the machine does not exist any more: nothing is done there.
    #[serde(default)]
    host_gone: bool,
    /// How long to wait for another deployment of the host to end: 0 to 600, default 0.
    #[serde(default)]
    lock_wait_seconds: Option<u64>,
    /// 1 to 128 characters: the same key with the same arguments gives the same removal.
    #[serde(default)]
    idempotency_key: Option<String>,
    /// How long to wait for the end: 0 to 45, default 20. It goes on either way.
    #[serde(default)]
    wait_seconds: Option<u64>,
}

impl Tool for RemoveEdgeNode {
    const NAME: &'static str = "remove_edge_node";
    const TITLE: &'static str = "Remove a deployed node";
    const DESCRIPTION: &'static str = "Undo deploy_edge_node: drain the node, take its stack and files off the \
host (volumes stay; only a person can have them removed), revoke its key and forget it. Until the stack goes, \
cancel_deployment puts the node back into service. Follow it with get_deployment_status.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        let deadline = drain_order(arguments.deadline_seconds, OnDeadline::Cancel)?.deadline;
        let removal = Removal::new(false, deadline, arguments.host_gone)?;
        let Arguments { node_id: node, lock_wait_seconds, idempotency_key, .. } = arguments;
        let (core, order) = (call.core.clone(), NodeOrder { node, lock_wait_seconds, idempotency_key });
        let view =
            whole(async move { core.remove_edge_node(order, removal, Origin::Assistant).await }).await?;
        followed(call, view, wait).await
    }
}
