//! The host as it was, after a failure or a cancellation.

use std::fmt;

use aegis_ssh::Connection;
use aegis_types::{
    error::{Error, ErrorCode, Failure, Result},
    ids::DeploymentId,
};

use super::{super::health, ACTIVE_LIMIT, Run, publish_progress};
use crate::{
    host::Standing,
    model::{
        operation::Action,
        record::PreviousRelease,
        state::{DeploymentState, StepName, StepState},
        view::StepView,
    },
    pipeline::connection::superseded_by,
};

/// How the host is after it was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RollbackOutcome {
    /// Nothing that runs was changed.
    Untouched,
    Restored {
        release: DeploymentId,
        /// How the services are, or the cluster whose release it is.
        evidence: String,
    },
    /// The host had no stack before, and has no files of the deployment now.
    Cleaned,
    /// The deployment's files are removed; the containers that ran before were never touched.
    FilesRemoved,
    /// The deployment's stack is removed, and the stack that ran before was started again.
    StackRestarted,
    /// The host runs a release of a deployment that came later.
    Superseded(DeploymentId),
}

impl fmt::Display for RollbackOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched => f.write_str("nothing that runs on the host was changed"),
            Self::Restored { release, evidence } => {
                write!(f, "the previous release runs again: {release}, {evidence}")
            }
            Self::Cleaned => f.write_str("the host is as it was before, but for volumes"),
            Self::FilesRemoved => {
                f.write_str("the files that were sent are removed; what ran on the host was not touched")
            }
            Self::StackRestarted => {
                f.write_str("the stack that ran on the host before was started again, with its own files")
            }
            Self::Superseded(release) => {
                write!(f, "the host runs release {release} of another deployment, which stays")
            }
        }
    }
}

/// Which way back there is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Back {
    Release(DeploymentId),
    /// Nothing that runs was changed.
    Untouched,
    /// The host had nothing before.
    Nothing,
    /// Containers that are not ours run as they did.
    Files,
    /// Containers that are not ours gave way to ours.
    Stack,
    Superseded(DeploymentId),
}

/// Which steps of the failed deployment have begun.
#[derive(Debug, Clone, Copy, Default)]
struct Began {
    images: bool,
    start: bool,
}

/// Decides the way back. A release that never became the current one changed nothing; one whose predecessor
/// is current again is being put back, and is put back once more. Without a change of any file, names of
/// images may mean others than before once the images step began, and containers be those of others.
fn way_back(own: &DeploymentId, standing: &Standing, before: &PreviousRelease, began: Began) -> Back {
    if let Some(other) = superseded_by(own, before, standing) {
        return Back::Superseded(other);
    }
    let unchanged = |id: &DeploymentId| id != own && !standing.complete && !began.images;
    match (before, &standing.current) {
        (PreviousRelease::Release(id), Some(current)) if id == current && unchanged(id) => Back::Untouched,
        (PreviousRelease::Release(id), _) => Back::Release(id.clone()),
        (PreviousRelease::Stack, _) if began.start => Back::Stack,
        (PreviousRelease::Stack, _) => Back::Files,
        (PreviousRelease::Nothing, _) => Back::Nothing,
    }
}

impl Run {
    /// Puts the host back; the evidence says what it is now.
    pub(super) async fn rollback(&mut self) -> Result<String> {
        let outcome = self.put_host_back().await?;
        let evidence = outcome.to_string();
        self.outcome = Some(outcome);
        Ok(evidence)
    }

