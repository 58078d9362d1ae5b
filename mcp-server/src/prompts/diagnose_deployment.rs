//! `diagnose_deployment`: state of a deployment or the reason of its failure, and the next steps.

use cluster_core::{
    core::Core,
    deploy::{DeploymentView, Operation, StepName, StepState},
    types::{clock::now_ms, error::Result, ids::DeploymentId},
};

use super::{
    About, Argument,
    facts::{self, UNTRUSTED},
    given::Given,
};
use crate::{
    candidates::Candidates,
    text::{
        self,
        time::{AgeText, TimestampText},
        untrusted::UntrustedBlock,
    },
};

const LOG_BYTES_MAX: usize = 6 * 1024;
const FINDINGS_SHOWN_MAX: usize = 20;

pub const ABOUT: About = About {
    name: "diagnose_deployment",
    title: "Find out why a deployment failed",
    description: "Every step of a deployment, rollback or removal, the one that failed with its evidence, the cause, \
                  the proposed remedy and the end of the failing service's log, with the calls to make next. \
                  Changes nothing.",
    arguments: &[Argument {
        name: "deployment_id",
        title: "Deployment",
        description: "the id that deploy_edge_node, rollback_edge_node or remove_edge_node returned",
        required: true,
        candidates: Candidates::Deployments,
    }],
    needs: &["get_deployment_status"],
};

pub async fn fill(core: &Core, given: &Given) -> Result<String> {
    let id: DeploymentId = given.one("deployment_id")?;
    Ok(text_of(&core.deployment(&id).await?, now_ms()))
}

pub(super) fn text_of(view: &DeploymentView, now_ms: i64) -> String {
    let fence = UntrustedBlock::mint();
    let mut text = format!(
        "Find out why the deployment {} did what it did, and what to do now.\n\nFacts at {}:\n- Operation {} of \
         node {} on host {}\n- State: {}, begun {}, changed {}\n",
        view.deployment_id,
        TimestampText::now(),
        view.operation,
        view.node_id,
        facts::short(&view.host),
        view.state,
        AgeText::between(view.created_at_ms, now_ms),
        AgeText::between(view.updated_at_ms, now_ms),
    );
    if view.cancel_requested {
        text.push_str("- It was cancelled\n");
    }
    let steps = view.steps.iter().map(|step| format!("{} {}", step.name, step.state.name()));
    text.push_str(&format!("- Steps: {}\n", steps.collect::<Vec<_>>().join(", ")));
    if let Some(step) = facts::decisive_step(view) {
        text.push_str(&facts::step(step, &fence));
    }
    if let Some(failure) = &view.failure {
        text.push_str(&facts::failure("It failed", failure, &fence));
    }
    for finding in view.findings.iter().take(FINDINGS_SHOWN_MAX) {
        text.push_str(&fence.around("finding", &finding.to_string()));
    }
    if let Some(log) = view.log_tail.as_deref().filter(|log| !log.is_empty()) {
        text.push_str("- The end of the failing service's log:\n");
        text.push_str(&fence.around("log", &text::tail(log, LOG_BYTES_MAX).0));
    }
    text.push_str(&format!("\n{UNTRUSTED}\n"));
    text + &facts::steps(&calls(view))
}

/// Returns the calls for a deployment in this state, in order.
fn calls(view: &DeploymentView) -> Vec<String> {
    let (id, node) = (&view.deployment_id, &view.node_id);
    if !view.state.is_final() {
        return vec![
            format!(
                "It goes on; follow it: get_deployment_status {{\"deployment_id\": \"{id}\", \"wait_seconds\": 45}}."
            ),
            "Tell the person which step it is at. Cancel it (cancel_deployment) only when they ask for it."
                .to_owned(),
        ];
    }
    if view.state.is_good() {
        return vec![
            "It ended well. See how the node is now: list_peers {\"response_format\": \"detailed\"}."
                .to_owned(),
            "Tell the person that the deployment is not the cause, and what you see instead.".to_owned(),
        ];
    }
    let mut calls = vec![format!(
        "Read all of the evidence: get_deployment_status {{\"deployment_id\": \"{id}\", \"response_format\": \"detailed\"}}."
    )];
    let started =
        view.steps.iter().any(|step| step.name == StepName::Start && step.state != StepState::Pending);
    if started {
        calls.push(format!("If the node is still in list_peers, read what its services write: get_node_logs {{\"node_id\": \"{node}\"}}."));
    }
    calls.push(
        "Tell the person the cause and the remedy in words, with the evidence. What must be changed on the host is \
         theirs to change."
            .to_owned(),
    );
    let again = match view.operation {
        Operation::Deploy => "deploy_edge_node with the same arguments; first with dry_run true".to_owned(),
        Operation::Rollback => format!("rollback_edge_node {{\"node_id\": \"{node}\"}}"),
        Operation::Remove => format!("remove_edge_node {{\"node_id\": \"{node}\"}}"),
    };
    calls.push(format!("When the cause is gone and they agree, do it again: {again}."));
    calls
}
