//! Runs one operation on a host. Its steps run in order, and each is recorded before and after. Progress is visible
//! while a step runs. After a cut connection the state is checked and the step repeated. Failure and cancellation
//! restore the host.
//!
//! Each deployment is one task, owned by [`super::Deployments`]. The task ends with the deployment.

mod connection;
mod images;
mod removal;
mod restore;
mod rollback;
mod steps;

use std::{sync::Arc, time::Duration};

use aegis_ssh::Connection;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    secret::Secret,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::health::HealthyBaseline;
use crate::{
    host::Standing,
    model::{
        record::{DeploymentRecord, PreviousRelease},
        release::{ReleaseContents, StoredRelease},
        state::{DeploymentState, StepName, StepState},
        view::DeploymentView,
    },
    pipeline::connection::OnLostHost,
    preflight::{Context, Examined},
};

/// Limit for a started node to become Active.
const ACTIVE_LIMIT: Duration = Duration::from_secs(90);

/// One deployment in progress.
pub(super) struct Run {
    context: Arc<Context>,
    record: DeploymentRecord,
    token: Option<Secret>,
    views: watch::Sender<DeploymentView>,
    /// Resumed after a restart of the controller.
    resumed: bool,
    connection: Option<Connection>,
    /// The login uses sudo: the same connection, as root.
    sudo: bool,
    elevated: Option<Connection>,
    lock: Option<connection::Lock>,
    examined: Option<Examined>,
    /// Services to run, and the address at which the node answers.
    goal: Option<ReleaseContents>,
    /// State of the stack when it became healthy.
    well: Option<HealthyBaseline>,
    /// Target release of a rollback.
    chosen: Option<StoredRelease>,
    cancel: CancellationToken,
    reconnects: u32,
    /// Cuts during the current step.
    losses: usize,
    /// Result of the rollback after a failure.
    outcome: Option<rollback::RollbackOutcome>,
    slots: Arc<Semaphore>,
    /// Permit to run in parallel with other deployments; released while the host is unreachable.
    slot: Option<OwnedSemaphorePermit>,
}

impl Run {
    pub fn new(
        context: Arc<Context>,
        record: DeploymentRecord,
        token: Option<Secret>,
        views: watch::Sender<DeploymentView>,
        cancel: CancellationToken,
        resumed: bool,
        slots: Arc<Semaphore>,
    ) -> Self {
        if record.view.cancel_requested {
            cancel.cancel();
        }
        Self {
            context,
            record,
            token,
            views,
            resumed,
            connection: None,
            sudo: false,
            elevated: None,
            lock: None,
            examined: None,
            goal: None,
            well: None,
            chosen: None,
            cancel,
            reconnects: 0,
            losses: 0,
            outcome: None,
            slots,
            slot: None,
        }
    }

    /// Waits for a permit, then runs the deployment to its end, whatever the outcome. Returns an error only if the
    /// journal failed. Nothing more is done then, and the next start of the controller resumes the deployment.
    pub async fn run(mut self) -> Result<()> {
        self.slot = tokio::select! {
            biased;
            slot = self.slots.clone().acquire_owned() => slot.ok(),
            () = self.cancel.cancelled(), if !self.resumed => None,
        };
        let outcome = match (&self.slot, self.record.view.failure.clone()) {
            (None, _) => Err(cancelled()),
            (Some(_), Some(failure)) => Err(Error::from(failure)),
            (Some(_), None) => {
                self.enter(DeploymentState::Running).await?;
                self.pipeline().await
            }
        };
        match outcome {
            Ok(()) => self.enter(self.record.action.outcome(&self.record.spec)).await?,
            Err(error) => self.fail(error).await?,
        }
        drop(self.lock.take());
        tracing::info!(deployment = %self.record.view.deployment_id, state = %self.record.view.state, "deployment ended");
        Ok(())
    }

    async fn pipeline(&mut self) -> Result<()> {
        for name in self.record.action.steps(&self.record.spec) {
            self.step(name).await?;
        }
        Ok(())
    }

