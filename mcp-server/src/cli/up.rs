//! `aegis up`: starts a node, and shows the next steps.

use clap::Args;
use cluster_core::{
    config::StartedBy,
    core::HealthView,
    types::{
        error::{Error, ErrorCode, Failure, Result},
        execution::{lifecycle::State, view::ExecutionView},
        node::Role,
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context,
    choice::ConfigArgs,
    client::Client,
    launch::{self, Launched},
    mcp::clients::Clients,
    status,
};

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Result of the trial container.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Trial {
    Ran { execution_id: String, node_id: String, milliseconds: i64 },
    Failed { failure: Failure },
}

impl Up {
    /// Starts the daemon and shows its status.
    ///
    /// # Errors
    ///
    /// Fails with `Unavailable`, after everything is shown, if the node is not ready.
    pub async fn run(self, context: &Context) -> Result<()> {
        let launched = launch::ensure(context, &self.config.choice(), StartedBy::Person).await?;
        let Launched { data_dir, client, health, started } = &launched;
        context.output.say(if *started { "The daemon was started." } else { "The daemon runs already." });
        let clients = Clients::of(data_dir)?;
        // A worker's cluster is managed at its controller, which also serves MCP.
        if health.role == Role::Worker {
            return status::show(context, client).await.and_then(|(health, _)| check_ready(&health));
        }
        let trial = if health.role.runs_executions() { Some(trial(client).await) } else { None };
        if !context.output.is_human() {
            let health = client.health().await?;
            let data = json!({ "health": health, "trial": trial, "clients": clients });
            context.output.show(&data, String::new)?;
            return check_ready(&health);
        }
        let (health, _) = status::show(context, client).await?;
        if let Some(trial) = &trial {
            context.output.show(&Value::Null, || format!("\n{}", trial.text()))?;
        }
        context.output.show(&Value::Null, || format!("\n{}", clients.text()))?;
        check_ready(&health)
    }
}

fn check_ready(health: &HealthView) -> Result<()> {
    if health.ready {
        return Ok(());
    }
    let failed = health.subsystems.iter().filter(|part| part.critical && !part.ok);
    let failed: Vec<_> = failed.map(|part| format!("{}: {}", part.name, part.detail)).collect();
    Err(Error::new(ErrorCode::Unavailable, format!("the node is not ready ({})", failed.join("; ")))
        .remedy("run `aegis doctor` to see what to fix; the daemon keeps running"))
}

/// Runs one small container here. A failure is reported with a remedy and does not end the command.
async fn trial(client: &Client) -> Trial {
    match try_container(client).await {
        Ok(trial) => trial,
        Err(error) => Trial::Failed { failure: Failure::from(&error) },
    }
}

async fn try_container(client: &Client) -> Result<Trial> {
    let view: ExecutionView = client.post("/v1/trial", &json!({})).await?;
    match (view.state, view.failure) {
        (State::Succeeded, _) => Ok(Trial::Ran {
            execution_id: view.execution_id.to_string(),
            node_id: view.node_id.map(|id| id.to_string()).unwrap_or_default(),
            milliseconds: view.ended_at_ms.unwrap_or(view.created_at_ms) - view.created_at_ms,
        }),
        (_, Some(failure)) => Ok(Trial::Failed { failure }),
        (state, None) => Err(Error::internal(format!("the container ended as {}", state.name()))),
    }
}

impl Trial {
    fn text(&self) -> String {
        match self {
            Trial::Ran { node_id, milliseconds, .. } => {
                format!("A container ran on {node_id} in {milliseconds} ms.")
            }
            Trial::Failed { failure } => {
                let remedy = failure.remedy.as_deref().unwrap_or(
                    "start Docker and let this user use it; nodes you deploy run containers all the same",
                );
                format!("No container could run here: {}\n  {remedy}", failure.message)
            }
        }
    }
}
