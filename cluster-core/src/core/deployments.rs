//! The core's verbs on deployments: what is done with hosts, and how it is followed and cancelled.

use std::time::Duration;

use aegis_deploy::{
    DeploymentFilter, DeploymentRequest, DeploymentView, LogsAsked, NodeOrder, PlanView, Removal,
    StoredRelease,
};
use aegis_types::{
    clock::rfc3339,
    error::Result,
    ids::{DeploymentId, NodeId},
    principal::Origin,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Core;

/// A release that a node's host keeps.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseView {
    pub deployment_id: DeploymentId,
    pub current: bool,
    /// RFC 3339; absent when it never was good, and then it cannot be gone back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_at: Option<String>,
    pub services: Vec<String>,
    /// References of its images.
    pub images: Vec<String>,
}

impl From<StoredRelease> for ReleaseView {
    fn from(kept: StoredRelease) -> Self {
        Self {
            deployment_id: kept.note.deployment_id,
            current: kept.current,
            good_at: kept.ready.as_ref().map(|ready| rfc3339(ready.at_ms)),
            services: kept.note.services,
            images: kept.note.goal.map(|goal| goal.images).unwrap_or_default(),
        }
    }
}

impl Core {
    pub async fn plan_deployment(&self, request: DeploymentRequest, origin: Origin) -> Result<PlanView> {
        self.controller()?.deployments.plan(&request, origin).await
    }

    pub async fn deploy(&self, request: DeploymentRequest, origin: Origin) -> Result<DeploymentView> {
        self.controller()?.deployments.start(&request, origin).await
    }

    /// Whether a deployment, rollback or removal was begun with this idempotency key.
    pub async fn knows_deployment_key(&self, key: Option<&str>) -> Result<bool> {
        let Some(key) = key else { return Ok(false) };
        self.controller()?.deployments.knows_key(key).await
    }

    /// Returns whether a rollout with this key exists. Keys of rollouts and of deployments are independent.
    pub async fn knows_rollout_key(&self, key: Option<&str>) -> Result<bool> {
        let Some(key) = key else { return Ok(false) };
        self.controller()?.rollouts.knows_key(key).await
    }

    pub async fn deployment(&self, id: &DeploymentId) -> Result<DeploymentView> {
        self.controller()?.deployments.get(id).await
    }

    /// Newest first, and how many there are in all.
    pub async fn deployments(&self, filter: DeploymentFilter) -> Result<(Vec<DeploymentView>, usize)> {
        self.controller()?.deployments.list(filter).await
    }

    /// The deployment as it is, and as it changes.
    pub async fn watch_deployment(&self, id: &DeploymentId) -> Result<watch::Receiver<DeploymentView>> {
        self.controller()?.deployments.watch(id).await
    }

    /// Waits until the deployment changed since `since_event`, is final, or time is over.
    pub async fn await_deployment_change(
        &self,
        id: &DeploymentId,
        since_event: u64,
        wait: Duration,
    ) -> Result<DeploymentView> {
        let mut views = self.controller()?.deployments.watch(id).await?;
        let changed = views.wait_for(|view| view.event > since_event || view.state.is_final());
        // The time limit and the end of the deployment's task both leave the newest view behind.
        let _ = tokio::time::timeout(wait, changed).await;
        let view = views.borrow().clone();
        Ok(view)
    }

    /// Calls a deployment off; the answer may still be running, and is followed like any other.
    pub async fn cancel_deployment(&self, id: &DeploymentId) -> Result<DeploymentView> {
        self.controller()?.deployments.cancel(id).await
    }

    /// Has a node run an earlier release again.
    pub async fn roll_back(
        &self,
        order: NodeOrder,
        to: Option<DeploymentId>,
        origin: Origin,
    ) -> Result<DeploymentView> {
        self.controller()?.deployments.roll_back(order, to, origin).await
    }

    /// Drains a deployed node, takes its stack down, and forgets it.
    pub async fn remove_edge_node(
        &self,
        order: NodeOrder,
        removal: Removal,
        origin: Origin,
    ) -> Result<DeploymentView> {
        self.controller()?.deployments.remove(order, removal, origin).await
    }

    /// Refuses a node that cannot be rolled back or removed: an unknown one, or one that joined by hand.
    pub async fn check_deployed(&self, node_id: &NodeId) -> Result<()> {
        self.controller()?.deployments.check_deployed(node_id).await
    }

    /// Newest first.
    pub async fn releases(&self, node_id: &NodeId, origin: Origin) -> Result<Vec<ReleaseView>> {
        let mut kept = self.controller()?.deployments.releases(node_id, origin).await?;
        kept.sort_by_key(|release| std::cmp::Reverse(release.ready.as_ref().map(|ready| ready.at_ms)));
        Ok(kept.into_iter().map(ReleaseView::from).collect())
    }

    /// Returns the last log lines of a deployed node's services. The text is the host's and untrusted.
    pub async fn node_logs(&self, node_id: &NodeId, asked: &LogsAsked, origin: Origin) -> Result<String> {
        self.controller()?.deployments.logs(node_id, asked, origin).await
    }
}
