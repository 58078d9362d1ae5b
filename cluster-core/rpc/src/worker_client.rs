//! The controller's calls to a worker, sealed with the controller's key in the worker's session.

use std::time::Duration;

use aegis_config::layers::MergedConfig;
use aegis_proto::aegis::{
    agent::{v1 as agent, v1::worker_service_client::WorkerServiceClient},
    cluster::{v1 as pb, v1::node_cluster_service_client::NodeClusterServiceClient},
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        content::ImageOffer,
        manifest::Manifest,
        order::{Attempt, Order},
        view::EventView,
    },
    ids::{ExecutionId, NodeId},
};
use futures::{Stream, StreamExt as _};
use prost::Message as _;

use super::{
    Sealer,
    paced_channel::PacedChannel,
    status::from_status,
    wire::{Connector, MESSAGE_BYTES_MAX},
};
use crate::event_encoding;

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A worker reached over the network. Connects with the first call and again after a loss.
#[derive(Debug, Clone)]
pub struct WorkerClient {
    controller_id: NodeId,
    channel: PacedChannel,
}

impl WorkerClient {
    pub fn new(controller_id: NodeId, dial: Connector) -> Self {
        Self { controller_id, channel: PacedChannel::new(dial) }
    }

    /// Returns the connection of the calls.
    pub fn channel(&self) -> PacedChannel {
        self.channel.clone()
    }

    /// Starts an order or attaches to it. Returns its events from a number on.
    pub async fn forward(
        &self,
        sealer: &Sealer,
        order: &Order,
        after_sequence: u64,
        offer: Option<&ImageOffer>,
    ) -> Result<impl Stream<Item = Result<EventView>> + Send + use<>> {
        let manifest_json = serde_json::to_string(&order.manifest)
            .map_err(|e| Error::internal("a manifest cannot be written").source(e))?;
        let inner = pb::ForwardExecutionInner {
            execution_id: order.execution_id.to_string(),
            input: order.input.clone(),
            originating_node_id: self.controller_id.to_string(),
            attempt: order.attempt,
            manifest_json,
            after_sequence,
            secret_env: order.secrets.0.clone().into_iter().collect(),
            registry_login: order.login.as_ref().map(|login| pb::RegistryLogin {
                username: login.username.clone(),
                password: login.password.reveal().to_owned(),
            }),
            image_offer: offer.map(|offer| pb::ImageOffer {
                digest: offer.digest.clone(),
                architecture: offer.architecture.clone(),
                exact: offer.exact,
            }),
            ..Default::default()
        };
        let request = sealer.seal(inner, |e| pb::ForwardExecutionRequest { envelope: Some(e) })?;
        check_order_size(request.get_ref())?;
        let mut client = NodeClusterServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let events = in_time(client.forward_execution(request)).await?;
        Ok(events
            .map(|event| event.map_err(|status| from_status(&status)).and_then(event_encoding::from_wire)))
    }

    pub async fn cancel(
        &self,
        sealer: &Sealer,
        execution_id: &ExecutionId,
        attempt: u32,
        reason: &str,
    ) -> Result<bool> {
        let inner = agent::CancelExecutionInner {
            execution_id: execution_id.to_string(),
            attempt,
            reason: reason.to_owned(),
            seal: None,
        };
        let request = sealer.seal(inner, |e| agent::CancelExecutionRequest { envelope: Some(e) })?;
        let answer =
            in_time(WorkerServiceClient::new(self.channel.clone()).cancel_execution(request)).await?;
        Ok(answer.cancelling)
    }

    /// Requests a heartbeat now.
    pub async fn nudge(&self, sealer: &Sealer) -> Result<()> {
        let inner = agent::NudgeInner { seal: None };
        let request = sealer.seal(inner, |e| agent::NudgeRequest { envelope: Some(e) })?;
        in_time(WorkerServiceClient::new(self.channel.clone()).nudge(request)).await?;
        Ok(())
    }

    /// Pushes a configuration. Returns `false` if the node keeps its current configuration.
    pub async fn push_config(
        &self,
        sealer: &Sealer,
        node_id: &NodeId,
        config: &MergedConfig,
    ) -> Result<bool> {
        let inner = pb::PushConfigInner {
            target_node_id: node_id.to_string(),
            config_version: config.version.clone(),
            config_payload: config.json.to_string().into_bytes(),
            seal: None,
        };
        let request = sealer.seal(inner, |e| pb::PushConfigRequest { envelope: Some(e) })?;
        let answer =
            in_time(NodeClusterServiceClient::new(self.channel.clone()).push_config(request)).await?;
        Ok(answer.accepted)
    }