    async fn step(&mut self, name: StepName) -> Result<()> {
        let (started, cuts_before) = (Instant::now(), self.reconnects);
        self.losses = 0;
        self.change(|view| {
            let step = view.step_mut(name);
            (step.state, step.started_at_ms, step.duration_ms) = (StepState::Running, Some(now_ms()), None);
            (step.evidence, step.message) = (None, None);
        })
        .await?;
        let cancel = self.cancel.clone();
        let outcome = loop {
            let performed = tokio::select! {
                biased;
                performed = self.perform(name) => performed,
                () = cancel.cancelled(), if name.can_be_cancelled() => Err(cancelled()),
            };
            match performed {
                Err(error) if self.on_lost_host(name, &error) != OnLostHost::Fail => {
                    let forever = self.on_lost_host(name, &error) == OnLostHost::Recheck;
                    self.losses += 1;
                    let text = format!(
                        "the connection was cut ({}); what became of it is being re-checked",
                        error.message()
                    );
                    self.change(|view| {
                        let step = view.step_mut(name);
                        (step.state, step.message) = (StepState::Rechecking, Some(text));
                    })
                    .await?;
                    if let Err(error) = self.reconnect_unless_cancelled(name, forever).await {
                        break Err(error);
                    }
                }
                outcome => break outcome,
            }
        };
        let duration = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let cut =
            if self.reconnects > cuts_before { " (done again after the connection was cut)" } else { "" };
        let summary = match &outcome {
            Ok(evidence) => Ok(format!("{evidence}{cut}")),
            Err(error) => Err(error.message().to_owned()),
        };
        self.change(|view| {
            let step = view.step_mut(name);
            step.duration_ms = Some(duration);
            match summary {
                Ok(evidence) => {
                    (step.state, step.evidence, step.message) = (StepState::Done, Some(evidence), None)
                }
                Err(message) => (step.state, step.message) = (StepState::Failed, Some(message)),
            }
        })
        .await?;
        outcome.map(drop)
    }

    /// Reconnects. A deployment that is cancelled while its host is unreachable cannot restore the host: after the
    /// usual attempts its outcome stays unknown.
    async fn reconnect_unless_cancelled(&mut self, name: StepName, forever: bool) -> Result<()> {
        if self.cancel.is_cancelled() {
            return self.reconnect(name, false).await;
        }
        let cancel = self.cancel.clone();
        let reconnected = tokio::select! {
            biased;
            reconnected = self.reconnect(name, forever) => Some(reconnected),
            () = cancel.cancelled() => None,
        };
        match reconnected {
            Some(reconnected) => reconnected,
            None if name.can_be_cancelled() => Err(cancelled()),
            None => self.reconnect(name, false).await,
        }
    }

    /// Runs a step and returns its evidence. Every step is idempotent.
    async fn perform(&mut self, name: StepName) -> Result<String> {
        match name {
            StepName::Plan => self.plan().await,
            StepName::Connect => self.connect().await,
            StepName::Check => self.check().await,
            StepName::Upload => self.upload().await,
            StepName::Switch => self.switch().await,
            StepName::Images => self.images().await,
            StepName::Start => self.start().await,
            StepName::Health => self.health().await,
            StepName::Models => self.models().await,
            StepName::Join => self.join().await,
            StepName::Proof => self.proof().await,
            StepName::Settle => self.settle().await,
            StepName::Drain => self.drain().await,
            StepName::Stop => self.stop().await,
            StepName::Forget => self.forget().await,
            StepName::Rollback => self.rollback().await,
        }
    }

    fn examined(&self) -> Result<&Examined> {
        self.examined.as_ref().ok_or_else(|| Error::internal("a step before the checks"))
    }

    fn goal(&self) -> Result<&ReleaseContents> {
        self.goal.as_ref().ok_or_else(|| Error::internal("a step before the checks"))
    }

    /// Records the previous state of the host and the cluster. Changes are allowed from here on.
    async fn note_before(&mut self, standing: &Standing) -> Result<()> {
        if self.record.before.is_none() {
            self.record.was_member = self.context.membership.deployed(&self.record.spec.node).await.is_ok();
            self.record.before = Some(match &standing.current {
                Some(id) => PreviousRelease::Release(id.clone()),
                None if standing.has_containers => PreviousRelease::Stack,
                None => PreviousRelease::Nothing,
            });
            self.context.journal.put(&self.record).await?;
        }
        Ok(())
    }

    async fn enter(&mut self, state: DeploymentState) -> Result<()> {
        let next = self.record.view.state.to(state)?;
        self.change(|view| view.state = next).await
    }

    /// Records a change of the view, then publishes it.
    async fn change(&mut self, change: impl FnOnce(&mut DeploymentView)) -> Result<()> {
        change(&mut self.record.view);
        self.record.view.event = self.record.view.event.max(self.views.borrow().event);
        self.record.view.touch(now_ms());
        self.context.journal.put(&self.record).await?;
        self.views.send_replace(self.record.view.clone());
        Ok(())
    }

    /// Publishes progress without recording it. The text is lost when the step ends.
    fn progress(&mut self, name: StepName, text: String) {
        publish_progress(&self.views, &mut self.record.view, name, text);
    }
}

fn cancelled() -> Error {
    Error::new(ErrorCode::Cancelled, "the deployment was cancelled")
}

fn publish_progress(
    views: &watch::Sender<DeploymentView>,
    view: &mut DeploymentView,
    name: StepName,
    text: String,
) {
    let step = view.step_mut(name);
    if step.message.as_ref() == Some(&text) {
        return;
    }
    step.message = Some(text);
    view.event = view.event.max(views.borrow().event);
    view.touch(now_ms());
    views.send_replace(view.clone());
}
