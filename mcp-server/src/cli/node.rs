//! `aegis node`: who is in the cluster, drains, and tokens to join with.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use cluster_core::{
    Error, ErrorCode, Result,
    cluster::peer::{DrainState, DrainView, PeerView},
    core::EnrolmentGrant,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, output::table, segment};

const WAIT_SECONDS: u64 = 30;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnDeadline {
    Leave,
    Cancel,
}

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the nodes
    Peers,
    /// Take a node out of service
    Drain {
        id: String,
        /// How long running work may go on, like 300s, 5m or 1h
        #[arg(long, default_value = "300s", value_parser = duration)]
        deadline: Duration,
        /// What happens to work that still runs then
        #[arg(long, value_enum, default_value = "cancel")]
        on_deadline: OnDeadline,
        /// Wait until nothing runs there any more
        #[arg(long)]
        wait: bool,
    },
    /// Take a drained node back into service
    Resume { id: String },
    /// Tokens with which a worker joins
    #[command(subcommand)]
    Token(Token),
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token; it is shown once
    Create {
        /// Only a node with this id can use it
        #[arg(long)]
        node_id: Option<String>,
        /// How long it is valid, like 15m; at most 24h
        #[arg(long, default_value = "15m", value_parser = duration)]
        ttl: Duration,
    },
}

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<PeerView>,
}

impl Node {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        match self {
            Node::Peers => {
                let data: Value = client.get("/v1/cluster/nodes").await?;
                let nodes = Nodes::deserialize(&data)
                    .map_err(|e| Error::internal("the list is not understood").source(e))?
                    .nodes;
                context.output.show(&data, || peers_table(&nodes))
            }
            Node::Drain { id, deadline, on_deadline, wait } => {
                drain(context, &id, deadline, on_deadline, wait).await
            }
            Node::Resume { id } => {
                let path = format!("/v1/cluster/nodes/{}/resume", segment(&id));
                let peer: PeerView = client.post(&path, &json!({})).await?;
                context.output.show(&peer, || peers_table(std::slice::from_ref(&peer)))
            }
            Node::Token(Token::Create { node_id, ttl }) => {
                let body = json!({ "node_id": node_id, "ttl_seconds": ttl.as_secs() });
                let grant: EnrolmentGrant = client.post("/v1/cluster/enrolment-tokens", &body).await?;
                context.output.show(&grant, || grant.token.clone())?;
                if context.output.is_human() {
                    context.output.say(&format!("Valid once, until {}.", grant.expires_at));
                }
                Ok(())
            }
        }
    }
}

async fn drain(
    context: &Context,
    id: &str,
    deadline: Duration,
    on_deadline: OnDeadline,
    wait: bool,
) -> Result<()> {
    let client = context.client()?;
    let path = format!("/v1/cluster/nodes/{}/drain", segment(id));
    let on_deadline = match on_deadline {
        OnDeadline::Leave => "leave",
        OnDeadline::Cancel => "cancel",
    };
    let body = json!({ "deadline_seconds": deadline.as_secs(), "on_deadline": on_deadline });
    let mut view: DrainView = client.post(&path, &body).await?;
    let mut said = usize::MAX;
    while wait && view.state == DrainState::Draining {
        if view.blockers.len() != said {
            said = view.blockers.len();
            context.output.say(&format!("{said} still run on {id}"));
        }
        view = client.get(&format!("{path}?wait_seconds={WAIT_SECONDS}")).await?;
    }
    context.output.show(&view, || match view.state {
        DrainState::Drained => format!("{id} is drained."),
        DrainState::Schedulable => format!("{id} takes work."),
        DrainState::Draining => {
            let ids: Vec<_> = view.blockers.iter().map(ToString::to_string).collect();
            format!("{id} drains; {} still run: {}", ids.len(), ids.join(", "))
        }
    })?;
    if wait && view.state == DrainState::Schedulable {
        return Err(Error::new(ErrorCode::Cancelled, format!("{id} was resumed meanwhile")));
    }
    Ok(())
}

/// Peers as every verb shows them.
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
                peer.running.to_string(),
                if peer.link_up { name(&peer.link) } else { format!("{} (down)", name(&peer.link)) },
                peer.last_heartbeat_age_ms.map(|ms| format!("{} s", ms / 1000)).unwrap_or_default(),
            ]
        })
        .collect();
    table(&["node", "status", "role", "tags", "free cpu", "free mb", "running", "link", "heartbeat"], rows)
}

/// The spelling of a plain enum in the API.
pub fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// `300s`, `5m`, `1h`; a bare number is seconds.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("\"{text}\" is not like 300s, 5m or 1h"))?;
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("\"{text}\" is not like 300s, 5m or 1h")),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("\"{text}\" is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "m", "5d", "-1s", "1e3"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
