//! Calls of the controller to the worker of its own process.

use std::io;

use aegis_rpc::node_worker::{ArtifactStream, NodeWorker};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        content::{Content, ImageOffer, PIECE_BYTES},
        order::{Attempt, Order},
        view::EventView,
    },
    ids::ExecutionId,
};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::Supervisor;
use crate::artifacts;

#[async_trait]
impl NodeWorker for Supervisor {
    fn is_local(&self) -> bool {
        true
    }

    async fn assign(
        &self,
        order: Order,
        after_sequence: u64,
        offer: Option<&ImageOffer>,
    ) -> Result<BoxStream<'static, Result<EventView>>> {
        self.require(&order, after_sequence, offer).await?;
        Ok(self.accept(order, after_sequence).await?.boxed())
    }

    async fn put_content(&self, content: Content, reader: Box<dyn AsyncRead + Send + Unpin>) -> Result<()> {
        let unread =
            |e: io::Error| Error::new(ErrorCode::Storage, "what is to be sent cannot be read").source(e);
        let pieces = ReaderStream::with_capacity(reader, PIECE_BYTES).map_err(unread).boxed();
        self.incoming().receive(content, pieces).await
    }

    async fn artifacts(
        &self,
        execution_id: &ExecutionId,
        attempt: u32,
        offset: u64,
    ) -> Result<Option<ArtifactStream>> {
        let Some((collected, path)) = Supervisor::artifacts(self, execution_id, attempt)? else {
            return Ok(None);
        };
        let pieces = artifacts::read(&collected, &path, offset).await?;
        Ok(Some((collected, pieces.boxed())))
    }

    async fn cancel(&self, execution_id: &ExecutionId, attempt: u32, reason: &str) -> Result<bool> {
        Supervisor::cancel(self, execution_id, attempt, reason)
    }

    async fn release(&self, attempts: &[Attempt]) -> Result<()> {
        Supervisor::release(self, attempts).await
    }
}
