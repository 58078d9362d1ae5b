//! Public view of a deployment, and its state machine.

use std::fmt;

use aegis_types::{
    error::{Error, ErrorCode, Failure, Result},
    ids::{DeploymentId, NodeId},
};

use super::{
    findings::Finding,
    operation::{Action, Operation},
    plan::Plan,
    spec::DeploymentSpec,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// Recorded; nothing has been done yet.
    Planned,
    Running,
    /// The node is Active in the cluster and has run a container.
    Ready,
    /// The stack runs, without a node.
    Started,
    /// The node is removed from its host and from the cluster.
    Removed,
    /// The deployment failed. A failed first deployment restores the host; otherwise the message has details.
    Failed,
    /// The deployment failed, and the previous release runs again.
    RolledBack,
    /// The deployment was cancelled, and the host was restored.
    Cancelled,
    /// The controller stopped during the deployment, and its outcome could not be determined.
    Interrupted,
}

impl DeploymentState {
    pub const fn is_final(self) -> bool {
        match self {
            DeploymentState::Planned | DeploymentState::Running => false,
            DeploymentState::Ready
            | DeploymentState::Started
            | DeploymentState::Removed
            | DeploymentState::Failed
            | DeploymentState::RolledBack
            | DeploymentState::Cancelled
            | DeploymentState::Interrupted => true,
        }
    }

    pub const fn is_good(self) -> bool {
        matches!(self, DeploymentState::Ready | DeploymentState::Started | DeploymentState::Removed)
    }

    /// Checks a transition. Returns the next state, or an error if the transition does not exist.
    pub fn to(self, next: DeploymentState) -> Result<DeploymentState> {
        let possible = match self {
            DeploymentState::Planned => matches!(
                next,
                DeploymentState::Running
                    | DeploymentState::Failed
                    | DeploymentState::Cancelled
                    | DeploymentState::Interrupted
            ),
            DeploymentState::Running => next != DeploymentState::Planned,
            _ => false,
        };
        match possible {
            true => Ok(next),
            false => Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("a deployment that is {self} cannot become {next}"),
            )),
        }
    }
}

impl DeploymentState {
    pub const fn name(self) -> &'static str {
        match self {
            DeploymentState::Planned => "planned",
            DeploymentState::Running => "running",
            DeploymentState::Ready => "ready",
            DeploymentState::Started => "started",
            DeploymentState::Removed => "removed",
            DeploymentState::Failed => "failed",
            DeploymentState::RolledBack => "rolled_back",
            DeploymentState::Cancelled => "cancelled",
            DeploymentState::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for DeploymentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step of an operation; see [`Action::steps`].
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    Plan,
    Connect,
    Check,
    Upload,
    /// Makes the target release of a rollback current.
    Switch,
    Images,
    Start,
    Health,
    /// Pulls the requested models into Ollama.
    Models,
    Join,
    Proof,
    /// Checks that nothing restarted, marks the release as good, and removes old releases.
    Settle,
    /// Stops new work on the node, and waits for running work.
    Drain,
    /// Removes the stack and its files.
    Stop,
    /// Revokes the node's key and removes the node from the cluster.
    Forget,
    /// Restores the previous release, or cleans the host. Only after a failure.
    Rollback,
}

impl StepName {
    pub const fn name(self) -> &'static str {
        match self {
            StepName::Plan => "plan",
            StepName::Connect => "connect",
            StepName::Check => "check",
            StepName::Upload => "upload",
            StepName::Switch => "switch",
            StepName::Images => "images",
            StepName::Start => "start",
            StepName::Health => "health",
            StepName::Models => "models",
            StepName::Join => "join",
            StepName::Proof => "proof",
            StepName::Settle => "settle",
            StepName::Drain => "drain",
            StepName::Stop => "stop",
            StepName::Forget => "forget",
            StepName::Rollback => "rollback",
        }
    }
}

impl StepName {
    /// Returns whether the step can be cancelled. Restoring the host and removing the node always run to completion.
    pub const fn can_be_cancelled(self) -> bool {
        !matches!(self, StepName::Settle | StepName::Stop | StepName::Forget | StepName::Rollback)
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Pending,
    Running,
    /// The connection was cut, and the outcome of the step is being checked.
    Rechecking,
    Done,
    Failed,
}

impl StepState {
    pub const fn name(self) -> &'static str {
        match self {
            StepState::Pending => "pending",
            StepState::Running => "running",
            StepState::Rechecking => "rechecking",
            StepState::Done => "done",
            StepState::Failed => "failed",
        }
    }

    pub const fn is_ended(self) -> bool {
        matches!(self, StepState::Done | StepState::Failed)
    }
}

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
                "nothing more is done; call the tool again to start anew".to_owned()
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
