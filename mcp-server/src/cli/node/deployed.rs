//! Verbs on nodes that were deployed: their releases, their logs, and their end.

use std::time::Duration;

use clap::Args;
use cluster_core::{
    core::ReleaseView,
    deploy::DeploymentView,
    types::error::{Error, Result},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{duration, segment};
use crate::cli::{Context, following, output::table};

#[derive(Debug, Args)]
pub struct Rollback {
    id: String,
    /// The deployment whose release is to run again [default: the newest good one before the current]
    #[arg(long, value_name = "DEPLOYMENT")]
    to: Option<String>,
    /// Wait this long for another deployment of the host to end, like 60s or 5m
    #[arg(long, value_parser = duration, value_name = "TIME")]
    lock_wait: Option<Duration>,
    /// Print the deployment's id and exit; the deployment continues
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub struct Logs {
    id: String,
    /// Compose services [default: all]
    services: Vec<String>,
    /// Lines of each service, 1 to 1000
    #[arg(long, short = 'n', default_value_t = 200)]
    lines: u32,
    /// Only what is younger, like 10m or 1h
    #[arg(long, value_parser = duration, value_name = "TIME")]
    since: Option<Duration>,
}

impl Rollback {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let body = json!({ "to": self.to, "lock_wait_seconds": self.lock_wait.map(|wait| wait.as_secs()) });
        let path = format!("/deploy/edge-node/{}/rollback", segment(&self.id));
        let view: DeploymentView = client.post(&path, &body).await?;
        following::to_its_end(context, &client, view, self.no_wait).await
    }
}

impl Logs {
    pub async fn run(self, context: &Context) -> Result<()> {
        let mut path = format!("/v1/cluster/nodes/{}/logs?lines={}", segment(&self.id), self.lines);
        if !self.services.is_empty() {
            path.push_str(&format!("&services={}", segment(&self.services.join(","))));
        }
        if let Some(since) = self.since {
            path.push_str(&format!("&since_seconds={}", since.as_secs()));
        }
        let data: Value = context.client()?.get(&path).await?;
        let text = data["untrusted_logs"].as_str().unwrap_or_default().to_owned();
        context.output.show(&data, || text)
    }
}

#[derive(Deserialize)]
struct Releases {
    releases: Vec<ReleaseView>,
}

pub async fn releases(context: &Context, id: &str) -> Result<()> {
    let data: Value = context.client()?.get(&format!("/deploy/edge-node/{}/releases", segment(id))).await?;
    let list =
        Releases::deserialize(&data).map_err(|e| Error::internal("the list is not understood").source(e))?;
    context.output.show(&data, || {
        let rows = list
            .releases
            .into_iter()
            .map(|release| {
                vec![
                    release.deployment_id.to_string(),
                    if release.current { "current" } else { "" }.to_owned(),
                    release.good_at.unwrap_or_else(|| "never good".to_owned()),
                    release.services.join(","),
                ]
            })
            .collect();
        table(&["release", "", "good at", "services"], rows)
    })
}
