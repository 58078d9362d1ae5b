//! `aegis deployments`: what was done where, followed to its end or cancelled.

use clap::Args;
use cluster_core::{
    deploy::DeploymentView,
    types::error::{Error, Result},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, following, output::table, segment};

#[derive(Debug, Args)]
pub struct Deployments {
    /// Show this one with its steps
    id: Option<String>,
    /// Follow it to its end
    #[arg(long, short, requires = "id")]
    follow: bool,
    /// Cancel it: the host is put back as it was
    #[arg(long, requires = "id")]
    cancel: bool,
    /// Only those of this state
    #[arg(long, conflicts_with = "id")]
    state: Option<String>,
    /// Only those of this host
    #[arg(long, conflicts_with = "id")]
    host: Option<String>,
    /// How many, newest first
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
}

#[derive(Deserialize)]
struct List {
    deployments: Vec<DeploymentView>,
}

impl Deployments {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        if let Some(id) = &self.id {
            let path = format!("/deployments/{}", segment(id));
            if self.cancel {
                let view: DeploymentView = client.post(&format!("{path}/cancel"), &json!({})).await?;
                let view = following::follow(context, &client, view).await?;
                context.output.show(&view, || detail(&view))?;
                return Ok(0);
            }
            let view: DeploymentView = client.get(&path).await?;
            if self.follow {
                return following::to_its_end(context, &client, view, false).await;
            }
            context.output.show(&view, || detail(&view))?;
            return Ok(0);
        }
        let mut path = format!("/deployments?limit={}", self.limit);
        for (name, value) in [("state", &self.state), ("host", &self.host)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", segment(value)));
            }
        }
        let data: Value = client.get(&path).await?;
        let list =
            List::deserialize(&data).map_err(|e| Error::internal("the list is not understood").source(e))?;
        context.output.show(&data, || {
            let rows = list
                .deployments
                .into_iter()
                .map(|view| {
                    vec![
                        view.deployment_id.to_string(),
                        view.operation.to_string(),
                        view.host,
                        view.node_id.to_string(),
                        view.state.to_string(),
                        cluster_core::types::clock::rfc3339(view.created_at_ms),
                    ]
                })
                .collect();
            table(&["deployment", "operation", "host", "node", "state", "created at"], rows)
        })?;
        Ok(0)
    }
}

fn detail(view: &DeploymentView) -> String {
    let mut text = format!(
        "{}\n{} of node {} on host {}: {}\n",
        view.deployment_id, view.operation, view.node_id, view.host, view.state
    );
    let rows = view
        .steps
        .iter()
        .map(|step| {
            vec![
                step.name.name().to_owned(),
                step.state.name().to_owned(),
                step.duration_ms.map(|ms| format!("{ms} ms")).unwrap_or_default(),
                crate::text::clean(step.evidence.as_deref().or(step.message.as_deref()).unwrap_or_default())
                    .into_owned(),
            ]
        })
        .collect();
    text.push_str(&table(&["step", "state", "took", "evidence"], rows));
    if let Some(failure) = &view.failure {
        text.push_str(&format!("\n{}: {}", failure.code, failure.message));
    }
    for finding in &view.findings {
        text.push_str(&format!("\n{}", crate::text::clean(&finding.to_string())));
    }
    for line in view.log_tail.iter().flat_map(|log| log.lines()) {
        text.push_str(&format!("\n  {}", crate::text::clean(line)));
    }
    text.push_str(&format!("\n{}", view.next_step));
    text
}
