//! Calls of the controller to the node that runs an execution.
//!
//! [`RemoteWorker`] makes them over the network. The supervisor of a hybrid node implements [`NodeWorker`] itself, so that
//! the controller needs no crate of the worker.

use std::{fmt, sync::Arc};

use aegis_types::{
    error::Result,
    execution::{
        artifacts::Collected,
        content::{Content, ImageOffer},
        order::{Attempt, Order},
        view::EventView,
    },
    ids::ExecutionId,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::io::AsyncRead;

use crate::{Sealer, worker_client::WorkerClient};

/// Artifacts of an ended execution, and their bytes.
pub type ArtifactStream = (Collected, BoxStream<'static, Result<Bytes>>);

/// A node that can run executions.
#[async_trait]
pub trait NodeWorker: fmt::Debug + Send + Sync {
    /// Whether the worker runs in this process, with the same container engine.
    fn is_local(&self) -> bool;

    /// Assigns an attempt to the node and returns its events after `after_sequence`.
    ///
    /// The call is idempotent: a node that runs the attempt already returns its events.
    ///
    /// # Errors
    /// `ContentMissing` if the node needs a workspace or an image first (see [`NodeWorker::put_content`]).
    async fn assign(
        &self,
        order: Order,
        after_sequence: u64,
        offer: Option<&ImageOffer>,
    ) -> Result<BoxStream<'static, Result<EventView>>>;

    /// Sends a workspace or an image. Returns once the node has stored all bytes and verified their digest.
    async fn put_content(&self, content: Content, reader: Box<dyn AsyncRead + Send + Unpin>) -> Result<()>;

    /// Returns the artifacts of an ended execution from `offset` on; `None` if the node has no artifacts.
    async fn artifacts(
        &self,
        execution_id: &ExecutionId,
        attempt: u32,
        offset: u64,
    ) -> Result<Option<ArtifactStream>>;

    /// Cancels an attempt. Returns `false` if the attempt does not run on the node.
    async fn cancel(&self, execution_id: &ExecutionId, attempt: u32, reason: &str) -> Result<bool>;

    /// Releases attempts: the node stops those that run and deletes those that have ended.
    async fn release(&self, attempts: &[Attempt]) -> Result<()>;
}

/// A worker that is called over its connection.
#[derive(Debug, Clone)]
pub struct RemoteWorker {
    pub client: WorkerClient,
    pub sealer: Arc<Sealer>,
}

#[async_trait]
impl NodeWorker for RemoteWorker {
    fn is_local(&self) -> bool {
        false
    }

    async fn assign(
        &self,
        order: Order,
        after_sequence: u64,
        offer: Option<&ImageOffer>,
    ) -> Result<BoxStream<'static, Result<EventView>>> {
        Ok(self.client.forward(&self.sealer, &order, after_sequence, offer).await?.boxed())
    }

    async fn put_content(&self, content: Content, reader: Box<dyn AsyncRead + Send + Unpin>) -> Result<()> {
        self.client.put_content(&self.sealer, content, reader).await
    }

    async fn artifacts(
        &self,
        execution_id: &ExecutionId,
        attempt: u32,
        offset: u64,
    ) -> Result<Option<ArtifactStream>> {
        let found = self.client.artifacts(&self.sealer, execution_id, attempt, offset).await?;
        Ok(found.map(|(collected, pieces)| (collected, pieces.boxed())))
    }

    async fn cancel(&self, execution_id: &ExecutionId, attempt: u32, reason: &str) -> Result<bool> {
        self.client.cancel(&self.sealer, execution_id, attempt, reason).await
    }

    async fn release(&self, attempts: &[Attempt]) -> Result<()> {
        self.client.release(&self.sealer, attempts).await
    }
}
