//! `diagnose_node`: facts about a node, and the next steps.

use cluster_core::{
    controller::events::{EventId, NodeEvent},
    core::Core,
    deploy::DeploymentView,
    types::{
        clock::now_ms,
        error::Result,
        execution::{lifecycle::State, view::ExecutionView},
        ids::NodeId,
        node::{DrainState, DrainView, PeerStatus, PeerView},
    },
};

use super::{
    About, NODE,
    facts::{self, UNTRUSTED},
    given::Given,
};
use crate::text::{
    time::{AgeText, TimestampText},
    untrusted::UntrustedBlock,
};

const EVENTS_SHOWN_MAX: usize = 10;
const FAILED_SHOWN_MAX: usize = 5;

pub const ABOUT: About = About {
    name: "diagnose_node",
    title: "Find out what is wrong with a node",
    description: "Status, last heartbeat, link, engine, history, last deployment and failed executions of one node \
                  as they are now, with the calls that lead to the cause. Changes nothing.",
    arguments: &[NODE],
    needs: &["list_peers"],
};

struct Facts {
    peer: PeerView,
    drain: DrainView,
    events: Vec<NodeEvent>,
    running: Vec<ExecutionView>,
    /// The newest executions that were placed on the node, in any state.
    executions: Vec<ExecutionView>,
    deployment: Option<DeploymentView>,
    now_ms: i64,
}

pub async fn fill(core: &Core, given: &Given) -> Result<String> {
    let node_id: NodeId = given.one(NODE.name)?;
    let (peer, _) = facts::peer(core, &node_id).await?;
    let mut events = core.node_events(EventId { epoch: 0, sequence: 0 }, usize::MAX)?.events;
    events.retain(|event| event.node_id == node_id);
    let deployments = facts::deployments(core).await?;
    let drain = core.drain_status(&node_id).await?;
    Ok(text(&Facts {
        peer,
        running: facts::running(core, &drain).await?,
        drain,
        events,
        executions: facts::executions(core, &node_id).await?,
        deployment: deployments.into_iter().find(|view| view.node_id == node_id),
        now_ms: now_ms(),
    }))
}

fn text(facts: &Facts) -> String {
    let fence = UntrustedBlock::mint();
    let id = &facts.peer.node_id;
    let mut text = format!(
        "Find out what is wrong with the node {id}, if anything is.\n\nFacts at {}:\n",
        TimestampText::now()
    );
    text.push_str(&facts::node(&facts.peer));
    if let Some(problem) = &facts.peer.problem {
        text.push_str(&facts::failure("Problem", problem, &fence));
    }
    if let Some(error) = &facts.peer.config_error {
        text.push_str("- It refused the pushed configuration:\n");
        text.push_str(&fence.around("reason", error));
    }
    if facts.drain.state != DrainState::Schedulable {
        let blockers = facts.drain.blockers.len();
        text.push_str(&format!(
            "- It is out of service (a drain), and {blockers} executions still run there\n"
        ));
    }
    let newest = facts.events.iter().rev().take(EVENTS_SHOWN_MAX);
    let history = newest.map(|event| format!("- {} {}\n", event.time, event.kind.name()));
    section(&mut text, "What happened to it since the controller started, newest first", history.collect());
    let running = facts::running_lines(&facts.running, &facts.drain, facts.now_ms);
    section(&mut text, "Executions there now", running);
    let failed = failed(facts).map(|view| facts::execution(view, facts.now_ms));
    section(&mut text, "Its last executions that failed", failed.collect());
    if let Some(view) = &facts.deployment {
        text.push_str(&format!(
            "\nIts last deployment, {} ({}): {}, changed {}\n",
            view.deployment_id,
            view.operation,
            view.state,
            AgeText::between(view.updated_at_ms, facts.now_ms)
        ));
        if !view.state.is_good() {
            if let Some(step) = facts::decisive_step(view) {
                text.push_str(&facts::step(step, &fence));
            }
            if let Some(failure) = &view.failure {
                text.push_str(&facts::failure("It failed", failure, &fence));
            }
        }
    }
    text.push_str(&format!("\n{UNTRUSTED}\n"));
    text + &facts::steps(&calls(facts))
}

fn section(text: &mut String, title: &str, lines: String) {
    if !lines.is_empty() {
        text.push_str(&format!("\n{title}:\n{lines}"));
    }
}

fn failed(facts: &Facts) -> impl Iterator<Item = &ExecutionView> {
    let failed = facts.executions.iter().filter(|view| matches!(view.state, State::Failed | State::Lost));
    failed.take(FAILED_SHOWN_MAX)
}

/// Returns the calls for a node in this state, in order.
fn calls(facts: &Facts) -> Vec<String> {
    let id = &facts.peer.node_id;
    let logs = facts.peer.host.is_some().then(|| {
        format!("Read what its services wrote: get_node_logs {{\"node_id\": \"{id}\", \"lines\": 200}}.")
    });
    let mut calls = Vec::new();
    if let Some(view) = facts.deployment.as_ref().filter(|view| !view.state.is_final()) {
        calls.push(format!(
            "A deployment of it is under way; follow that first: get_deployment_status {{\"deployment_id\": \
             \"{}\", \"wait_seconds\": 45}}.",
            view.deployment_id
        ));
    }
    match facts.peer.status {
        PeerStatus::Unhealthy | PeerStatus::Offline | PeerStatus::Expected => {
            if !facts.peer.link_up {
                calls.push(
                    "The link is down: ask the person whether the machine is on and can be reached over SSH. It \
                     is connected again by itself when it can."
                        .to_owned(),
                );
            }
            calls.extend(logs);
        }
        PeerStatus::Draining => calls.push(format!(
            "It was taken out of service on purpose. Ask the person whether it may go back: resume_node \
             {{\"node_id\": \"{id}\"}}."
        )),
        PeerStatus::Active => {
            if facts.peer.engine.is_empty() {
                calls.push(
                    "Its container engine does not answer, so it gets no work: Docker there needs a look."
                        .to_owned(),
                );
            }
            if facts.peer.engine.is_empty()
                || facts.peer.problem.is_some()
                || facts.peer.config_error.is_some()
            {
                calls.extend(logs);
            }
        }
        PeerStatus::Removed => {}
    }
    if let Some(view) = failed(facts).next() {
        calls.push(format!(
            "See why an execution failed there: get_execution {{\"execution_id\": \"{}\"}}.",
            view.execution_id
        ));
    }
    calls.push("Look at the cluster again: list_peers {\"response_format\": \"detailed\"}.".to_owned());
    calls.push(
        "Tell the person the cause, the evidence for it, and one thing to do. Deploy, roll back or remove the \
         node only when they agree."
            .to_owned(),
    );
    calls
}
