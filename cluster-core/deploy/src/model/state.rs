//! States of a deployment and of its steps.

use std::fmt;

use aegis_types::error::{Error, ErrorCode, Result};

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

/// A step of an operation; see [`Action::steps`](super::operation::Action::steps).
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
