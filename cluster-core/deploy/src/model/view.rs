//! Public view of a deployment, and its state machine.

use aegis_types::{
    error::Failure,
    ids::{DeploymentId, NodeId},
};

use super::{
    operation::{Action, Operation},
    plan::Plan,
    spec::DeploymentSpec,
};
use crate::{DeploymentState, StepName, StepState, model::finding::Finding};

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct StepView {
    pub name: StepName,
    pub state: StepState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Evidence that the step was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Current activity, or the reason of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct DeploymentView {
    pub deployment_id: DeploymentId,
    #[serde(default)]
    pub operation: Operation,
    pub host: String,
    pub node_id: NodeId,
    pub state: DeploymentState,
    /// Event number that grows with every change; pass it to get later changes only.
    pub event: u64,
    /// Digest of the plan that is carried out, once the host was examined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<String>,
    /// Target release of a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<DeploymentId>,
    /// Cancellation was requested.
    #[serde(default)]
    pub cancel_requested: bool,
    pub steps: Vec<StepView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Last log lines of the service that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    pub next_step: String,
    pub created_at_ms: i64,
    pub updated_at_ms: i64,
}

impl StepView {
    fn pending(name: StepName) -> Self {
        Self {
            name,
            state: StepState::Pending,
            started_at_ms: None,
            duration_ms: None,
            evidence: None,
            message: None,
        }
    }
}

impl DeploymentView {
    pub fn new(deployment_id: DeploymentId, action: &Action, spec: &DeploymentSpec, now_ms: i64) -> Self {
        let mut view = Self {
            deployment_id,
            operation: action.operation(),
            host: spec.target.host.to_string(),
            node_id: spec.node.clone(),
            state: DeploymentState::Planned,
            event: 0,
            plan_digest: None,
            release: None,
            cancel_requested: false,
            steps: action.steps(spec).into_iter().map(StepView::pending).collect(),
            failure: None,
            log_tail: None,
            findings: Vec::new(),
            next_step: String::new(),
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        };
        view.touch(now_ms);
        view
    }

    pub fn step_mut(&mut self, name: StepName) -> &mut StepView {
        let at = self.steps.iter().position(|step| step.name == name).unwrap_or_else(|| {
            self.steps.push(StepView::pending(name));
            self.steps.len() - 1
        });
        &mut self.steps[at]
    }

    pub fn step_is_done(&self, name: StepName) -> bool {
        self.steps.iter().any(|step| step.name == name && step.state == StepState::Done)
    }

    pub fn step_has_begun(&self, name: StepName) -> bool {
        self.steps.iter().any(|step| step.name == name && step.started_at_ms.is_some())
    }

    /// Updates event number and next step after every change.
    pub fn touch(&mut self, now_ms: i64) {
        self.event += 1;
        self.updated_at_ms = now_ms;
        self.next_step = self.next_step_text();
    }

    fn next_step_text(&self) -> String {
        let id = &self.deployment_id;
        match self.state {
            DeploymentState::Planned | DeploymentState::Running => {
                format!("call get_deployment_status with deployment_id {id} and wait_seconds 30 to follow it")
            }
            DeploymentState::Ready => {
                format!("the node {} is in list_peers; submit_execution can use it", self.node_id)
            }
            DeploymentState::Started => "the stack runs on the host; it is no node of the cluster".to_owned(),
            DeploymentState::Removed => {
                format!("{} is no member any more; deploy_edge_node brings it back", self.node_id)
            }
            DeploymentState::Cancelled => {
                "the operation was cancelled; call the tool again to start a new one".to_owned()
            }
            DeploymentState::Failed | DeploymentState::RolledBack | DeploymentState::Interrupted => {
                let again = match self.operation {
                    Operation::Deploy => "deploy_edge_node",
                    Operation::Rollback => "rollback_edge_node",
                    Operation::Remove => "remove_edge_node",
                };
                match self.failure.as_ref().and_then(|failure| failure.remedy.as_deref()) {
                    Some(remedy) => format!("{remedy}; then call {again} again"),
                    None => format!("remove the cause, then call {again} again"),
                }
            }
        }
    }
}

/// Result of a dry run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct PlanView {
    pub plan: Plan,
    pub findings: Vec<Finding>,
    /// Whether the deployment would pass the checks.
    pub can_deploy: bool,
    pub next_step: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_stays() {
        use DeploymentState::*;
        let all = [Planned, Running, Ready, Started, Removed, Failed, RolledBack, Cancelled, Interrupted];
        for state in all {
            assert_eq!(state.is_final(), !matches!(state, Planned | Running));
            assert!(!state.is_final() || all.iter().all(|next| state.to(*next).is_err()), "{state}");
        }
        assert!(Planned.to(Running).is_ok() && Planned.to(Ready).is_err() && Running.to(Ready).is_ok());
        assert!(Planned.to(Cancelled).is_ok() && Running.to(Planned).is_err());
    }
}
