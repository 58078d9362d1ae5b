//! A worker's side of the calls that move content. The first message is sealed and has the digest. The receiver checks
//! the rest against it.

use std::path::PathBuf;

use aegis_proto::aegis::agent::v1 as agent;
use aegis_rpc::status::{from_status, to_status};
use aegis_types::{
    error::{Error, Result},
    execution::{artifacts::Collected, content::Content},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use tonic::{Status, Streaming};

use crate::artifacts;

pub type ArtifactsStream = BoxStream<'static, Result<agent::GetArtifactsResponse, Status>>;

/// Returns the content that the first message announces.
pub fn content(inner: agent::PutContentInner) -> Result<Content> {
    match inner.kind() {
        agent::ContentKind::Workspace => Ok(Content::Workspace { digest: inner.digest, bytes: inner.bytes }),
        agent::ContentKind::Image => {
            let agent::PutContentInner { reference, digest, bytes, .. } = inner;
            Ok(Content::Image { reference, digest, bytes })
        }
        agent::ContentKind::Unspecified => Err(Error::invalid("the kind of the content is not known")),
    }
}

pub fn pieces(messages: Streaming<agent::PutContentRequest>) -> BoxStream<'static, Result<Bytes>> {
    let piece = |message: Result<agent::PutContentRequest, Status>| match message {
        Ok(message) => Ok(Bytes::from(message.data)),
        Err(status) => Err(from_status(&status)),
    };
    messages.map(piece).boxed()
}

/// The note, then the file from an offset on.
pub async fn answer(found: Option<(Collected, PathBuf)>, offset: u64) -> Result<ArtifactsStream> {
    let message = |note| Ok(agent::GetArtifactsResponse { note, data: Vec::new() });
    let Some((collected, path)) = found else {
        return Ok(futures::stream::once(std::future::ready(message(None))).boxed());
    };
    let pieces = artifacts::read(&collected, &path, offset).await?;
    let note = agent::ArtifactsNote {
        bytes: collected.artifacts.bytes,
        digest: collected.digest,
        files: collected.artifacts.files,
        missing: collected.artifacts.missing,
        problem: collected.artifacts.problem.unwrap_or_default(),
    };
    let pieces = pieces.map(|piece| match piece {
        Ok(data) => Ok(agent::GetArtifactsResponse { note: None, data: data.into() }),
        Err(error) => Err(to_status(&error)),
    });
    Ok(futures::stream::once(std::future::ready(message(Some(note)))).chain(pieces).boxed())
}
