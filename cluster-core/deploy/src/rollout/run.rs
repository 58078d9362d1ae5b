//! Task of one rollout: asks the rule, acts on the decision, and waits for its members.

use std::sync::Arc;

use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    secret::Secret,
};
use futures::{
    StreamExt as _,
    future::join_all,
    stream::{self, BoxStream, SelectAll},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    RolloutJournal, RolloutRecord, RolloutView,
    rule::{self, MemberState, Next, RolloutState},
};
use crate::{DeploymentView, Deployments, TunnelSource};

/// Index of a member and its view; `None` if its deployment stopped without an end.
type Change = (usize, Option<DeploymentView>);

pub(super) struct Run {
    deployments: Deployments,
    journal: Arc<dyn RolloutJournal>,
    record: RolloutRecord,
    /// Tunnel tokens by member index; lost after a restart.
    tokens: Vec<Option<Secret>>,
    views: watch::Sender<RolloutView>,
    cancel: CancellationToken,
    changes: SelectAll<BoxStream<'static, Change>>,
}

impl Run {
    pub fn new(
        deployments: Deployments,
        journal: Arc<dyn RolloutJournal>,
        record: RolloutRecord,
        tokens: Vec<Option<Secret>>,
        views: watch::Sender<RolloutView>,
        cancel: CancellationToken,
    ) -> Self {
        Self { deployments, journal, record, tokens, views, cancel, changes: SelectAll::new() }
    }

    /// Runs the rollout to its end. Returns an error only if recording failed. Nothing more is done then, and the next
    /// start of the controller resumes the rollout.
    pub async fn run(mut self) -> Result<()> {
        self.take_up_begun().await?;
        if self.cancel.is_cancelled() {
            self.call_off().await?;
        }
        loop {
            let view = &self.record.view;
            match rule::next(&view.states(), view.limits(), view.cancel_requested) {
                Next::Begin(places) => {
                    for at in places {
                        self.begin(at).await?;
                    }
                }
                Next::Skip(places) => {
                    self.record(|view| {
                        places.iter().for_each(|at| view.members[*at].state = MemberState::Skipped);
                    })
                    .await?;
                }
                Next::Await => self.await_change().await?,
                Next::End(state) => return self.end(state).await,
            }
        }
    }

    /// Follows the members that were started before a restart: their deployments are known.
    async fn take_up_begun(&mut self) -> Result<()> {
        for at in 0..self.record.members.len() {
            if self.record.view.members[at].state.is_final() {
                continue;
            }
            match self.deployments.watch(&self.record.members[at].0).await {
                Ok(views) => self.follow(at, views).await?,
                Err(error) if error.code() == ErrorCode::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn begin(&mut self, at: usize) -> Result<()> {
        let (id, spec) = self.record.members[at].clone();
        let token = self.tokens[at].take();
        let begun = match (&spec.tunnel, &token) {
            (TunnelSource::Argument, None) => Err(Error::new(
                ErrorCode::Cancelled,
                "the controller was started anew before its turn, and a tunnel token that was given as an \
                 argument is not stored",
            )
            .remedy("give the tunnel token once more")),
            _ => self.deployments.begin_as(id.clone(), spec, token).await,
        };
        match begun {
            Ok(_) => {
                let views = self.deployments.watch(&id).await?;
                self.follow(at, views).await
            }
            Err(error) if error.code() == ErrorCode::Storage => Err(error),
            Err(error) => self.record(|view| view.members[at].refuse(&error)).await,
        }
    }

    async fn follow(&mut self, at: usize, views: watch::Receiver<DeploymentView>) -> Result<()> {
        let now = views.borrow().clone();
        self.record(|view| view.members[at].take(&now)).await?;
        if !now.state.is_final() {
            self.changes.push(changes(at, views));
        }
        Ok(())
    }

    async fn await_change(&mut self) -> Result<()> {
        let called_off = self.record.view.cancel_requested;
        let changed = tokio::select! {
            biased;
            () = self.cancel.cancelled(), if !called_off => return self.call_off().await,
            changed = self.changes.next() => changed,
        };
        let Some((at, Some(now))) = changed else {
            return Err(Error::new(ErrorCode::Storage, "a member's deployment stopped without an end"));
        };
        let mut member = self.record.view.members[at].clone();
        member.take(&now);
        let ended = member.state.is_final();
        let change = |view: &mut RolloutView| view.members[at] = member;
        match ended {
            true => self.record(change).await,
            // Published, not recorded: the deployment has its own record.
            false => {
                self.show(change);
                Ok(())
            }
        }
    }

    /// Cancels the rollout. The cancellation is recorded first, so that it holds after a restart.
    async fn call_off(&mut self) -> Result<()> {
        self.record(|view| view.cancel_requested = true).await?;
        let running = self.record.view.members.iter().filter(|one| one.state == MemberState::Running);
        let ids: Vec<_> = running.filter_map(|one| one.deployment_id.clone()).collect();
        let called = join_all(ids.iter().map(|id| self.deployments.cancel(id))).await;
        called.into_iter().collect::<Result<Vec<_>>>().map(drop)
    }

    async fn end(&mut self, state: RolloutState) -> Result<()> {
        self.record(|view| view.state = state).await?;
        let view = &self.record.view;
        tracing::info!(rollout = %view.rollout_id, state = %view.state, summary = %view.summary, "rollout ended");
        Ok(())
    }

    async fn record(&mut self, change: impl FnOnce(&mut RolloutView)) -> Result<()> {
        change(&mut self.record.view);
        self.record.view.touch(now_ms());
        self.journal.put_rollout(&self.record).await?;
        self.views.send_replace(self.record.view.clone());
        Ok(())
    }

    fn show(&mut self, change: impl FnOnce(&mut RolloutView)) {
        change(&mut self.record.view);
        self.record.view.touch(now_ms());
        self.views.send_replace(self.record.view.clone());
    }
}

/// Streams a deployment's views from the next one on; the last view contains its end.
fn changes(at: usize, views: watch::Receiver<DeploymentView>) -> BoxStream<'static, Change> {
    stream::unfold(Some(views), move |views| async move {
        let mut views = views?;
        // The deployment may have ended before the stream was polled.
        if !views.borrow().state.is_final() && views.changed().await.is_err() {
            return Some(((at, None), None));
        }
        let now = views.borrow_and_update().clone();
        let rest = (!now.state.is_final()).then_some(views);
        Some(((at, Some(now)), rest))
    })
    .boxed()
}
