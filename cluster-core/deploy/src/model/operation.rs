//! Operations on a host, and the steps of each.

use std::{fmt, time::Duration};

use aegis_types::{
    error::{Error, Result},
    ids::DeploymentId,
};

use super::spec::DeploymentSpec;
use crate::model::state::{DeploymentState, StepName};

/// Longest time that a removal lets running work continue.
pub const DRAIN_LIMIT_MAX: Duration = Duration::from_secs(86_400);

/// Operation that a deployment's record stands for.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Makes a machine a node, or gives it a new release.
    #[default]
    Deploy,
    /// Makes an earlier release current.
    Rollback,
    /// Drains the node, removes its stack and revokes its key.
    Remove,
}

impl Operation {
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Deploy => "deploy",
            Operation::Rollback => "rollback",
            Operation::Remove => "remove",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Parameters of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Removal {
    /// Also removes the volumes, and with them the models and the node's key.
    pub volumes: bool,
    /// Seconds that running work may continue before it is cancelled.
    pub drain_seconds: u64,
    /// The host no longer exists, so nothing is done there.
    pub host_gone: bool,
    /// The node was drained before, and stays drained if the removal is cancelled.
    #[serde(default)]
    pub was_drained: bool,
}

impl Removal {
    pub fn new(volumes: bool, drain: Duration, host_gone: bool) -> Result<Self> {
        if drain > DRAIN_LIMIT_MAX {
            return Err(Error::invalid("the drain's deadline is longer than 24 h"));
        }
        if volumes && host_gone {
            return Err(Error::invalid("volumes cannot be removed on a host that is gone"));
        }
        Ok(Self { volumes, drain_seconds: drain.as_secs(), host_gone, was_drained: false })
    }
}

/// Operation with its arguments, as recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    #[default]
    Deploy,
    Rollback {
        /// Release to make current; `None` selects the newest good release before the current one.
        to: Option<DeploymentId>,
    },
    Remove(Removal),
}

impl Action {
    pub const fn operation(&self) -> Operation {
        match self {
            Action::Deploy => Operation::Deploy,
            Action::Rollback { .. } => Operation::Rollback,
            Action::Remove(_) => Operation::Remove,
        }
    }

    /// Returns the steps in order.
    pub fn steps(&self, spec: &DeploymentSpec) -> Vec<StepName> {
        use StepName::{
            Check, Connect, Drain, Forget, Health, Images, Join, Models, Plan, Proof, Settle, Start, Stop,
            Switch, Upload,
        };
        match self {
            Action::Deploy => {
                let mut steps = vec![Plan, Connect, Check, Upload, Images, Start, Health];
                steps.extend((!spec.models.is_empty()).then_some(Models));
                if spec.join {
                    steps.extend([Join, Proof]);
                }
                steps.push(Settle);
                steps
            }
            Action::Rollback { .. } => {
                let mut steps = vec![Plan, Connect, Check, Switch, Images, Start, Health];
                if spec.join {
                    steps.extend([Join, Proof]);
                }
                steps.push(Settle);
                steps
            }
            // A stack without a node has no work to drain and no key to revoke.
            Action::Remove(Removal { host_gone: false, .. }) if !spec.join => vec![Plan, Connect, Stop],
            Action::Remove(Removal { host_gone: true, .. }) if !spec.join => vec![Plan],
            Action::Remove(Removal { host_gone: false, .. }) => vec![Plan, Connect, Drain, Stop, Forget],
            Action::Remove(Removal { host_gone: true, .. }) => vec![Plan, Drain, Forget],
        }
    }

    /// Returns the state after all steps succeeded.
    pub fn outcome(&self, spec: &DeploymentSpec) -> DeploymentState {
        match self {
            Action::Deploy | Action::Rollback { .. } if !spec.join => DeploymentState::Started,
            Action::Deploy | Action::Rollback { .. } => DeploymentState::Ready,
            Action::Remove(_) => DeploymentState::Removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeploySettings, DeploymentRequest};
    use aegis_types::principal::Origin;

    #[test]
    fn stack_without_a_node_has_no_steps_of_one() {
        use StepName::{Connect, Drain, Forget, Join, Plan, Proof, Stop};
        let request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        let joined = request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec;
        let bare = DeploymentSpec { join: false, ..joined.clone() };
        let removal = Action::Remove(Removal::new(false, Duration::ZERO, false).unwrap());
        assert_eq!(removal.steps(&bare), [Plan, Connect, Stop]);
        assert!(removal.steps(&joined).ends_with(&[Drain, Stop, Forget]));
        let rollback = Action::Rollback { to: None };
        assert!(!rollback.steps(&bare).iter().any(|step| matches!(step, Join | Proof)));
        assert_eq!(rollback.outcome(&bare), DeploymentState::Started);
        assert_eq!(rollback.outcome(&joined), DeploymentState::Ready);
    }

    #[test]
    fn removal_limits_drain_and_rejects_volumes_of_a_gone_host() {
        assert!(Removal::new(true, DRAIN_LIMIT_MAX, false).is_ok());
        assert!(Removal::new(false, DRAIN_LIMIT_MAX + Duration::from_secs(1), false).is_err());
        assert!(Removal::new(true, Duration::ZERO, true).is_err());
    }
}
