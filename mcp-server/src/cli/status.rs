//! `aegis status`: the daemon, its parts, and the nodes.

use clap::Args;
use cluster_core::{
    core::HealthView,
    types::{
        error::{Error, ErrorCode, Result},
        node::{PeerStatus, PeerView},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, client::Client, node, output::table};
use crate::daemon::files;

#[derive(Deserialize)]
struct Status {
    nodes: Vec<PeerView>,
}

#[derive(Debug, Args)]
pub struct StatusVerb {
    /// Fail, with a reason each, unless everything is well: this node's parts, its membership, and on a
    /// controller every node
    #[arg(long)]
    cluster: bool,
}

impl StatusVerb {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let (health, nodes) = show(context, &client).await?;
        if !self.cluster {
            return Ok(());
        }
        let ills = ills(&health, &nodes);
        if ills.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Unavailable, format!("not all is well: {}", ills.join("; "))))
    }
}

fn ills(health: &HealthView, nodes: &[PeerView]) -> Vec<String> {
    let parts = health.subsystems.iter().filter(|part| part.critical && !part.ok);
    let mut ills: Vec<_> = parts.map(|part| format!("{}: {}", part.name, part.detail)).collect();
    for peer in nodes {
        let ill = match peer.status {
            PeerStatus::Unhealthy | PeerStatus::Offline | PeerStatus::Expected => Some(peer.status.name()),
            PeerStatus::Active | PeerStatus::Draining if !peer.link_up => Some("its link is down"),
            PeerStatus::Active | PeerStatus::Draining | PeerStatus::Removed => None,
        };
        let problem = peer.problem.as_ref().map(|problem| problem.message.as_str());
        if let Some(why) = problem.or(ill) {
            ills.push(format!("node {}: {why}", peer.node_id));
        }
    }
    ills
}

/// Also what `aegis up` shows.
pub async fn show(context: &Context, client: &Client) -> Result<(HealthView, Vec<PeerView>)> {
    let health = client.health().await?;
    let data: Value = match client.get("/v1/cluster/status").await {
        Ok(data) => data,
        // A plain worker knows itself alone.
        Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::FailedPrecondition) => {
            json!({ "health": health, "nodes": [] })
        }
        Err(error) => return Err(error),
    };
    let nodes = Status::deserialize(&data).map(|status| status.nodes).unwrap_or_default();
    let address = files::http_url(&context.data_dir()?);
    context.output.show(&data, || text(&health, &nodes, address.as_deref()))?;
    Ok((health, nodes))
}

fn text(health: &HealthView, nodes: &[PeerView], address: Option<&str>) -> String {
    let cluster = health.cluster_id.as_ref().map(|id| format!(" of cluster {id}")).unwrap_or_default();
    let mut text = format!(
        "aegis {} is {}: {} {}{cluster}, up {} s\n{}\n",
        health.version,
        if health.ready { "ready" } else { "not ready" },
        node::name(&health.role),
        health.node_id,
        health.uptime_seconds,
        address.map(|address| format!("HTTP at {address}\n")).unwrap_or_default(),
    );
    let rows = health
        .subsystems
        .iter()
        .map(|part| {
            let state = match (part.ok, part.critical) {
                (true, _) => "ok",
                (false, true) => "FAILED",
                (false, false) => "missing",
            };
            vec![part.name.clone(), state.to_owned(), part.detail.clone()]
        })
        .collect();
    text.push_str(&table(&["part", "state", "detail"], rows));
    if !nodes.is_empty() {
        text.push_str("\n\n");
        text.push_str(&node::peers_table(nodes));
    }
    text
}
