//! `deploy_edge_nodes`: turns machines into nodes, with the obstacles of each.

use std::collections::BTreeSet;

use cluster_core::{
    core::{Core, PeerFilter},
    deploy::DeploymentView,
    ssh::HostAddress,
    types::{clock::now_ms, error::Result, ids::Tag, node::PeerView},
};
use serde_json::json;

use super::{About, Argument, facts, given::Given};
use crate::{
    candidates::Candidates,
    text::time::{AgeText, TimestampText},
};

/// Limits of the tool.
const HOSTS_MAX: usize = 100;
const TAGS_MAX: usize = 32;

pub const ABOUT: About = About {
    name: "deploy_edge_nodes",
    title: "Turn machines into nodes",
    description: "Which of these machines are approved, which are nodes already or being deployed, and the calls that \
                  plan, deploy and check them all.",
    arguments: &[
        Argument {
            name: "hosts",
            title: "Machines",
            description: "DNS names, IP addresses or names of the SSH configuration, separated by commas; 100 at most",
            required: true,
            candidates: Candidates::Hosts,
        },
        Argument {
            name: "tags",
            title: "Tags",
            description: "what work finds the nodes by, such as gpu, separated by commas",
            required: false,
            candidates: Candidates::Tags,
        },
    ],
    needs: &["deploy_edge_nodes", "get_rollout", "list_peers"],
};

struct Facts {
    hosts: Vec<HostAddress>,
    tags: Vec<Tag>,
    approved: BTreeSet<String>,
    peers: Vec<PeerView>,
    deployments: Vec<DeploymentView>,
    now_ms: i64,
}

pub async fn fill(core: &Core, given: &Given) -> Result<String> {
    // Whether a loopback address may be deployed to is decided by the deployment.
    const LOOPBACK: bool = true;
    let hosts = given.list("hosts", HOSTS_MAX, |host| HostAddress::parse(host, LOOPBACK))?;
    let tags = given.list("tags", TAGS_MAX, |tag| Tag::parse(tag))?;
    let approved = core.approved_hosts().await?;
    let approved = approved.into_iter().filter(|host| host.is_target()).map(|host| host.host.to_string());
    Ok(text(&Facts {
        hosts,
        tags,
        approved: approved.collect(),
        peers: core.peers(PeerFilter::default()).await?,
        deployments: facts::deployments(core).await?,
        now_ms: now_ms(),
    }))
}

fn text(facts: &Facts) -> String {
    let mut text =
        format!("Turn these machines into nodes of the cluster.\n\nFacts at {}:\n", TimestampText::now());
    text.extend(facts.hosts.iter().map(|host| line(facts, host)));
    if !facts.tags.is_empty() {
        text.push_str(&format!("- Tags for all of them: {}\n", facts::joined(&facts.tags)));
    }
    text + &facts::steps(&calls(facts))
}

fn line(facts: &Facts, host: &HostAddress) -> String {
    let name = host.to_string();
    let mut known = Vec::new();
    known.push(match facts.approved.contains(&name) {
        true => "approved".to_owned(),
        false => "NOT approved under this name".to_owned(),
    });
    if let Some(peer) = facts.peers.iter().find(|peer| peer.host.as_deref() == Some(&name)) {
        known.push(format!(
            "already the node {}, {}: deploying updates it",
            peer.node_id,
            peer.status.name()
        ));
    }
    if let Some(view) = facts.deployments.iter().find(|view| view.host == name) {
        known.push(format!(
            "last {} {}: {}, {}",
            view.operation,
            view.deployment_id,
            view.state,
            AgeText::between(view.updated_at_ms, facts.now_ms)
        ));
    }
    format!("- {name}: {}\n", known.join("; "))
}

/// Returns the calls for these machines, in order.
fn calls(facts: &Facts) -> Vec<String> {
    let mut calls = Vec::new();
    let names = facts.hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let unapproved = names.iter().filter(|name| !facts.approved.contains(*name)).collect::<Vec<_>>();
    if !unapproved.is_empty() {
        let commands = unapproved.iter().map(|name| format!("aegis host approve {name}")).collect::<Vec<_>>();
        calls.push(format!(
            "Ask the person to compare each key and approve it; you cannot do that for them: {}.",
            commands.join(" ; ")
        ));
    }
    for view in facts.deployments.iter().filter(|view| !view.state.is_final() && names.contains(&view.host)) {
        calls.push(format!(
            "A deployment of {} is under way; wait for it: get_deployment_status {{\"deployment_id\": \"{}\", \
             \"wait_seconds\": 45}}.",
            view.host, view.deployment_id
        ));
    }
    let mut arguments = json!({
        "hosts": names.iter().map(|name| json!({"host": name})).collect::<Vec<_>>(),
        "dry_run": true,
    });
    if !facts.tags.is_empty() {
        arguments["shared"] = json!({"tags": facts.tags});
    }
    calls.push(format!("See what would be done, and show it to the person: deploy_edge_nodes {arguments}."));
    calls.push(
        "When they agree, call it again with dry_run false; it returns a rollout_id and goes on by itself."
            .to_owned(),
    );
    calls.push(
        "Follow it to its end: get_rollout with that rollout_id and wait_seconds 45. For a host that failed, \
         get_deployment_status with its deployment_id has the cause and the remedy."
            .to_owned(),
    );
    calls.push(match facts.tags.is_empty() {
        true => "See the nodes: list_peers {}.".to_owned(),
        false => format!("See the nodes: list_peers {}.", json!({"tags": facts.tags})),
    });
    calls
}
