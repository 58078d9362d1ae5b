//! Content and artifacts of executions on their worker.

use std::path::PathBuf;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{artifacts::Collected, content::ImageOffer, order::Order},
    ids::ExecutionId,
};

use super::Supervisor;
use crate::{artifacts, incoming::ContentReceiver};

/// An engine that does not answer in time before anything was journaled is the engine's failure: nothing runs, and
/// the execution may be placed elsewhere.
fn of_engine(error: Error) -> Error {
    match error.code() {
        ErrorCode::Timeout => Error::new(ErrorCode::Engine, error.message().to_owned()).source(error),
        _ => error,
    }
}

impl Supervisor {
    pub fn incoming(&self) -> &ContentReceiver {
        &self.0.incoming
    }

    /// Before an order is taken for the first time: `ContentMissing` where it needs what is not here.
    pub async fn require(
        &self,
        order: &Order,
        after_sequence: u64,
        offer: Option<&ImageOffer>,
    ) -> Result<()> {
        let is_known = self.0.runs().contains_key(&order.execution_id);
        match is_known || after_sequence > 0 {
            true => Ok(()),
            false => self.incoming().require(order, offer).await.map_err(of_engine),
        }
    }

    /// Returns the artifacts of an ended execution and their file.
    pub fn artifacts(
        &self,
        execution_id: &ExecutionId,
        attempt: u32,
    ) -> Result<Option<(Collected, PathBuf)>> {
        let run = self.0.runs().get(execution_id).cloned();
        let run = run.filter(|run| run.journaled.order.attempt == attempt);
        run.map_or(Ok(None), |run| artifacts::collected(&run.directory))
    }

    /// Claims the content of journaled orders and removes the rest.
    pub(super) fn claim_content(&self) -> Result<()> {
        let kept = self.incoming().kept();
        for run in self.0.runs().values() {
            let order = &run.journaled.order;
            if let Some(note) = &order.manifest.workspace
                && let Err(error) = kept.claim(&note.digest, &order.execution_id)
            {
                tracing::warn!(execution_id = %order.execution_id, error = %error.chain(), "its workspace is gone");
            }
        }
        kept.sweep(None)
    }
}
