//! `aegis node`: lists, drains and removes nodes, and lets a machine join and leave.

mod deployed;
mod drain;
mod join;
mod token;

use std::time::Duration;

use clap::Subcommand;
use cluster_core::types::{
    error::{Error, Result},
    node::PeerView,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, output::table, segment};

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the nodes
    Peers,
    /// Take a node out of service
    Drain(drain::Drain),
    /// Return a drained node to service, or cancel its removal
    Resume { id: String },
    /// Drain a node and remove it, a deployed node with its stack; its key and tokens become invalid
    Remove(drain::Remove),
    /// Roll a deployed node back to an earlier release
    Rollback(deployed::Rollback),
    /// List the releases that a deployed node's host keeps
    Releases { id: String },
    /// Print the last log lines of a deployed node's services
    Logs(deployed::Logs),
    /// Stop a node's process once no work runs there
    Shutdown { id: String },
    /// Follow the events of nodes
    Events,
    /// Write a configuration file and a key for this machine
    Init(join::Init),
    /// Make this machine a worker of a controller
    Join(join::Join),
    /// Remove this machine's worker from its cluster permanently
    Leave,
    /// Rotate this worker's key
    RotateKey,
    /// Manage tokens with which a worker joins
    #[command(subcommand)]
    Token(token::Token),
}

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<PeerView>,
}

impl Node {
    /// Returns the exit status.
    pub async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Node::Remove(verb) => return verb.run(context).await,
            Node::Rollback(verb) => return verb.run(context).await,
            other => other.run_simple(context).await?,
        }
        Ok(0)
    }

    async fn run_simple(self, context: &Context) -> Result<()> {
        match self {
            Node::Remove(_) | Node::Rollback(_) => Ok(()),
            Node::Releases { id } => deployed::releases(context, &id).await,
            Node::Logs(verb) => verb.run(context).await,
            Node::Peers => {
                let data: Value = context.client()?.get("/v1/cluster/nodes").await?;
                let nodes = Nodes::deserialize(&data)
                    .map_err(|e| Error::internal("the list is not understood").source(e))?
                    .nodes;
                context.output.show(&data, || peers_table(&nodes))
            }
            Node::Drain(verb) => verb.run(context).await,
            Node::Resume { id } => {
                let path = format!("/v1/cluster/nodes/{}/resume", segment(&id));
                let peer: PeerView = context.client()?.post(&path, &json!({})).await?;
                context.output.show(&peer, || peers_table(std::slice::from_ref(&peer)))
            }
            Node::Shutdown { id } => {
                let path = format!("/v1/cluster/nodes/{}/shutdown", segment(&id));
                let data: Value = context.client()?.post(&path, &json!({})).await?;
                context.output.show(&data, || {
                    format!("{id} ends its process once nothing runs there; started again, it comes back by its key.")
                })
            }
            Node::Events => events(context).await,
            Node::Init(verb) => verb.run(context),
            Node::Join(verb) => verb.run(context).await,
            Node::Leave => join::leave(context).await,
            Node::RotateKey => {
                let data: Value = context.client()?.post("/v1/node/rotate-key", &json!({})).await?;
                context.output.show(&data, || "This node signs with a new key.".to_owned())
            }
            Node::Token(verb) => verb.run(context).await,
        }
    }
}

/// Follows events until interrupted or until the daemon ends.
async fn events(context: &Context) -> Result<()> {
    let show = |name: &str, data: &str| {
        let event: Value = serde_json::from_str(data)
            .map_err(|e| Error::internal("an event is not understood").source(e))?;
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        context.output.show(&event, || match name {
            "gap" => "(earlier events are gone)".to_owned(),
            _ => format!("{}  {}  {}", text("time"), text("kind"), text("node_id")),
        })?;
        Ok(true)
    };
    context.client()?.follow("/v1/cluster/events", "aegis node events", show).await
}

