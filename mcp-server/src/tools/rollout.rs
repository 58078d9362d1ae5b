//! Rollout as shown by a tool: in short form, with problematic hosts first.

use std::time::Duration;

use cluster_core::{
    core::Core,
    deploy::{MemberState, MemberView, RolloutState, RolloutView},
    types::{
        error::Result,
        ids::{DeploymentId, NodeId, RolloutId},
    },
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{paging::fit, progress::Followed};
use crate::tools::tool::Call;

/// One host in short.
#[derive(Serialize, JsonSchema)]
pub struct Line {
    host: String,
    node_id: NodeId,
    /// waiting, running, succeeded, failed, cancelled or skipped.
    state: MemberState,
    /// Pass to get_deployment_status.
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment_id: Option<DeploymentId>,
    /// Current activity, or the reason of a failure and its remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout_id: Option<RolloutId>,
    /// running, succeeded, failed or cancelled; absent for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<RolloutState>,
    summary: String,
    /// Pass as since_event to get_rollout.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<u64>,
    /// Failed ones first.
    hosts: Vec<Line>,
    /// Hosts that did not fit into this answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<usize>,
    next_step: String,
}

impl Outcome {
    pub fn of(
        summary: String,
        lines: Vec<Line>,
        known: Option<(RolloutId, RolloutState, u64)>,
        next_step: String,
    ) -> Self {
        let total = lines.len();
        let (hosts, _) = fit(lines, |line| &line.host);
        let left_out = Some(total - hosts.len()).filter(|count| *count > 0);
        let (rollout_id, state, event) = match known {
            Some((id, state, event)) => (Some(id), Some(state), Some(event)),
            None => (None, None, None),
        };
        Self { rollout_id, state, summary, event, hosts, left_out, next_step }
    }
}

impl Line {
    pub fn planned(host: String, node_id: NodeId, detail: String) -> Self {
        Self { host, node_id, state: MemberState::Waiting, deployment_id: None, detail: Some(detail) }
    }
}

impl From<MemberView> for Line {
    fn from(member: MemberView) -> Self {
        let detail = match (&member.failure, member.step) {
            (Some(failure), step) => {
                let at = step.map(|step| format!(" at {step}")).unwrap_or_default();
                let remedy = failure.remedy.iter().map(|remedy| format!("; {remedy}")).collect::<String>();
                Some(format!("{}{at}: {}{remedy}", failure.code, failure.message))
            }
            (None, Some(step)) => Some(match &member.message {
                Some(message) => format!("{step}: {message}"),
                None => step.to_string(),
            }),
            (None, None) => None,
        };
        Self {
            host: member.host,
            node_id: member.node_id,
            state: member.state,
            deployment_id: member.deployment_id,
            detail: detail.map(|text| crate::text::clean(&text).into_owned()),
        }
    }
}

/// Orders hosts by the attention that they need.
const fn rank(state: MemberState) -> u8 {
    match state {
        MemberState::Failed => 0,
        MemberState::Running => 1,
        MemberState::Waiting => 2,
        MemberState::Cancelled => 3,
        MemberState::Skipped => 4,
        MemberState::Succeeded => 5,
    }
}

impl From<RolloutView> for Outcome {
    fn from(view: RolloutView) -> Self {
        let mut members = view.members;
        members.sort_by_key(|member| rank(member.state));
        let lines = members.into_iter().map(Line::from).collect();
        Self::of(view.summary, lines, Some((view.rollout_id, view.state, view.event)), view.next_step)
    }
}

impl Followed for RolloutView {
    async fn change(&self, core: &Core, wait: Duration) -> Result<Self> {
        core.await_rollout_change(&self.rollout_id, self.event, wait).await
    }

    fn describe(&self) -> String {
        self.summary.clone()
    }
}

/// Waits for the end of a rollout that was just started or cancelled.
pub async fn followed(call: &mut Call, view: RolloutView, wait: Duration) -> Result<Outcome> {
    let core = call.core.clone();
    let view = call.progress.follow(&core, view, wait, |view| view.state.is_final()).await?;
    Ok(view.into())
}
