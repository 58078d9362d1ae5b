//! What a deployment looks like to whoever follows it, and the states it moves through.

use std::fmt;

use super::{findings::Finding, plan::Plan, spec::DeploymentSpec};
use crate::{
    error::{Error, ErrorCode, Failure, Result},
    ids::{DeploymentId, NodeId},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// Recorded; nothing was done yet.
    Planned,
    Running,
    /// The node is Active in the cluster and has run a container.
    Ready,
    /// It failed. A first deployment has left the host as it was; otherwise the message says more.
    Failed,
    /// It failed, and the previous release runs again.
    RolledBack,
    /// The controller stopped in between and what became of it could not be settled.
    Interrupted,
}

impl DeploymentState {
    pub const fn is_final(self) -> bool {
        match self {
            DeploymentState::Planned | DeploymentState::Running => false,
            DeploymentState::Ready
            | DeploymentState::Failed
            | DeploymentState::RolledBack
            | DeploymentState::Interrupted => true,
        }
    }

    /// Every transition there is.
    pub fn to(self, next: DeploymentState) -> Result<DeploymentState> {
        use DeploymentState::{Failed, Interrupted, Planned, Ready, RolledBack, Running};
        match (self, next) {
            (Planned, Running | Failed | Interrupted)
            | (Running, Running | Ready | Failed | RolledBack | Interrupted) => Ok(next),
            (Planned, Planned | Ready | RolledBack)
            | (Running, Planned)
            | (Ready | Failed | RolledBack | Interrupted, _) => Err(Error::new(
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
            DeploymentState::Failed => "failed",
            DeploymentState::RolledBack => "rolled_back",
            DeploymentState::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for DeploymentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The pipeline, in its order.
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
    Images,
    Start,
    Health,
    Join,
    Proof,
    /// Only after a failure: the previous release is put back, or the host cleaned.
    Rollback,
}

impl StepName {
    pub const PIPELINE: [StepName; 9] = [
        StepName::Plan,
        StepName::Connect,
        StepName::Check,
        StepName::Upload,
        StepName::Images,
        StepName::Start,
        StepName::Health,
        StepName::Join,
        StepName::Proof,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            StepName::Plan => "plan",
            StepName::Connect => "connect",
            StepName::Check => "check",
            StepName::Upload => "upload",
            StepName::Images => "images",
            StepName::Start => "start",
            StepName::Health => "health",
            StepName::Join => "join",
            StepName::Proof => "proof",
            StepName::Rollback => "rollback",
        }
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
    /// The connection was cut: what became of it is being looked at.
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
    /// What shows that it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// What it is doing, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct DeploymentView {
    pub deployment_id: DeploymentId,
    pub host: String,
    pub node_id: NodeId,
    pub state: DeploymentState,
    /// Grows with every change: ask again with it to hear only of later ones.
    pub event: u64,
    pub steps: Vec<StepView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The last lines of the service that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    pub next_step: String,
    pub created_at_ms: i64,
    pub updated_at_ms: i64,
}

impl DeploymentView {
    pub fn new(deployment_id: DeploymentId, spec: &DeploymentSpec, now_ms: i64) -> Self {
        let pending = |name| StepView {
            name,
            state: StepState::Pending,
            started_at_ms: None,
            duration_ms: None,
            evidence: None,
            message: None,
        };
        let mut view = Self {
            deployment_id,
            host: spec.target.host.to_string(),
            node_id: spec.node.clone(),
            state: DeploymentState::Planned,
            event: 0,
            steps: StepName::PIPELINE.map(pending).to_vec(),
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
            self.steps.push(StepView {
                name,
                state: StepState::Pending,
                started_at_ms: None,
                duration_ms: None,
                evidence: None,
                message: None,
            });
            self.steps.len() - 1
        });
        &mut self.steps[at]
    }

    pub fn step_is_done(&self, name: StepName) -> bool {
        self.steps.iter().any(|step| step.name == name && step.state == StepState::Done)
    }

    /// After every change.
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
            DeploymentState::Failed | DeploymentState::RolledBack | DeploymentState::Interrupted => {
                match self.failure.as_ref().and_then(|failure| failure.remedy.as_deref()) {
                    Some(remedy) => format!("{remedy}; then call deploy_edge_node again"),
                    None => "remove the cause, then call deploy_edge_node again".to_owned(),
                }
            }
        }
    }
}

/// The answer to a dry run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct PlanView {
    pub plan: Plan,
    pub findings: Vec<Finding>,
    /// Whether it would get past the checks.
    pub can_deploy: bool,
    pub next_step: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_stays() {
        use DeploymentState::*;
        for last in [Ready, Failed, RolledBack, Interrupted] {
            assert!(last.is_final());
            for next in [Planned, Running, Ready, Failed, RolledBack, Interrupted] {
                assert!(last.to(next).is_err());
            }
        }
        assert!(Planned.to(Running).is_ok() && Planned.to(Ready).is_err() && Running.to(Ready).is_ok());
    }
}
