//! Copies files into and out of existing containers, running or not, in the engine's tar format.
//!
//! No path of the host is used: if the engine is behind a socket, its paths belong to another machine.

use std::io::{self, Read as _};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};
use bollard::{
    body_try_stream,
    query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{Engine, refused, status};

/// Tar overhead of one file: its header, a long name, and the end.
const TAR_OVERHEAD_BYTES: usize = 16 * 1024;

impl Engine {
    /// Returns the content of a regular file; `None` if the path does not exist.
    ///
    /// A path of another type is `ContainerFailed`, and a file above `bytes_max` is `ResourceExhausted`. Both are
    /// results of the container, not faults of the engine.
    pub async fn read_file(&self, container: &str, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let Some(mut pieces) = self.archive_of(container, path).await? else { return Ok(None) };
        let mut tar = Vec::new();
        while let Some(piece) = pieces.next().await {
            tar.extend_from_slice(&piece.map_err(|e| broken_off(path, e))?);
            // The header has arrived, and bounds the size.
            if tar.len() > bytes_max + TAR_OVERHEAD_BYTES {
                break;
            }
        }
        only_file(path, &tar, bytes_max).map(Some)
    }

    /// Returns a path as a tar whose names begin with the path's last part; `None` if the path does not exist. A
    /// symbolic link is archived as a link, not followed.
    pub async fn get_archive(
        &self,
        container: &str,
        path: &str,
    ) -> Result<Option<impl AsyncRead + Send + Unpin + use<>>> {
        Ok(self.archive_of(container, path).await?.map(StreamReader::new))
    }

    /// Unpacks a tar, with or without gzip, into an existing directory. Owners are those of the tar.
    pub async fn put_archive(
        &self,
        container: &str,
        directory: &str,
        tar: impl AsyncRead + Send + 'static,
    ) -> Result<()> {
        let options = UploadToContainerOptionsBuilder::new().path(directory).build();
        let body = body_try_stream(ReaderStream::new(tar));
        self.docker
            .upload_to_container(container, Some(options), body)
            .await
            .map_err(|e| refused("take files for a container", e))
    }

    /// Requests an archive and waits for its first piece, which reveals a rejection by the engine.
    async fn archive_of(
        &self,
        container: &str,
        path: &str,
    ) -> Result<Option<stream::BoxStream<'static, io::Result<Bytes>>>> {
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let docker = self.docker.clone();
        let mut pieces = Box::pin(docker.download_from_container(container, Some(options)));
        let first = match pieces.next().await {
            Some(Ok(first)) => first,
            Some(Err(e)) if status(&e) == Some(404) => return Ok(None),
            Some(Err(e)) => return Err(refused("read a container's files", e)),
            None => return Ok(None),
        };
        Ok(Some(stream::once(async { Ok(first) }).chain(pieces.map_err(io::Error::other)).boxed()))
    }
}

fn broken_off(path: &str, error: io::Error) -> Error {
    Error::new(ErrorCode::Engine, format!("the container engine broke off while it sent {}", shown(path)))
        .source(error)
}

fn only_file(path: &str, tar: &[u8], bytes_max: usize) -> Result<Vec<u8>> {
    let unread = |e: io::Error| broken_off(path, e);
    let mut archive = tar::Archive::new(tar);
    let first = archive.entries().map_err(unread)?.next();
    let mut entry = first.ok_or_else(|| unread(io::ErrorKind::UnexpectedEof.into()))?.map_err(unread)?;
    if !entry.header().entry_type().is_file() {
        return Err(Error::new(
            ErrorCode::ContainerFailed,
            format!("{} is not a regular file in the container", shown(path)),
        ));
    }
    let size = entry.size();
    if size > bytes_max as u64 {
        return Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!("{} has {size} bytes in the container; at most {bytes_max} are taken", shown(path)),
        ));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(unread)?;
    match content.len() as u64 == size {
        true => Ok(content),
        false => Err(unread(io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(name: &str, kind: tar::EntryType, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn one_regular_file_is_read_and_nothing_else() {
        let name = "x".repeat(200);
        let good = tar_of(&name, tar::EntryType::Regular, b"42");
        assert_eq!(only_file("/f", &good, 2).unwrap(), b"42");
        assert_eq!(only_file("/f", &good, 1).unwrap_err().code(), ErrorCode::ResourceExhausted);
        for kind in [tar::EntryType::Directory, tar::EntryType::Symlink, tar::EntryType::Fifo] {
            let other = tar_of("f", kind, b"");
            assert_eq!(only_file("/f", &other, 9).unwrap_err().code(), ErrorCode::ContainerFailed);
        }
        let cut = &tar_of("f", tar::EntryType::Regular, b"42")[..513];
        assert_eq!(only_file("/f", cut, 9).unwrap_err().code(), ErrorCode::Engine);
        assert_eq!(only_file("/f", b"", 9).unwrap_err().code(), ErrorCode::Engine);
    }
}
