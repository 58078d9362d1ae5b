//! `drain_for_maintenance`: takes a node out of service and back, without losing work.

use cluster_core::{
    core::Core,
    types::{
        clock::now_ms,
        error::Result,
        execution::view::ExecutionView,
        ids::{NodeId, Tag},
        node::{DrainState, DrainView, PeerStatus, PeerView},
    },
};

use super::{About, NODE, facts, given::Given};
use crate::text::time::TimestampText;

pub const ABOUT: About = About {
    name: "drain_for_maintenance",
    title: "Take a node out of service for maintenance",
    description: "What runs on a node now, who could take its work, and the calls that drain it, wait, and bring it \
                  back afterwards.",
    arguments: &[NODE],
    needs: &["drain_node", "resume_node", "list_peers"],
};

struct Facts {
    peer: PeerView,
    others: Vec<PeerView>,
    drain: DrainView,
    running: Vec<ExecutionView>,
    now_ms: i64,
}

pub async fn fill(core: &Core, given: &Given) -> Result<String> {
    let node_id: NodeId = given.one(NODE.name)?;
    let (peer, others) = facts::peer(core, &node_id).await?;
    let drain = core.drain_status(&node_id).await?;
    let running = facts::running(core, &drain).await?;
    Ok(text(&Facts { peer, others, drain, running, now_ms: now_ms() }))
}

fn text(facts: &Facts) -> String {
    let id = &facts.peer.node_id;
    let mut text = format!(
        "Take the node {id} out of service for maintenance, and back afterwards, without losing work.\n\n\
         Facts at {}:\n",
        TimestampText::now()
    );
    text.push_str(&facts::node(&facts.peer));
    let drain = match facts.drain.state {
        DrainState::Schedulable => "it takes new work",
        DrainState::Draining => "it drains already: it gets no new work, and what runs there ends",
        DrainState::Drained => "it is drained: it runs nothing and gets no new work",
        DrainState::Removed => "it is no member any more",
    };
    text.push_str(&format!("- Service: {drain}\n"));
    match facts.running.is_empty() {
        true => text.push_str("- Nothing runs there now\n"),
        false => text.push_str("\nThis runs there now:\n"),
    }
    text.push_str(&facts::running_lines(&facts.running, &facts.drain, facts.now_ms));
    let active = active(&facts.others);
    let (ids, missing) =
        (active.iter().map(|peer| &peer.node_id).collect::<Vec<_>>(), nobody_else_has(facts));
    text.push_str("\nMeanwhile:\n");
    match ids.is_empty() {
        true => text.push_str("- NO other node is active: new work waits until this one is back\n"),
        false => text.push_str(&format!("- New work goes to {}\n", facts::joined(&ids))),
    }
    if !ids.is_empty() && !missing.is_empty() {
        text.push_str(&format!(
            "- Work for these tags waits, since no other active node has them: {}\n",
            facts::joined(&missing)
        ));
    }
    text + &facts::steps(&calls(facts))
}

fn active(peers: &[PeerView]) -> Vec<&PeerView> {
    peers.iter().filter(|peer| peer.status == PeerStatus::Active).collect()
}

fn nobody_else_has(facts: &Facts) -> Vec<&Tag> {
    let active = active(&facts.others);
    facts.peer.tags.iter().filter(|tag| !active.iter().any(|peer| peer.tags.contains(tag))).collect()
}

/// Returns the calls for a node in this state, in order.
fn calls(facts: &Facts) -> Vec<String> {
    let id = &facts.peer.node_id;
    let mut calls = Vec::new();
    if facts.drain.state == DrainState::Schedulable {
        if !facts.running.is_empty() || active(&facts.others).is_empty() {
            calls.push(
                "Tell the person what runs there and what will wait, and ask how long running work may go on \
                 (deadline_seconds) and what becomes of it then (on_deadline: cancel or leave)."
                    .to_owned(),
            );
        }
        calls.push(format!(
            "Drain it: drain_node {{\"node_id\": \"{id}\", \"deadline_seconds\": 300, \"on_deadline\": \"leave\", \
             \"wait_seconds\": 45}}. leave loses no work; use cancel only if the person agreed to lose it."
        ));
    }
    if facts.drain.state != DrainState::Drained {
        calls.push(format!(
            "Until state is drained, call drain_node {{\"node_id\": \"{id}\", \"wait_seconds\": 45}}, without other \
             arguments: that only looks and needs no confirmation. blockers names what still runs."
        ));
    }
    calls.push(
        "Tell the person that the machine is free, and wait for their word that the maintenance is over."
            .to_owned(),
    );
    calls.push(format!("Take it back into service: resume_node {{\"node_id\": \"{id}\"}}."));
    calls.push("See that its status is active again: list_peers {}.".to_owned());
    calls
}
