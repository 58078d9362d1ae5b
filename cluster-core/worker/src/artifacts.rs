//! Artifacts on a worker: read from the last container of an execution after its end, and kept with the journal
//! until the controller has them.
//!
//! Nothing here fails an execution. Missing paths and artifacts that cannot be kept are reported with its end.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Component, Path, PathBuf},
};

use aegis_content::{
    BOUNDS,
    rewrite::{Counts, ROOT, rewrite},
    written::Written,
};
use aegis_engine::{Engine, WORKSPACE};
use aegis_fs::write_synced_elsewhere;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        artifacts::{Artifacts, Collected},
        content::PIECE_BYTES,
    },
    text::shown,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::{Stream, TryStreamExt as _, future::Either};
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::{ReaderStream, SyncIoBridge};

const ARCHIVE_FILE: &str = "artifacts.tar.gz";
const NOTE_FILE: &str = "artifacts.json";

/// Returns the artifacts that were collected, and their file. Returns `None` before they are collected.
pub fn collected(directory: &Path) -> Result<Option<(Collected, PathBuf)>> {
    let unread = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorCode::Storage, "the note of an execution's artifacts cannot be read").source(e)
    };
    match fs::read(directory.join(NOTE_FILE)) {
        Ok(bytes) => {
            let note = serde_json::from_slice(&bytes).map_err(|e| unread(e.into()))?;
            Ok(Some((note, directory.join(ARCHIVE_FILE))))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unread(e.into())),
    }
}

/// Streams the packed artifacts from an offset on. The stream is empty if nothing was kept.
pub async fn read(
    collected: &Collected,
    path: &Path,
    offset: u64,
) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
    if collected.artifacts.problem.is_some() {
        return Ok(Either::Left(futures::stream::empty()));
    }
    let unread = |e: io::Error| Error::new(ErrorCode::Storage, "the artifacts cannot be read").source(e);
    let mut file = tokio::fs::File::open(path).await.map_err(unread)?;
    file.seek(io::SeekFrom::Start(offset)).await.map_err(unread)?;
    Ok(Either::Right(ReaderStream::with_capacity(file, PIECE_BYTES).map_err(unread)))
}

/// Reads the paths from a stopped container into `directory`. What is there already is not read again.
pub(super) async fn collect(engine: &Engine, container: &str, paths: &[String], directory: &Path) {
    if paths.is_empty() || matches!(collected(directory), Ok(Some(_))) {
        return;
    }
    let note = pack(engine, container, paths, directory).await.unwrap_or_else(|error| {
        tracing::warn!(container, error = %error.chain(), "its artifacts could not be kept");
        let _ = fs::remove_file(directory.join(ARCHIVE_FILE));
        let artifacts = Artifacts::none_because(error.to_string());
        Collected { artifacts, digest: String::new() }
    });
    let written = match serde_json::to_vec(&note) {
        Ok(bytes) => write_synced_elsewhere(directory.join(NOTE_FILE), bytes).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        tracing::error!(container, %error, "the note of its artifacts could not be written");
    }
}

async fn pack(engine: &Engine, container: &str, paths: &[String], directory: &Path) -> Result<Collected> {
    let path = directory.join(ARCHIVE_FILE);
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let file = opened.map_err(unkept)?;
    let mut packing = Packing::new(file);
    let mut missing = Vec::new();
    for place in places(paths) {
        let from = Path::new(WORKSPACE).join(&place);
        match engine.get_archive(container, &from.to_string_lossy()).await? {
            // A thread of its own reads what the engine sends.
            Some(reader) => {
                let reader = SyncIoBridge::new(reader);
                let adding = tokio::task::spawn_blocking(move || packing.add(reader, &place));
                packing = adding.await.map_err(|e| Error::internal("packing ended").source(e))??;
            }
            None => missing.push(place.to_string_lossy().into_owned()),
        }
    }
    let finishing = tokio::task::spawn_blocking(move || packing.finish());
    let (digest, bytes, files) =
        finishing.await.map_err(|e| Error::internal("packing ended").source(e))??;
    Ok(Collected { artifacts: Artifacts { bytes, files, missing, problem: None }, digest })
}

/// Returns each path once, as a path in `/workspace`, without paths that lie in another one.
fn places(paths: &[String]) -> Vec<PathBuf> {
    let plain = |path: &String| {
        let beneath = path.strip_prefix(WORKSPACE).map_or(path.as_str(), |rest| rest.trim_start_matches('/'));
        let parts = Path::new(beneath).components();
        parts.filter(|part| matches!(part, Component::Normal(_))).collect::<PathBuf>()
    };
    let all = paths.iter().map(plain).collect::<BTreeSet<_>>();
    let covered = |path: &PathBuf| path.ancestors().skip(1).any(|above| all.contains(above));
    all.iter().filter(|path| !covered(path)).cloned().collect()
}

/// One archive out of several of the engine's.
struct Packing {
    tar: tar::Builder<GzEncoder<Written>>,
    counts: Counts,
}

impl Packing {
    fn new(file: File) -> Self {
        let written = Written::new(file, BOUNDS.packed_bytes);
        Self {
            tar: tar::Builder::new(GzEncoder::new(written, Compression::fast())),
            counts: Counts::default(),
        }
    }

    /// The engine's names begin with the last part of the path: the whole of it takes its place.
    fn add(mut self, from: impl io::Read, place: &Path) -> Result<Self> {
        let whole = |name: &Path| {
            let rest = name.components().skip(1).collect::<PathBuf>();
            if rest.as_os_str().is_empty() { place.to_owned() } else { place.join(rest) }
        };
        rewrite(from, &mut self.tar, whole, ROOT, &BOUNDS, &mut self.counts).map_err(unkept)?;
        Ok(self)
    }

    /// Digest, bytes, files.
    fn finish(self) -> Result<(String, u64, u64)> {
        let written = self.tar.into_inner().and_then(GzEncoder::finish).and_then(Written::finish);
        let (digest, bytes) = written.map_err(unkept)?;
        Ok((digest, bytes, self.counts.entries))
    }
}

fn unkept(error: io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::StorageFull => "the node's disk is full".to_owned(),
        _ => shown(&error.to_string()),
    };
    Error::new(ErrorCode::Storage, format!("the artifacts were not kept: {why}")).source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_read_once() {
        let asked = ["/workspace/out", "out/", "./out/a", "a/b", "a/bc"].map(str::to_owned);
        assert_eq!(places(&asked), ["a/b", "a/bc", "out"].map(PathBuf::from));
        let all = ["/workspace/.", "out"].map(str::to_owned);
        assert_eq!(places(&all), [PathBuf::new()], "all of it");
    }
}
