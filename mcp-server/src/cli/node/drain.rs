//! `aegis node drain` and `aegis node remove`: take a node out of service, temporarily or permanently.

use std::time::Duration;

use clap::{Args, ValueEnum};
use cluster_core::{
    deploy::DeploymentView,
    types::{
        error::{Error, ErrorCode, Result},
        node::{DrainState, DrainView},
    },
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{duration, segment};
use crate::cli::{Context, following};

/// Length of one wait at the daemon; waits are repeated as needed.
const WAIT_SECONDS: u64 = 30;
/// Time for executions that are cancelled at the deadline: their grace period, and the arrival of their end.
const REMOVAL_GRACE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnDeadline {
    Leave,
    Cancel,
}

#[derive(Debug, Args)]
pub struct Drain {
    id: String,
    /// How long running work may continue, like 300s, 5m or 1h
    #[arg(long, default_value = "300s", value_parser = duration)]
    deadline: Duration,
    /// Leave or cancel work that still runs at the deadline
    #[arg(long, value_enum, default_value = "leave")]
    on_deadline: OnDeadline,
    /// Wait until no work runs there
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Remove {
    id: String,
    /// Time for running work before it is cancelled
    #[arg(long, default_value = "300s", value_parser = duration)]
    deadline: Duration,
    /// Remove the node at once; its running work is reported as lost
    #[arg(long)]
    force: bool,
    /// Remove the volumes of a deployed node too, with models and the node's key
    #[arg(long)]
    volumes: bool,
    /// Remove a deployed node whose machine no longer exists, without touching the host
    #[arg(long, conflicts_with = "volumes")]
    host_gone: bool,
    /// Print the deployment's id and exit; the removal continues
    #[arg(long)]
    no_wait: bool,
}

impl Drain {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let path = format!("/v1/cluster/nodes/{}/drain", segment(&self.id));
        let on_deadline = match self.on_deadline {
            OnDeadline::Leave => "leave",
            OnDeadline::Cancel => "cancel",
        };
        let body = json!({ "deadline_seconds": self.deadline.as_secs(), "on_deadline": on_deadline });
        let mut view: DrainView = client.post(&path, &body).await?;
        if self.wait {
            view = follow(context, &self.id, view, None).await?;
        }
        let resumed = self.wait && view.state == DrainState::Schedulable;
        show(context, &self.id, &view)?;
        if resumed {
            return Err(Error::new(ErrorCode::Cancelled, format!("{} was resumed meanwhile", self.id)));
        }
        Ok(())
    }
}

impl Remove {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let nodes: Value = client.get("/v1/cluster/nodes").await?;
        let deployed = nodes["nodes"].as_array().is_some_and(|nodes| {
            nodes.iter().any(|node| node["node_id"] == self.id.as_str() && node["host"].is_string())
        });
        if !deployed {
            return self.unmember(context).await.map(|()| 0);
        }
        let seconds = if self.force { 0 } else { self.deadline.as_secs() };
        let path = format!(
            "/deploy/edge-node/{}?deadline_seconds={seconds}&volumes={}&host_gone={}",
            segment(&self.id),
            self.volumes,
            self.host_gone
        );
        let view: DeploymentView = client.delete(&path).await?;
        following::to_its_end(context, &client, view, self.no_wait).await
    }

    /// Removes a node that joined by hand: its machine is left as it is.
    async fn unmember(self, context: &Context) -> Result<()> {
        if self.volumes || self.host_gone {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("{} was not deployed from here: its machine is not ours to clean", self.id),
            )
            .remedy("leave --volumes and --host-gone out"));
        }
        let seconds = self.deadline.as_secs();
        let path = format!(
            "/v1/cluster/nodes/{}?deadline_seconds={seconds}&force={}",
            segment(&self.id),
            self.force
        );
        let view: DrainView = context.client()?.delete(&path).await?;
        let view = follow(context, &self.id, view, Some(self.deadline + REMOVAL_GRACE)).await?;
        show(context, &self.id, &view)?;
        match view.state {
            DrainState::Removed => Ok(()),
            DrainState::Schedulable => {
                Err(Error::new(ErrorCode::Cancelled, format!("{} was resumed meanwhile", self.id)))
            }
            DrainState::Draining | DrainState::Drained => Err(Error::new(
                ErrorCode::Timeout,
                format!("{} does not answer, and work is still assigned to it", self.id),
            )
            .remedy(format!("to remove it anyway: aegis node remove {} --force", self.id))),
        }
    }
}

/// Follows until no work runs there, or the time is over.
async fn follow(
    context: &Context,
    id: &str,
    mut view: DrainView,
    limit: Option<Duration>,
) -> Result<DrainView> {
    let client = context.client()?;
    let path = format!("/v1/cluster/nodes/{}/drain?wait_seconds={WAIT_SECONDS}", segment(id));
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut said = usize::MAX;
    while view.state == DrainState::Draining && deadline.is_none_or(|at| Instant::now() < at) {
        if view.blockers.len() != said {
            said = view.blockers.len();
            context.output.say(&format!("{said} still run on {id}"));
        }
        view = client.get(&path).await?;
    }
    Ok(view)
}

fn show(context: &Context, id: &str, view: &DrainView) -> Result<()> {
    context.output.show(view, || match view.state {
        DrainState::Drained => format!("{id} is drained."),
        DrainState::Schedulable => format!("{id} takes work."),
        DrainState::Removed => format!("{id} is removed; only a new token or deployment brings it back."),
        DrainState::Draining => {
            let ids: Vec<_> = view.blockers.iter().map(ToString::to_string).collect();
            format!("{id} drains; {} still run: {}", ids.len(), ids.join(", "))
        }
    })
}