    async fn put_host_back(&mut self) -> Result<RollbackOutcome> {
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.connect_again().await?;
        }
        if self.examined.is_none() {
            let sudo = self.remote()?.needs_sudo().await?;
            self.work_by_sudo(sudo);
        }
        self.take_lock().await?;
        self.remote()?.end_work().await?;
        let own = self.record.view.deployment_id.clone();
        let release = self.own_release();
        let standing = self.remote()?.standing(&release).await?;
        let before = self.record.before.clone().unwrap_or(PreviousRelease::Nothing);
        let began =
            Began { images: self.has_begun(StepName::Images), start: self.has_begun(StepName::Start) };
        match way_back(&release, &standing, &before, began) {
            Back::Untouched => {
                self.remote()?.drop_release(&own).await?;
                self.drop_fetched(&[]).await?;
                Ok(RollbackOutcome::Untouched)
            }
            Back::Superseded(other) => {
                self.remote()?.drop_release(&own).await?;
                Ok(RollbackOutcome::Superseded(other))
            }
            Back::Release(id) => {
                let evidence = self.put_back(&id).await?;
                self.remote()?.drop_release(&own).await?;
                Ok(RollbackOutcome::Restored { release: id, evidence })
            }
            Back::Files => {
                self.remote()?.remove_files().await?;
                self.drop_fetched(&[]).await?;
                Ok(RollbackOutcome::FilesRemoved)
            }
            Back::Nothing | Back::Stack => {
                self.withdraw_node().await?;
                let remote = self.remote()?;
                remote.remove(false).await?;
                self.drop_fetched(&[]).await?;
                Ok(match before {
                    PreviousRelease::Stack => RollbackOutcome::StackRestarted,
                    PreviousRelease::Nothing | PreviousRelease::Release(_) => RollbackOutcome::Cleaned,
                })
            }
        }
    }

    fn has_begun(&self, name: StepName) -> bool {
        let began = |step: &StepView| step.name == name && step.state != StepState::Pending;
        self.record.view.steps.iter().any(began)
    }

    /// Undoes the admission, unless the node was a member before this deployment.
    async fn withdraw_node(&mut self) -> Result<()> {
        if self.record.was_member {
            return Ok(());
        }
        let node = self.record.spec.node.clone();
        self.context.membership.remove_link_key(&node, self.connection()?).await?;
        self.context.membership.withdraw(&node).await?;
        // The link went with the withdrawal, and with it perhaps the connection it had adopted.
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.connect_again().await?;
        }
        self.take_lock().await.map(drop)
    }

    /// Removes the images that this deployment brought; Docker keeps those that a container uses.
    async fn drop_fetched(&self, more: &[String]) -> Result<()> {
        let images: Vec<String> = self.record.fetched.iter().chain(more).cloned().collect();
        if images.is_empty() { Ok(()) } else { self.remote()?.drop_images(&images).await }
    }

    /// Links the node as the release that was put back says.
    async fn link_as_before(&mut self) -> Result<()> {
        if !self.has_begun(StepName::Join) {
            return Ok(());
        }
        let link = self.remote()?.current_link().await?;
        let (spec, key) = (self.record.spec.clone(), self.read_public_key().await?);
        let membership = &self.context.membership;
        membership.admit(&spec.node, key, &spec, &link, None).await?;
        membership.attach_link(&spec.node, &spec, &link, self.connection()?.clone()).await
    }

    /// Puts a release back and checks it: it is healthy, and its node is Active. A release of another cluster
    /// ends at its health, since its node is Active there; our node is withdrawn.
    async fn put_back(&mut self, id: &DeploymentId) -> Result<String> {
        let remote = self.remote()?;
        remote.switch_to(id).await?;
        let kept = remote.kept().await?.into_iter().find(|kept| kept.note.deployment_id == *id);
        let mut sent = Vec::new();
        // An image that was sent may have taken its name from the one before.
        if let Some(ready) = kept.as_ref().and_then(|kept| kept.ready.as_ref()) {
            sent = self.tags_as_then(&ready.images).await?;
        }
        let owner = kept.as_ref().and_then(|kept| kept.note.cluster.clone());
        let other = owner.filter(|owner| *owner != self.context.hosts.settings().owner);
        if other.is_some() && self.has_begun(StepName::Join) {
            self.withdraw_node().await?;
            self.remote()?.free_session().await?;
        }
        let waits = self.start_waits().await?;
        self.remote()?.up(waits).await?;
        let goal = kept.and_then(|kept| kept.note.goal);
        // A release of an earlier version does not say what it runs.
        let Some(goal) = goal else { return Ok("whose services are not recorded".to_owned()) };
        let limit = self.record.spec.health_limit();
        let (views, mut view) = (self.views.clone(), self.record.view.clone());
        let progress = move |text: String| publish_progress(&views, &mut view, StepName::Rollback, text);
        let well = health::await_well(self.remote()?, &goal, limit, progress)
            .await
            .map_err(|unwell| unwell.error)?;
        if self.record.action == Action::Deploy {
            self.drop_fetched(&sent).await?;
        }
        match other {
            Some(cluster) => Ok(format!("of cluster {cluster}, {}", well.evidence)),
            None => {
                if goal.node.is_some() {
                    self.link_as_before().await?;
                    self.context.membership.await_active(&self.record.spec.node, ACTIVE_LIMIT).await?;
                }
                Ok(well.evidence)
            }
        }
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
            let host_away = failure.code == ErrorCode::HostUnreachable;
            let left = self.leave_removal(called_off, host_away).await;
            failure.message = format!("{}; {left}", failure.message);
        } else if self.record.before.is_none() {
            failure.message = format!("{}; nothing was changed on the host", failure.message);
        } else {
            match self.step(StepName::Rollback).await {
                Ok(()) => {
                    let step = self.record.view.step_mut(StepName::Rollback);
                    let evidence = step.evidence.clone().unwrap_or_default();
                    let restored = matches!(self.outcome, Some(RollbackOutcome::Restored { .. }));
                    if restored && !called_off {
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
    fn way_back_follows_from_what_ran_before() {
        let id = |number| DeploymentId::mint(1, number);
        let standing = |current: Option<u64>, complete| Standing {
            current: current.map(id),
            complete,
            has_containers: false,
        };
        let (none, images) = (Began::default(), Began { images: true, start: false });
        let before = PreviousRelease::Release(id(1));
        let back = |current, complete| way_back(&id(2), &standing(current, complete), &before, none);
        assert_eq!(back(Some(1), false), Back::Untouched, "it never came so far");
        assert_eq!(back(Some(2), true), Back::Release(id(1)));
        assert_eq!(back(Some(1), true), Back::Release(id(1)), "it was being put back");
        assert_eq!(back(None, true), Back::Release(id(1)));
        assert_eq!(back(Some(3), true), Back::Superseded(id(3)), "another deployment came between");
        let renamed = way_back(&id(2), &standing(Some(1), false), &before, images);
        assert_eq!(renamed, Back::Release(id(1)), "another image of the same name");
        let same = way_back(&id(1), &standing(Some(1), true), &before, none);
        assert_eq!(same, Back::Release(id(1)), "a redeployment that changed no file");
        assert_eq!(
            way_back(&id(2), &standing(Some(2), true), &PreviousRelease::Nothing, images),
            Back::Nothing
        );
        assert_eq!(way_back(&id(2), &standing(None, false), &PreviousRelease::Nothing, none), Back::Nothing);
        assert_eq!(
            way_back(&id(2), &standing(Some(3), false), &PreviousRelease::Nothing, none),
            Back::Superseded(id(3))
        );
    }

    #[test]
    fn foreign_containers_are_not_removed_before_start() {
        let id = DeploymentId::mint(1, 2);
        let standing = Standing { current: Some(id.clone()), complete: true, has_containers: false };
        let began = |start| Began { images: true, start };
        assert_eq!(way_back(&id, &standing, &PreviousRelease::Stack, began(false)), Back::Files);
        assert_eq!(way_back(&id, &standing, &PreviousRelease::Stack, began(true)), Back::Stack);
    }
}