/// Formats peers, for all verbs.
pub fn peers_table(peers: &[PeerView]) -> String {
    let rows = peers
        .iter()
        .map(|peer| {
            let tags: Vec<_> = peer.tags.iter().map(ToString::to_string).collect();
            vec![
                peer.node_id.to_string(),
                name(&peer.status),
                name(&peer.role),
                tags.join(","),
                format!(
                    "{:.1}/{:.1}",
                    f64::from(peer.free.cpu_millicores) / 1000.0,
                    f64::from(peer.capacity.cpu_millicores) / 1000.0
                ),
                format!("{}/{}", peer.free.memory_mb, peer.capacity.memory_mb),
                gpus(peer),
                peer.running.to_string(),
                if peer.link_up { name(&peer.link) } else { format!("{} (down)", name(&peer.link)) },
                peer.last_heartbeat_age_ms.map(|ms| format!("{} s", ms / 1000)).unwrap_or_default(),
                peer.version.clone(),
                peer.problem.as_ref().map(|problem| problem.message.clone()).unwrap_or_default(),
            ]
        })
        .collect();
    table(
        &[
            "node",
            "status",
            "role",
            "tags",
            "free cpu",
            "free mb",
            "free gpus",
            "running",
            "link",
            "heartbeat",
            "version",
            "problem",
        ],
        rows,
    )
}

/// Returns the free and all GPUs of a node, like `1/2: 1 NVIDIA A10 22528 MB, 1 Tesla T4 15360 MB`.
fn gpus(peer: &PeerView) -> String {
    let mut kinds: Vec<(&str, u32, usize)> = Vec::new();
    for gpu in &peer.gpu_devices {
        match kinds.iter_mut().find(|(name, memory_mb, _)| (*name, *memory_mb) == (&gpu.name, gpu.memory_mb))
        {
            Some((.., count)) => *count += 1,
            None => kinds.push((&gpu.name, gpu.memory_mb, 1)),
        }
    }
    let kinds: Vec<_> =
        kinds.iter().map(|(name, memory_mb, count)| format!("{count} {name} {memory_mb} MB")).collect();
    let counts = format!("{}/{}", peer.free.gpus, peer.capacity.gpus);
    match kinds.is_empty() {
        true => counts,
        false => format!("{counts}: {}", kinds.join(", ")),
    }
}

/// Returns the API's spelling of a plain enum.
pub fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Parses `300s`, `5m`, `1h`, `30d`; a bare number is seconds.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("\"{text}\" is not like 300s, 5m, 1h or 30d"))?;
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(format!("\"{text}\" is not like 300s, 5m, 1h or 30d")),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("\"{text}\" is too long"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gpus_of_a_node_are_shown_by_kind() {
        let amounts = |gpus| json!({ "cpu_millicores": 1, "memory_mb": 1, "gpus": gpus, "vram_gb": 0 });
        let gpu = |uuid: &str, name: &str, in_use: bool| json!({ "uuid": uuid, "name": name, "memory_mb": 23_028, "in_use": in_use });
        let mut peer = json!({
            "node_id": "edge1", "role": "worker", "status": "active", "desired": "schedulable", "tags": [],
            "capacity": amounts(3), "free": amounts(2), "running": 1, "link": "direct", "link_up": true,
            "version": "0.1.0", "sealed": true,
        });
        let shown = |peer: &Value| gpus(&serde_json::from_value(peer.clone()).unwrap());
        assert_eq!(shown(&peer), "2/3");
        peer["gpu_devices"] = json!([
            gpu("GPU-1", "NVIDIA A10", true),
            gpu("GPU-2", "Tesla T4", false),
            gpu("GPU-3", "NVIDIA A10", false),
        ]);
        assert_eq!(shown(&peer), "2/3: 2 NVIDIA A10 23028 MB, 1 Tesla T4 23028 MB");
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(2_592_000)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "m", "5w", "-1s", "1e3"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
