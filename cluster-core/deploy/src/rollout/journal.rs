//! A rollout as it is stored: without secrets, and enough to go on after a restart.

use aegis_types::{
    error::Result,
    ids::{DeploymentId, RolloutId},
};
use futures::future::BoxFuture;

use super::RolloutView;
use crate::DeploymentSpec;

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct RolloutRecord {
    pub view: RolloutView,
    /// In the view's order: under which id each is begun, and as what.
    pub members: Vec<(DeploymentId, DeploymentSpec)>,
    pub idempotency_key: Option<String>,
    pub request_digest: String,
}

/// The store, as a rollout sees it. What returned `Ok` is durable.
pub trait RolloutJournal: Send + Sync {
    fn put_rollout<'a>(&'a self, record: &'a RolloutRecord) -> BoxFuture<'a, Result<()>>;
    fn rollout<'a>(&'a self, id: &'a RolloutId) -> BoxFuture<'a, Result<Option<RolloutRecord>>>;
    fn rollout_by_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<RolloutRecord>>>;
    /// Newest first.
    fn rollouts(&self, limit: u32) -> BoxFuture<'_, Result<Vec<RolloutRecord>>>;
    /// Returns the rollouts whose state is not final.
    fn unfinished_rollouts(&self) -> BoxFuture<'_, Result<Vec<RolloutRecord>>>;
}
