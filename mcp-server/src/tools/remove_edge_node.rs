//! `remove_edge_node`: undoes `deploy_edge_node`.

use cluster_core::{
    Result,
    cluster::peer::OnDeadline,
    deploy::{NodeOrder, Origin, Removal},
    ids::NodeId,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::confirm::{Plan, Weight};

use super::{
    arguments::wait,
    cancel_deployment::{Outcome, WAIT_SECONDS_DEFAULT, followed},
    catalogue::{Call, Hints, Tool},
    disruption::{on_node, running},
    drain_node::order as drain_order,
    progress::whole,
};

pub struct RemoveEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// From list_peers.
    node_id: NodeId,
    /// For running work: 0-86400, default 300.
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// Only if the machine is gone for good.
    #[serde(default)]
    host_gone: bool,
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

impl Tool for RemoveEdgeNode {
    const NAME: &'static str = "remove_edge_node";
    const TITLE: &'static str = "Remove a deployed node";
    const DESCRIPTION: &'static str = "Undo deploy_edge_node: drain the node, take its stack and files off \
the host (volumes stay), revoke its key. cancel_deployment undoes it until the stack goes.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<Plan> {
        wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        if call.core.knows_deployment_key(arguments.idempotency_key.as_deref()).await? {
            return Ok(Plan::nothing());
        }
        let node_id = arguments.node_id;
        // Nobody is asked about what cannot be done.
        call.core.check_deployed(&node_id).await?;
        let mut facts = match arguments.host_gone {
            true => vec!["nothing is done on its host, which does not exist any more".to_owned()],
            false => vec!["its stack and files are taken off its host; volumes stay".to_owned()],
        };
        facts.push("its key is revoked; only a deployment brings it back".to_owned());
        facts.extend(on_node(&call.core, &node_id).await?.as_deref().and_then(running));
        let command = format!("aegis node remove {node_id}");
        Ok(Plan {
            weight: Weight::Disruptive,
            summary: format!("remove {node_id}"),
            facts,
            carries: None,
            command,
        })
    }

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
