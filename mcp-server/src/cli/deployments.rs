//! `aegis deployments`: what was deployed where.

use clap::Args;
use cluster_core::{Error, Result, deploy::DeploymentView};
use serde::Deserialize;
use serde_json::Value;

use super::{Context, output::table, segment};

#[derive(Debug, Args)]
pub struct Deployments {
    /// Show this one with its steps
    id: Option<String>,
}

#[derive(Deserialize)]
struct List {
    deployments: Vec<DeploymentView>,
}

impl Deployments {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        if let Some(id) = self.id {
            let view: DeploymentView = client.get(&format!("/deployments/{}", segment(&id))).await?;
            return context.output.show(&view, || detail(&view));
        }
        let data: Value = client.get("/deployments").await?;
        let list =
            List::deserialize(&data).map_err(|e| Error::internal("the list is not understood").source(e))?;
        context.output.show(&data, || {
            let rows = list
                .deployments
                .into_iter()
                .map(|view| {
                    vec![
                        view.deployment_id.to_string(),
                        view.host,
                        view.node_id.to_string(),
                        view.state.to_string(),
                        cluster_core::clock::rfc3339(view.created_at_ms),
                    ]
                })
                .collect();
            table(&["deployment", "host", "node", "state", "created at"], rows)
        })
    }
}

fn detail(view: &DeploymentView) -> String {
    let mut text =
        format!("{}\nhost {}, node {}: {}\n", view.deployment_id, view.host, view.node_id, view.state);
    let rows = view
        .steps
        .iter()
        .map(|step| {
            vec![
                step.name.name().to_owned(),
                step.state.name().to_owned(),
                step.duration_ms.map(|ms| format!("{ms} ms")).unwrap_or_default(),
                crate::tools::clean(step.evidence.as_deref().or(step.message.as_deref()).unwrap_or_default()),
            ]
        })
        .collect();
    text.push_str(&table(&["step", "state", "took", "evidence"], rows));
    if let Some(failure) = &view.failure {
        text.push_str(&format!("\n{}: {}", failure.code, failure.message));
    }
    for finding in &view.findings {
        text.push_str(&format!("\n{}", crate::tools::clean(&finding.to_string())));
    }
    for line in view.log_tail.iter().flat_map(|log| log.lines()) {
        text.push_str(&format!("\n  {}", crate::tools::clean(line)));
    }
    text.push_str(&format!("\n{}", view.next_step));
    text
}
