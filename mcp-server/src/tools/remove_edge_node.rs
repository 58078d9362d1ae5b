//! `remove_edge_node`: removes a node that `deploy_edge_node` made.

use cluster_core::{
    deploy::{NodeOrder, Removal},
    types::{error::Result, ids::NodeId, node::OnDeadline, principal::Origin},
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    arguments::wait,
    disruption::{on_node, running},
    drain_node::order as drain_order,
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

pub struct RemoveEdgeNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// A node with a host in list_peers.
    node_id: NodeId,
    /// Seconds that running work may continue, 0-86400 (default 300).
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// true only if the machine no longer exists: removes the node without connecting to it.
    #[serde(default)]
    host_gone: bool,
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

impl Tool for RemoveEdgeNode {
    const NAME: &'static str = "remove_edge_node";
    const TITLE: &'static str = "Remove a deployed node";
    const DESCRIPTION: &'static str = "Remove a deployed node: drain it, take its stack and files off the \
host, and revoke its key. Docker volumes are kept. Work still running at the deadline is cancelled. Returns \
needs_confirmation first, then a deployment_id; cancel_deployment can stop it until the stack is taken down.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: true };
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        let host_gone = if arguments.host_gone { " --host-gone" } else { "" };
        format!("aegis node remove {}{host_gone}", arguments.node_id)
    }

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<Plan> {
        wait(arguments.wait_seconds, WAIT_SECONDS_DEFAULT)?;
        if call.core.knows_deployment_key(arguments.idempotency_key.as_deref()).await? {
            return Ok(Plan::nothing());
        }
        let command = Self::command(&arguments);
        let node_id = arguments.node_id;
        // Nobody is asked about what cannot be done.
        call.core.check_deployed(&node_id).await?;
        let mut facts = match arguments.host_gone {
            true => vec!["nothing is done on its host, which does not exist any more".to_owned()],
            false => vec!["its stack and files are taken off its host; volumes stay".to_owned()],
        };
        facts.push("its key is revoked; only a deployment brings it back".to_owned());
        facts.extend(on_node(&call.core, &node_id).await?.as_deref().and_then(running));
        Ok(Plan {
            weight: Impact::Disruptive,
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
