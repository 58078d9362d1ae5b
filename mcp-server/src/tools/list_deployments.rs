//! `list_deployments`: what was deployed where, newest first.

use cluster_core::{
    core::Core,
    deploy::{DeploymentFilter, DeploymentState, DeploymentView},
    types::{
        error::{Error, Result},
        ids::{DeploymentId, NodeId},
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::{cursor, cursor_of, page_limit},
    paging::fit,
};
use crate::{
    text::time::TimestampText,
    tools::tool::{Call, Hints, Tool},
};

/// Deployments that are read at a time while the cursor's place is looked up.
const BATCH_MAX: usize = 200;

pub struct ListDeployments;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Only this state. started: stack without a node. rolled_back: failed, and the previous release runs
    /// again. interrupted: outcome unknown.
    #[serde(default)]
    state: Option<DeploymentState>,
    /// Only this host.
    #[serde(default)]
    host: Option<String>,
    /// 1-100, default 20.
    #[serde(default)]
    limit: Option<u32>,
    /// next_cursor of the previous page.
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Line {
    deployment_id: DeploymentId,
    host: String,
    node_id: NodeId,
    state: DeploymentState,
    created_at: TimestampText,
    updated_at: TimestampText,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    deployments: Vec<Line>,
    /// All that match, on every page together.
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    next_step: String,
}

fn line(view: DeploymentView) -> Line {
    Line {
        deployment_id: view.deployment_id,
        host: view.host,
        node_id: view.node_id,
        state: view.state,
        created_at: TimestampText::of_ms(view.created_at_ms),
        updated_at: TimestampText::of_ms(view.updated_at_ms),
        problem: view.failure.map(|failure| failure.message),
    }
}

/// Returns how many deployments of the filter come before the one that follows `after`.
///
/// # Errors
///
/// Fails if no deployment of the filter has this id: beginning again unasked could repeat pages without end.
async fn offset_after(core: &Core, mut filter: DeploymentFilter, after: &str) -> Result<usize> {
    loop {
        let (batch, _) = core.deployments(filter.clone()).await?;
        if let Some(index) = batch.iter().position(|view| view.deployment_id.as_str() == after) {
            return Ok(filter.offset + index + 1);
        }
        if batch.len() < filter.limit {
            return Err(Error::invalid("cursor: its deployment is not in this list any more")
                .remedy("leave cursor out to begin again"));
        }
        filter.offset += batch.len();
    }
}

impl Tool for ListDeployments {
    const NAME: &'static str = "list_deployments";
    const TITLE: &'static str = "List deployments";
    const DESCRIPTION: &'static str = "List deployments, rollbacks and removals, newest first. Use it to find \
an id you no longer have.";
    const HINTS: Hints = Hints { read_only: true, destructive: false, idempotent: true, open_world: false };
    type Arguments = Arguments;
    type Outcome = Outcome;

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let limit = page_limit(arguments.limit)?;
        let after = arguments.cursor.as_deref().map(cursor).transpose()?;
        let mut filter =
            DeploymentFilter { state: arguments.state, host: arguments.host, limit: BATCH_MAX, offset: 0 };
        if let Some(after) = after {
            filter.offset = offset_after(&call.core, filter.clone(), &after).await?;
        }
        filter.limit = limit + 1;
        let (mut page, total) = call.core.deployments(filter).await?;
        let more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| more).map(|last| cursor_of(last.deployment_id.as_str()));
        let (deployments, cut) =
            fit(page.into_iter().map(line).collect(), |line| line.deployment_id.as_str());
        let next_cursor = cut.or(next);
        let next_step = match (&next_cursor, total) {
            (_, 0) => "There is none. Deploy a machine with deploy_edge_node.",
            (Some(_), _) => "Pass next_cursor as cursor for the next page.",
            (None, _) => "Call get_deployment_status with a deployment_id for its steps.",
        };
        Ok(Outcome { deployments, total, next_cursor, next_step: next_step.to_owned() })
    }
}
