//! After a failure: the host as it was.

use super::{
    super::{
        remote::Back,
        view::{DeploymentState, StepName},
    },
    Run,
};
use crate::{
    error::{Error, Failure, Result},
    ssh::Connection,
};

const PREVIOUS_RUNS: &str = "the previous release runs again";

impl Run {
    /// Puts the host back; its answer says what it is now.
    pub(super) async fn rollback(&mut self) -> Result<String> {
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.reconnect().await?;
        }
        if self.examined.is_none() {
            let sudo = self.remote()?.needs_sudo().await?;
            self.work_by_sudo(sudo);
        }
        self.ensure_lock().await?;
        let id = self.record.view.deployment_id.clone();
        match self.remote()?.back(&id).await? {
            Back::Previous => return Ok(PREVIOUS_RUNS.to_owned()),
            Back::Untouched => return Ok("nothing was changed on the host".to_owned()),
            Back::First => {}
        }
        let image = match (self.loaded_image, &self.examined) {
            (true, Some(examined)) => {
                examined.prepared.plan.images.first().map(|image| image.reference.clone())
            }
            _ => None,
        };
        self.context.membership.withdraw(&self.record.spec.node).await?;
        // The link went with the withdrawal, and with it perhaps the connection it had adopted.
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.reconnect().await?;
        }
        self.ensure_lock().await?;
        self.remote()?.remove(image.as_deref()).await?;
        Ok("the host is as it was before, but for volumes".to_owned())
    }

    pub(super) async fn fail(&mut self, error: Error) -> Result<()> {
        tracing::warn!(deployment = %self.record.view.deployment_id, error = %error.chain(), "deployment failed");
        let mut failure = Failure::from(&error);
        self.change(|view| view.failure = Some(failure.clone())).await?;
        let mut state = DeploymentState::Failed;
        if self.touched {
            match self.step(StepName::Rollback).await {
                Ok(()) => {
                    let step = self.record.view.step_mut(StepName::Rollback);
                    let evidence = step.evidence.clone().unwrap_or_default();
                    if evidence == PREVIOUS_RUNS {
                        state = DeploymentState::RolledBack;
                    }
                    failure.message = format!("{}; {evidence}", failure.message);
                }
                Err(rollback) => {
                    state = DeploymentState::Interrupted;
                    failure.message = format!(
                        "{}; putting the host back failed as well: {}",
                        failure.message,
                        rollback.message()
                    );
                }
            }
        } else {
            failure.message = format!("{}; nothing was changed on the host", failure.message);
        }
        self.record.view.failure = Some(failure);
        self.enter(state).await
    }
}
