//! The controller's calls that transfer content: to a worker before an execution, and from it afterwards.

use std::{io, time::Duration};

use aegis_proto::aegis::agent::{v1 as agent, v1::worker_service_client::WorkerServiceClient};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        artifacts::{Artifacts, Collected},
        content::{Content, PIECE_BYTES},
    },
    ids::ExecutionId,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;

use super::{
    Sealer,
    status::from_status,
    wire::MESSAGE_BYTES_MAX,
    worker_client::{WorkerClient, in_time},
};

/// Time limit from the first byte to the worker's confirmation. The worker itself gives up on a sender that is silent
/// for a minute.
const SEND_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Number of pieces read ahead of the connection.
const PIECES_AHEAD: usize = 4;

impl WorkerClient {
    /// Sends content. Returns once the worker has received and verified all of it.
    pub async fn put_content(
        &self,
        sealer: &Sealer,
        content: Content,
        reader: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Result<()> {
        let (kind, reference, digest, bytes) = match content {
            Content::Workspace { digest, bytes } => {
                (agent::ContentKind::Workspace, String::new(), digest, bytes)
            }
            Content::Image { reference, digest, bytes } => {
                (agent::ContentKind::Image, reference, digest, bytes)
            }
        };
        let inner = agent::PutContentInner { kind: kind.into(), reference, digest, bytes, seal: None };
        let sealed =
            sealer.seal(inner, |e| agent::PutContentRequest { envelope: Some(e), data: Vec::new() })?;
        let (metadata, extensions, first) = sealed.into_parts();
        let (sender, messages) = mpsc::channel(PIECES_AHEAD);
        let request = tonic::Request::from_parts(metadata, extensions, ReceiverStream::new(messages));
        let reading = tokio::spawn(feed(sender, first, reader));
        let mut client = WorkerServiceClient::new(self.channel());
        let answer = tokio::time::timeout(SEND_LIMIT, client.put_content(request)).await;
        if answer.is_err() {
            reading.abort();
        }
        // Otherwise the feed has ended: its receiver is gone, or has everything.
        match (answer, reading.await) {
            (_, Ok(Err(error))) => Err(Error::new(
                ErrorCode::Storage,
                format!(
                    "what is to be sent cannot be read: {}",
                    aegis_types::text::shown(&error.to_string())
                ),
            )),
            (Ok(Ok(_)), _) => Ok(()),
            (Ok(Err(status)), _) => Err(from_status(&status)),
            (Err(_), _) => Err(Error::new(ErrorCode::Timeout, "sending content took too long")),
        }
    }

    /// Returns the artifacts of an ended execution, and a stream of their bytes from `offset` on. Returns `None` if
    /// nothing was collected.
    pub async fn artifacts(
        &self,
        sealer: &Sealer,
        execution_id: &ExecutionId,
        attempt: u32,
        offset: u64,
    ) -> Result<Option<(Collected, impl Stream<Item = Result<Bytes>> + Send + use<>)>> {
        let inner =
            agent::GetArtifactsInner { execution_id: execution_id.to_string(), attempt, offset, seal: None };
        let request = sealer.seal(inner, |e| agent::GetArtifactsRequest { envelope: Some(e) })?;
        let mut client =
            WorkerServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut answers = in_time(client.get_artifacts(request)).await?;
        let broken = || Error::new(ErrorCode::Unavailable, "the node sent no word of the artifacts");
        let first = match answers.next().await {
            Some(Ok(first)) => first,
            Some(Err(status)) => return Err(from_status(&status)),
            None => return Err(broken()),
        };
        let Some(note) = first.note else { return Ok(None) };
        let collected = Collected {
            artifacts: Artifacts {
                bytes: note.bytes,
                files: note.files,
                missing: note.missing,
                problem: (!note.problem.is_empty()).then_some(note.problem),
            },
            digest: note.digest,
        };
        let pieces = answers.map(|answer| match answer {
            Ok(message) => Ok(Bytes::from(message.data)),
            Err(status) => Err(from_status(&status)),
        });
        Ok(Some((collected, pieces)))
    }
}

/// Feeds content to a call. Ends early if the receiver is gone. A read error ends the stream too soon, and the worker
/// discards the content.
async fn feed(
    to: mpsc::Sender<agent::PutContentRequest>,
    first: agent::PutContentRequest,
    reader: Box<dyn AsyncRead + Send + Unpin>,
) -> io::Result<()> {
    let mut pieces = ReaderStream::with_capacity(reader, PIECE_BYTES);
    let mut next = Some(Ok(first));
    while let Some(message) = next {
        if to.send(message?).await.is_err() {
            return Ok(());
        }
        next = pieces
            .next()
            .await
            .map(|piece| piece.map(|data| agent::PutContentRequest { envelope: None, data: data.into() }));
    }
    Ok(())
}
