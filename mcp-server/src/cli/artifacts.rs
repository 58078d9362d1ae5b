//! Unpacks the artifacts of an execution into a person's directory.

use std::{io::Seek as _, path::PathBuf};

use cluster_core::{
    content::{BOUNDS, unpack::unpack},
    types::{
        error::{Error, ErrorCode, Result},
        execution::artifacts::Artifacts,
        ids::ExecutionId,
    },
};

use super::{Context, client::Client, segment};

/// Destination of artifacts, and whether files there may be replaced.
#[derive(Debug)]
pub struct Unpack {
    pub into: PathBuf,
    pub overwrite: bool,
}

impl Unpack {
    pub async fn run(
        self,
        context: &Context,
        client: &Client,
        id: &ExecutionId,
        artifacts: &Artifacts,
    ) -> Result<()> {
        for path in &artifacts.missing {
            context.output.say(&format!("there was nothing at {path}"));
        }
        if let Some(problem) = &artifacts.problem {
            return Err(Error::new(ErrorCode::NotFound, format!("no artifacts: {problem}")));
        }
        // Unnamed file, which disappears with this process in any case.
        let unwritable = |e: std::io::Error| Error::new(ErrorCode::Storage, "no temporary file").source(e);
        let mut archive = tempfile::tempfile().map_err(unwritable)?;
        client.download(&format!("/v1/executions/{}/artifacts", segment(id.as_str())), &mut archive).await?;
        archive.rewind().map_err(unwritable)?;
        let into = self.into.clone();
        let unpacking = tokio::task::spawn_blocking(move || unpack(archive, &into, self.overwrite, &BOUNDS));
        let counts = unpacking.await.map_err(|e| Error::internal("unpacking ended").source(e))??;
        let files = if counts.entries == 1 { "file" } else { "files" };
        context.output.say(&format!("{} {files} in {}", counts.entries, self.into.display()));
        Ok(())
    }
}