    pub async fn release(&self, sealer: &Sealer, attempts: &[Attempt]) -> Result<()> {
        let attempts = attempts.iter().map(|attempt| agent::ExecutionAttempt {
            execution_id: attempt.execution_id.to_string(),
            attempt: attempt.number,
        });
        let inner = agent::ReleaseExecutionsInner { attempts: attempts.collect(), seal: None };
        let request = sealer.seal(inner, |e| agent::ReleaseExecutionsRequest { envelope: Some(e) })?;
        in_time(WorkerServiceClient::new(self.channel.clone()).release_executions(request)).await?;
        Ok(())
    }
}

pub(super) async fn in_time<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(&status)),
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            format!("the node did not answer in {} s", CALL_TIMEOUT.as_secs()),
        )),
    }
}

/// Bytes of an order apart from its manifest, input and secrets: token, seal, signature, image offer.
const ORDER_EXTRA_BYTES: usize = 16 * 1024;
/// Bytes of a variable apart from its name and value.
const VARIABLE_EXTRA_BYTES: usize = 16;

/// Rejects a submission whose order fits into no message. `secret_bytes` counts the values of its secrets.
pub fn check_order_fits(manifest: &Manifest, input: &str, secret_bytes: usize) -> Result<()> {
    let json = serde_json::to_string(manifest)
        .map_err(|e| Error::internal("a manifest cannot be written").source(e))?;
    let names = manifest.secret_env.keys().map(|name| name.len() + VARIABLE_EXTRA_BYTES).sum::<usize>();
    let bytes = json.len() + input.len() + names + secret_bytes + ORDER_EXTRA_BYTES;
    if bytes <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the order would have {bytes} bytes with its secrets; at most {MESSAGE_BYTES_MAX} are possible"
    ))
    .remedy("send large data as a workspace, or fewer variables"))
}

/// Rejects an order that is too large to send; otherwise the node would seem unreachable.
fn check_order_size(request: &pb::ForwardExecutionRequest) -> Result<()> {
    let bytes = request.encoded_len();
    if bytes <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    let why = format!("the order has {bytes} bytes with its secrets, more than {MESSAGE_BYTES_MAX}");
    Err(Error::invalid(why).remedy("send large data as a workspace, or fewer variables"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::execution::request::{ExecutionRequest, INPUT_BYTES_MAX, Submission};

    #[test]
    fn submission_beyond_a_message_is_refused_with_its_secrets() {
        let env = (0..100).map(|n| (format!("V{n}"), "secret:large".to_owned())).collect();
        let request = ExecutionRequest { image: Some("busybox".into()), env, ..Default::default() };
        let manifest = Submission::check(request).unwrap().manifest;
        check_order_fits(&manifest, "", 100 * 1024).unwrap();
        let error = check_order_fits(&manifest, "", 100 * 60 * 1024).unwrap_err();
        assert_eq!(error.code(), aegis_types::error::ErrorCode::InvalidArgument);
        // The largest plain-text input and arguments fit; their escapes may not.
        let largest = |byte: &str| {
            let words = vec![byte.repeat(100 * 1024); 10];
            let request =
                ExecutionRequest { image: Some("busybox".into()), args: words, ..Default::default() };
            check_order_fits(&Submission::check(request).unwrap().manifest, &"x".repeat(INPUT_BYTES_MAX), 0)
        };
        largest("x").unwrap();
        assert!(largest("\u{1}").is_err());
    }

    #[test]
    fn order_beyond_a_message_is_refused_as_invalid() {
        let request = |bytes| pb::ForwardExecutionRequest {
            envelope: Some(pb::SealNodeEnvelope { payload: vec![0; bytes], ..Default::default() }),
        };
        check_order_size(&request(MESSAGE_BYTES_MAX - 1024)).unwrap();
        let error = check_order_size(&request(MESSAGE_BYTES_MAX)).unwrap_err();
        assert_eq!(error.code(), aegis_types::error::ErrorCode::InvalidArgument);
    }
}
