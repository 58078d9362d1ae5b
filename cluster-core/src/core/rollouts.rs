//! The core's verbs on rollouts: many hosts deployed by one call.

use std::time::Duration;

use aegis_deploy::{RolloutPlan, RolloutRequest, RolloutView};
use aegis_types::{error::Result, ids::RolloutId, principal::Origin};
use tokio::sync::watch;

use super::Core;

impl Core {
    pub async fn plan_rollout(&self, request: RolloutRequest, origin: Origin) -> Result<RolloutPlan> {
        self.controller()?.rollouts.plan(&request, origin).await
    }

    /// Checks that a rollout would not be refused before its first host.
    pub async fn check_rollout(&self, request: &RolloutRequest, origin: Origin) -> Result<()> {
        self.controller()?.rollouts.check(request, origin).await
    }

    pub async fn roll_out(&self, request: RolloutRequest, origin: Origin) -> Result<RolloutView> {
        self.controller()?.rollouts.start(&request, origin).await
    }

    pub async fn rollout(&self, id: &RolloutId) -> Result<RolloutView> {
        self.controller()?.rollouts.get(id).await
    }

    /// Newest first.
    pub async fn rollouts(&self, limit: u32) -> Result<Vec<RolloutView>> {
        self.controller()?.rollouts.list(limit).await
    }

    /// The rollout as it is, and as it changes.
    pub async fn watch_rollout(&self, id: &RolloutId) -> Result<watch::Receiver<RolloutView>> {
        self.controller()?.rollouts.watch(id).await
    }

    /// Waits until the rollout changed since `since_event`, is final, or time is over.
    pub async fn await_rollout_change(
        &self,
        id: &RolloutId,
        since_event: u64,
        wait: Duration,
    ) -> Result<RolloutView> {
        let mut views = self.controller()?.rollouts.watch(id).await?;
        let changed = views.wait_for(|view| view.event > since_event || view.state.is_final());
        // The time limit and the end of the rollout's task both leave the newest view behind.
        let _ = tokio::time::timeout(wait, changed).await;
        let view = views.borrow().clone();
        Ok(view)
    }

    /// Begins nothing more and cancels what runs; the answer may still be running.
    pub async fn cancel_rollout(&self, id: &RolloutId) -> Result<RolloutView> {
        self.controller()?.rollouts.cancel(id).await
    }
}
