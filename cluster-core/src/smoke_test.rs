//! A first container on the controller's own node, with no registry: the image is made from this
//! executable, as for a host that is deployed.

use std::time::Duration;

use aegis_controller::executions::Executions;
use aegis_engine::{
    Engine,
    node_image::{ImageSource, NodeImage},
};
use aegis_types::{
    error::{Error, Result},
    execution::{
        request::{ExecutionRequest, ResourceRequest, Submitter},
        view::ExecutionView,
    },
    ids::NodeId,
};

/// A container of our own executable prints its version and ends.
const TIMEOUT_SECS: u64 = 60;
const WAIT: Duration = Duration::from_secs(TIMEOUT_SECS + 15);

/// Runs the executable's version command in a container of `image` on one node, to its end.
pub async fn run_version(executions: &Executions, node_id: &NodeId, image: &str) -> Result<ExecutionView> {
    let request = ExecutionRequest {
        image: Some(image.to_owned()),
        command: vec!["/aegis".to_owned(), "--version".to_owned()],
        node_id: Some(node_id.clone()),
        resources: ResourceRequest { cpu: Some(0.1), memory_mb: Some(128), ..Default::default() },
        timeout_seconds: Some(TIMEOUT_SECS),
        queue: true,
        ..Default::default()
    };
    let id = executions.submit(request, Submitter::this_process()).await?.execution_id;
    executions.wait(&id, WAIT, |view| view.state.is_settled()).await
}

/// The same here, after the image was given to this machine's engine.
pub async fn run_here(engine: &Engine, executions: &Executions, node_id: &NodeId) -> Result<ExecutionView> {
    engine.info().await?;
    let image = tokio::task::spawn_blocking(|| NodeImage::build(&ImageSource::Own))
        .await
        .map_err(|e| Error::internal("the task that makes node images died").source(e))??;
    if !engine.has_image(&image.reference).await? {
        engine.load_image(image.reader()).await?;
    }
    run_version(executions, node_id, &image.reference).await
}
