//! Public view of a rollout.

use aegis_types::{
    error::{Error, Failure, Result},
    ids::{DeploymentId, NodeId, RolloutId},
};

use super::rule::{Limits, MemberState, RolloutState};
use crate::{
    DeploymentSpec, DeploymentState, DeploymentView, Finding, PlanView, StepName, StepState,
    model::plan::Plan,
};

/// One host of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct MemberView {
    pub host: String,
    pub ssh_port: u16,
    pub node_id: NodeId,
    pub state: MemberState,
    /// Deployment of the host, once it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<DeploymentId>,
    /// Final state of the deployment, in more detail than succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_state: Option<DeploymentState>,
    /// Current step, or the step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
    /// Activity of that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Duration of all steps, once the deployment ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl MemberView {
    fn waiting(spec: &DeploymentSpec) -> Self {
        Self {
            host: spec.target.host.to_string(),
            ssh_port: spec.target.port,
            node_id: spec.node.clone(),
            state: MemberState::Waiting,
            deployment_id: None,
            deployment_state: None,
            step: None,
            message: None,
            duration_ms: None,
            failure: None,
        }
    }

    /// Updates the member from its deployment's view.
    pub(super) fn take(&mut self, view: &DeploymentView) {
        self.deployment_id = Some(view.deployment_id.clone());
        self.state = match view.state {
            DeploymentState::Planned | DeploymentState::Running => MemberState::Running,
            DeploymentState::Ready | DeploymentState::Started | DeploymentState::Removed => {
                MemberState::Succeeded
            }
            DeploymentState::Cancelled => MemberState::Cancelled,
            DeploymentState::Failed | DeploymentState::RolledBack | DeploymentState::Interrupted => {
                MemberState::Failed
            }
        };
        let under_way = |state| matches!(state, StepState::Running | StepState::Rechecking);
        let stands = |wanted: fn(StepState) -> bool| view.steps.iter().find(|step| wanted(step.state));
        let step = stands(under_way).or_else(|| stands(|state| state == StepState::Failed));
        self.step = step.map(|step| step.name);
        let ended = view.state.is_final();
        self.message = step.filter(|_| !ended).and_then(|step| step.message.clone());
        self.deployment_state = ended.then_some(view.state);
        self.duration_ms = ended.then(|| view.steps.iter().filter_map(|step| step.duration_ms).sum());
        self.failure = view.failure.clone().filter(|_| ended);
    }

    /// Marks a member that could not be started as failed.
    pub(super) fn refuse(&mut self, error: &Error) {
        self.state = MemberState::Failed;
        self.failure = Some(Failure::from(error));
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct RolloutView {
    pub rollout_id: RolloutId,
    pub state: RolloutState,
    /// Event number that grows with every change of any host; pass it to get later changes only.
    pub event: u64,
    /// `3 hosts: 1 succeeded, 1 failed, 1 skipped`.
    pub summary: String,
    pub cancel_requested: bool,
    pub max_parallel: usize,
    /// Number of failures after which no further host is started; 0 never stops.
    pub max_failures: usize,
    /// Members in the order of the request.
    pub members: Vec<MemberView>,
    pub next_step: String,
    pub created_at_ms: i64,
    pub updated_at_ms: i64,
}

impl RolloutView {
    pub(super) fn new(rollout_id: RolloutId, specs: &[DeploymentSpec], limits: Limits, now_ms: i64) -> Self {
        let mut view = Self {
            rollout_id,
            state: RolloutState::Running,
            event: 0,
            summary: String::new(),
            cancel_requested: false,
            max_parallel: limits.parallel,
            max_failures: limits.failures,
            members: specs.iter().map(MemberView::waiting).collect(),
            next_step: String::new(),
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        };
        view.touch(now_ms);
        view
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { parallel: self.max_parallel, failures: self.max_failures }
    }

    pub(super) fn states(&self) -> Vec<MemberState> {
        self.members.iter().map(|member| member.state).collect()
    }

    /// Updates event number and summary after every change.
    pub(super) fn touch(&mut self, now_ms: i64) {
        self.event += 1;
        self.updated_at_ms = now_ms;
        self.summary = summary(&self.states());
        self.next_step = self.next_step_text();
    }

    fn next_step_text(&self) -> String {
        let id = &self.rollout_id;
        match self.state {
            RolloutState::Running => {
                format!("call get_rollout with rollout_id {id} and wait_seconds 30 to follow it")
            }
            RolloutState::Succeeded => "all hosts are done; list_peers has those that joined".to_owned(),
            RolloutState::Failed | RolloutState::Cancelled => {
                "get_deployment_status has the steps of each host; remove the causes, then call \
                 deploy_edge_nodes again: hosts that are done stay as they are"
                    .to_owned()
            }
        }
    }
}

fn summary(members: &[MemberState]) -> String {
    use MemberState::{Cancelled, Failed, Running, Skipped, Succeeded, Waiting};
    let counts = [Succeeded, Failed, Cancelled, Skipped, Running, Waiting].map(|state| {
        let count = members.iter().filter(|member| **member == state).count();
        (count > 0).then(|| format!("{count} {state}"))
    });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let hosts = if members.len() == 1 { "host" } else { "hosts" };
    format!("{} {hosts}: {}", members.len(), counts.join(", "))
}

/// Plan of one host, or the failure that prevented it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct PlannedHost {
    pub host: String,
    pub ssh_port: u16,
    pub node_id: NodeId,
    /// Whether the host would pass the checks.
    pub can_deploy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    pub findings: Vec<Finding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl PlannedHost {
    pub(super) fn of(spec: &DeploymentSpec, planned: Result<PlanView>) -> Self {
        let (can_deploy, plan, findings, failure) = match planned {
            Ok(PlanView { plan, findings, can_deploy, .. }) => (can_deploy, Some(plan), findings, None),
            Err(error) => (false, None, Vec::new(), Some(Failure::from(&error))),
        };
        let (host, ssh_port) = (spec.target.host.to_string(), spec.target.port);
        Self { host, ssh_port, node_id: spec.node.clone(), can_deploy, plan, findings, failure }
    }
}

/// Result of a dry run of many hosts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct RolloutPlan {
    pub hosts: Vec<PlannedHost>,
    /// Whether every host would pass its checks.
    pub can_deploy: bool,
    pub next_step: String,
}

impl RolloutPlan {
    pub(super) fn of(hosts: Vec<PlannedHost>) -> Self {
        let can_deploy = hosts.iter().all(|host| host.can_deploy);
        let next_step = match can_deploy {
            true => "call deploy_edge_nodes again with dry_run false to carry it out",
            false => "remove what stands in the way, or leave those hosts out",
        };
        Self { hosts, can_deploy, next_step: next_step.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_there_is() {
        use MemberState::{Failed, Skipped, Succeeded, Waiting};
        assert_eq!(summary(&[Succeeded, Failed, Skipped]), "3 hosts: 1 succeeded, 1 failed, 1 skipped");
        assert_eq!(summary(&[Waiting]), "1 host: 1 waiting");
    }
}
