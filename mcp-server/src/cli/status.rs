//! `aegis status`: the daemon, its parts, and the nodes.

use cluster_core::{ErrorCode, Result, cluster::peer::PeerView, core::HealthView};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, client::Client, node, output::table};

#[derive(Deserialize)]
struct Status {
    nodes: Vec<PeerView>,
}

pub async fn run(context: &Context) -> Result<()> {
    show(context, &context.client()?).await
}

/// Also what `aegis up` shows.
pub async fn show(context: &Context, client: &Client) -> Result<()> {
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
    context.output.show(&data, || text(&health, &nodes))
}

fn text(health: &HealthView, nodes: &[PeerView]) -> String {
    let cluster = health.cluster_id.as_ref().map(|id| format!(" of cluster {id}")).unwrap_or_default();
    let mut text = format!(
        "aegis {} is {}: {} {}{cluster}, up {} s\n\n",
        health.version,
        if health.ready { "ready" } else { "not ready" },
        node::name(&health.role),
        health.node_id,
        health.uptime_seconds,
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
