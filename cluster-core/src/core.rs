//! CONTRACT (bodies come from main): the handle that every surface uses.
#![allow(clippy::todo, unused_variables, clippy::unused_async)]

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::peer::{DrainView, OnDeadline, PeerStatus, PeerView, Role},
    config::Settings,
    deploy::{ApprovedHostView, DeploymentRequest, DeploymentView, HostKeyView, Origin, PlanView},
    error::Result,
    execution::{
        manifest::ExecutionRequest,
        view::{EventView, ExecutionView},
    },
    ids::{ClusterId, DeploymentId, ExecutionId, NodeId, Tag},
    store::DataDirectory,
};

#[derive(Debug, Clone)]
pub struct Core {}

#[derive(Debug, Clone, Default)]
pub struct PeerFilter {
    pub status: Option<PeerStatus>,
    pub role: Option<Role>,
    pub tags: Vec<Tag>,
}

#[derive(Debug, Clone, Copy)]
pub struct DrainOrder {
    pub deadline: Duration,
    pub on_deadline: OnDeadline,
}

/// An enrolment token for its bearer: shown once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolmentGrant {
    pub token: String,
    pub expires_at: String,
    pub node_id: Option<NodeId>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Subsystem {
    pub name: String,
    pub ok: bool,
    pub critical: bool,
    pub detail: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HealthView {
    pub ready: bool,
    pub uptime_seconds: u64,
    pub version: String,
    pub node_id: NodeId,
    pub cluster_id: Option<ClusterId>,
    pub role: Role,
    pub subsystems: Vec<Subsystem>,
}

impl Core {
    /// Starts everything the settings ask for: controller, worker or both.
    pub async fn start(settings: Settings, data: Arc<DataDirectory>) -> Result<Core> {
        todo!()
    }
    /// Stops intake, says goodbye, waits for tasks (bounded).
    pub async fn shutdown(&self) {
        todo!()
    }
    pub async fn health(&self) -> HealthView {
        todo!()
    }
    pub fn node_id(&self) -> &NodeId {
        todo!()
    }
    pub fn role(&self) -> Role {
        todo!()
    }

    // Controller verbs; on a plain worker they fail with FailedPrecondition.
    pub fn cluster_id(&self) -> Result<ClusterId> {
        todo!()
    }
    /// All matching peers, ordered by node id (the surface pages).
    pub async fn peers(&self, filter: PeerFilter) -> Result<Vec<PeerView>> {
        todo!()
    }
    pub async fn drain(&self, node_id: &NodeId, order: DrainOrder) -> Result<DrainView> {
        todo!()
    }
    pub async fn drain_status(&self, node_id: &NodeId) -> Result<DrainView> {
        todo!()
    }
    /// Waits until the drain is done (Drained) or the time is over, then says how it stands.
    pub async fn await_drain(&self, node_id: &NodeId, wait: Duration) -> Result<DrainView> {
        todo!()
    }
    pub async fn resume(&self, node_id: &NodeId) -> Result<PeerView> {
        todo!()
    }
    pub async fn create_enrolment_token(
        &self,
        node_id: Option<NodeId>,
        ttl: Duration,
    ) -> Result<EnrolmentGrant> {
        todo!()
    }

    pub async fn submit(&self, request: ExecutionRequest) -> Result<ExecutionView> {
        todo!()
    }
    pub async fn execution(&self, id: &ExecutionId) -> Result<ExecutionView> {
        todo!()
    }
    /// Newest first.
    pub async fn executions(&self, limit: u32) -> Result<Vec<ExecutionView>> {
        todo!()
    }
    pub async fn execution_events(
        &self,
        id: &ExecutionId,
        after_sequence: u64,
        limit: u32,
    ) -> Result<Vec<EventView>> {
        todo!()
    }
    /// Waits until there is an event after `after_sequence`, the state is settled, or time is over.
    pub async fn await_execution_change(
        &self,
        id: &ExecutionId,
        after_sequence: u64,
        wait: Duration,
    ) -> Result<ExecutionView> {
        todo!()
    }
    /// Waits until the state is settled or time is over.
    pub async fn await_execution_end(&self, id: &ExecutionId, wait: Duration) -> Result<ExecutionView> {
        todo!()
    }
    pub async fn cancel_execution(&self, id: &ExecutionId, reason: &str) -> Result<ExecutionView> {
        todo!()
    }

    pub async fn plan_deployment(&self, request: DeploymentRequest, origin: Origin) -> Result<PlanView> {
        todo!()
    }
    pub async fn deploy(&self, request: DeploymentRequest, origin: Origin) -> Result<DeploymentView> {
        todo!()
    }
    pub async fn deployment(&self, id: &DeploymentId) -> Result<DeploymentView> {
        todo!()
    }
    /// Newest first.
    pub async fn deployments(&self, limit: u32) -> Result<Vec<DeploymentView>> {
        todo!()
    }
    /// Waits until the deployment changed since `since_event`, is settled, or time is over.
    pub async fn await_deployment_change(
        &self,
        id: &DeploymentId,
        since_event: u64,
        wait: Duration,
    ) -> Result<DeploymentView> {
        todo!()
    }

    pub async fn probe_host(&self, host: &str, port: u16) -> Result<HostKeyView> {
        todo!()
    }
    /// Pins the key with this fingerprint ("SHA256:…") that the host offers now.
    pub async fn approve_host(&self, host: &str, port: u16, fingerprint: &str) -> Result<ApprovedHostView> {
        todo!()
    }
    pub async fn approved_hosts(&self) -> Result<Vec<ApprovedHostView>> {
        todo!()
    }
    pub async fn forget_host(&self, host: &str, port: u16) -> Result<()> {
        todo!()
    }
}
