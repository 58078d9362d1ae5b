//! After a failure, or when it was called off: the host as it was.

use super::{
    super::{
        health,
        operation::Action,
        remote::Standing,
        view::{DeploymentState, StepName, StepState, StepView},
        world::Before,
    },
    ACTIVE_LIMIT, Run, publish_progress,
};
use crate::{
    error::{Error, ErrorCode, Failure, Result},
    ids::DeploymentId,
    ssh::Connection,
};

const PREVIOUS_RUNS: &str = "the previous release runs again";

/// What there is to go back to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Back {
    Release(DeploymentId),
    /// Nothing that runs was changed.
    Untouched,
    /// There was none before.
    Nothing,
}

/// A release that never became the current one changed nothing; one whose predecessor is current again is
/// being put back, and is put back once more. `images_began`: without a change of any file, names of images
/// may mean others than before, and containers be those of others.
fn way_back(release: &DeploymentId, standing: &Standing, before: &Before, images_began: bool) -> Back {
    let unchanged = |id: &DeploymentId| id != release && !standing.complete && !images_began;
    match (before, &standing.current) {
        (Before::Release(id), Some(current)) if id == current && unchanged(id) => Back::Untouched,
        (Before::Release(id), _) => Back::Release(id.clone()),
        (Before::Nothing, _) => Back::Nothing,
    }
}

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
        self.remote()?.end_work().await?;
        let own = self.record.view.deployment_id.clone();
        let release = match (&self.record.action, &self.chosen) {
            (Action::Rollback { .. }, Some(chosen)) => chosen.note.deployment_id.clone(),
            _ => own.clone(),
        };
        let standing = self.remote()?.standing(&release).await?;
        let before = self.record.before.clone().unwrap_or(Before::Nothing);
        let began = |step: &StepView| step.name == StepName::Images && step.state != StepState::Pending;
        let images_began = self.record.view.steps.iter().any(began);
        match way_back(&release, &standing, &before, images_began) {
            Back::Untouched => {
                self.remote()?.drop_release(&own).await?;
                return Ok("nothing that runs on the host was changed".to_owned());
            }
            Back::Release(id) => {
                let evidence = self.put_back(&id).await?;
                self.remote()?.drop_release(&own).await?;
                return Ok(format!("{PREVIOUS_RUNS}: {evidence}"));
            }
            Back::Nothing => {}
        }
        self.context.membership.remove_link_key(&self.record.spec.node, self.connection()?).await?;
        self.context.membership.withdraw(&self.record.spec.node).await?;
        // The link went with the withdrawal, and with it perhaps the connection it had adopted.
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.reconnect().await?;
        }
        self.ensure_lock().await?;
        let remote = self.remote()?;
        remote.remove(false).await?;
        remote.drop_images(&self.record.fetched).await?;
        Ok("the host is as it was before, but for volumes".to_owned())
    }

    /// The release before may have been linked in another way.
    async fn link_as_before(&mut self) -> Result<()> {
        let joined = |step: &StepView| step.name == StepName::Join && step.state != StepState::Pending;
        if !self.record.view.steps.iter().any(joined) {
            return Ok(());
        }
        let link = self.remote()?.current_link().await?;
        let (spec, key) = (self.record.spec.clone(), self.read_public_key().await?);
        let membership = &self.context.membership;
        membership.admit(&spec.node, key, &spec, &link).await?;
        membership.attach_link(&spec.node, &spec, &link, self.connection()?.clone()).await
    }

    /// The release before, checked: it is well, and its node is Active.
    async fn put_back(&mut self, id: &DeploymentId) -> Result<String> {
        let remote = self.remote()?;
        remote.switch_to(id).await?;
        let kept = remote.kept().await?.into_iter().find(|kept| kept.note.deployment_id == *id);
        // An image that was sent may have taken its name from the one before.
        if let Some(ready) = kept.as_ref().and_then(|kept| kept.ready.as_ref()) {
            self.tags_as_then(&ready.images).await?;
        }
        self.remote()?.up().await?;
        let goal = kept.and_then(|kept| kept.note.goal);
        // One that an earlier version wrote does not say what it runs.
        let Some(goal) = goal else { return Ok(id.to_string()) };
        let limit = self.record.spec.health_limit();
        let (views, mut view) = (self.views.clone(), self.record.view.clone());
        let progress = move |text: String| publish_progress(&views, &mut view, StepName::Rollback, text);
        let well = health::await_well(self.remote()?, &goal, limit, progress)
            .await
            .map_err(|unwell| unwell.error)?;
        if goal.node.is_some() {
            self.link_as_before().await?;
            self.context.membership.await_active(&self.record.spec.node, ACTIVE_LIMIT).await?;
        }
        Ok(format!("{id}, {}", well.evidence))
    }

    pub(super) async fn fail(&mut self, error: Error) -> Result<()> {
        tracing::warn!(deployment = %self.record.view.deployment_id, error = %error.chain(), "deployment failed");
        let called_off = error.code() == ErrorCode::Cancelled && self.cancel.is_cancelled();
        let error = match self.record.action {
            Action::Remove(_) => self.explain_removal(error),
            Action::Deploy | Action::Rollback { .. } => error,
        };
        let mut failure = Failure::from(&error);
        self.change(|view| {
            view.cancel_requested |= called_off;
            view.failure = Some(failure.clone());
        })
        .await?;
        let mut state = if called_off { DeploymentState::Cancelled } else { DeploymentState::Failed };
        if let Action::Remove(_) = self.record.action {
            let left = self.leave_removal(called_off).await;
            failure.message = format!("{}; {left}", failure.message);
        } else if self.record.before.is_none() {
            failure.message = format!("{}; nothing was changed on the host", failure.message);
        } else {
            match self.step(StepName::Rollback).await {
                Ok(()) => {
                    let step = self.record.view.step_mut(StepName::Rollback);
                    let evidence = step.evidence.clone().unwrap_or_default();
                    if evidence.starts_with(PREVIOUS_RUNS) && !called_off {
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
        }
        self.record.view.failure = Some(failure);
        self.enter(state).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_follows_from_what_ran_before() {
        let id = |number| DeploymentId::mint(1, number);
        let standing = |current: Option<u64>, complete| Standing { current: current.map(id), complete };
        let before = Before::Release(id(1));
        let back = |current, complete| way_back(&id(2), &standing(current, complete), &before, false);
        assert_eq!(back(Some(1), false), Back::Untouched, "it never came so far");
        assert_eq!(back(Some(2), true), Back::Release(id(1)));
        assert_eq!(back(Some(1), true), Back::Release(id(1)), "it was being put back");
        assert_eq!(back(None, true), Back::Release(id(1)));
        let images = way_back(&id(2), &standing(Some(1), false), &before, true);
        assert_eq!(images, Back::Release(id(1)), "another image of the same name");
        let same = way_back(&id(1), &standing(Some(1), true), &before, false);
        assert_eq!(same, Back::Release(id(1)), "a redeployment that changed no file");
        assert_eq!(way_back(&id(2), &standing(Some(2), true), &Before::Nothing, true), Back::Nothing);
        assert_eq!(way_back(&id(2), &standing(None, false), &Before::Nothing, false), Back::Nothing);
    }
}
