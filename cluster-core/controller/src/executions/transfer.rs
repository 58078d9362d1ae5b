//! Content of executions on the controller: directories packed at submission, content sent to nodes that lack it, and
//! artifacts fetched at the end.
//!
//! A directory is packed before its execution is stored, and kept until the execution has ended. Artifacts are fetched
//! before the end is stored. After a crash the execution is still open: its end is read from the node again, and
//! incomplete artifacts are fetched again. An ended execution therefore has all its artifacts. A controller without room
//! for them waits for ten minutes and then stores the end without them.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aegis_content::{
    BOUNDS,
    blob_store::{BlobStore, digest_of, ensure_room},
    pack::pack,
    roots,
};
use aegis_engine::Engine;
use aegis_fs::{private_directory, write_error};
use aegis_rpc::node_worker::NodeWorker;
use aegis_store::Store;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        artifacts::{Artifacts, Collected},
        content::{Content, ImageOffer},
        manifest::WorkspaceNote,
        order::Order,
        record::ExecutionRecord,
        request::ARTIFACTS_MAX,
        view::EventView,
    },
    ids::ExecutionId,
    principal::Origin,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use tokio::{io::AsyncWriteExt as _, time::Instant};

/// Shortest interval between two looks at the same image of this machine's engine.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const LOOKS_MAX: usize = 256;
/// Packing reads whole directories: the disk has enough to do with these.
const PACKING_MAX: usize = 2;
/// Longest wait of an end for room for its artifacts.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(600);
/// A node that is silent for longer is gone.
const PIECE_LIMIT: Duration = Duration::from_secs(60);
const ARCHIVE_SUFFIX: &str = ".tar.gz";
const PART_SUFFIX: &str = ".part";

/// Directories and parts that transfers use.
#[derive(Debug, Clone)]
pub struct TransferSettings {
    pub data: PathBuf,
    /// Directories in which assistants may name workspaces.
    pub roots: Vec<PathBuf>,
    /// Engine of this machine, if it has one.
    pub engine: Option<Engine>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    found: Option<Offered>,
}

#[derive(Debug, Clone)]
struct Offered {
    offer: ImageOffer,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct ContentTransfer {
    settings: TransferSettings,
    workspaces: BlobStore,
    artifacts: PathBuf,
    packing: tokio::sync::Semaphore,
    looked: Mutex<HashMap<String, Looked>>,
    /// Since when there is no room for an execution's artifacts.
    roomless: Mutex<HashMap<ExecutionId, Instant>>,
}

impl ContentTransfer {
    /// Opens the folders, and removes content that no open execution needs.
    pub async fn open(settings: TransferSettings, open: &[ExecutionRecord], store: &Store) -> Result<Self> {
        let workspaces = BlobStore::open(settings.data.join("workspaces"))?;
        for record in open {
            if let Some(note) = &record.workspace
                && let Err(error) = workspaces.claim(&note.digest, &record.execution_id)
            {
                // A node that has it already needs no more of us.
                tracing::warn!(execution_id = %record.execution_id, error = %error.chain(), "its workspace is gone");
            }
        }
        workspaces.sweep(None)?;
        let artifacts = settings.data.join("artifacts");
        private_directory(&artifacts).map_err(|e| write_error(&artifacts, e))?;
        sweep(&artifacts, store).await?;
        Ok(Self {
            settings,
            workspaces,
            artifacts,
            packing: tokio::sync::Semaphore::new(PACKING_MAX),
            looked: Mutex::default(),
            roomless: Mutex::default(),
        })
    }

    /// Packs a directory and keeps it for this execution.
    pub async fn pack(&self, path: &Path, origin: Origin, user: &ExecutionId) -> Result<WorkspaceNote> {
        let closed = |_| Error::internal("packing is closed");
        let _turn = self.packing.acquire().await.map_err(closed)?;
        let (path, user) = (path.to_owned(), user.clone());
        let (kept, roots, data) =
            (self.workspaces.clone(), self.settings.roots.clone(), self.settings.data.clone());
        let packing = tokio::task::spawn_blocking(move || {
            let source = roots::open(&path, origin, &roots, &data)?;
            // How much it will be is not known yet.
            let draft = kept.draft(0)?;
            let packed = pack(&source, &draft.file, &BOUNDS)?;
            kept.keep(draft, &packed.digest, Some(&user))?;
            tracing::info!(execution_id = %user, bytes = packed.bytes, entries = packed.entries, "workspace packed");
            Ok(WorkspaceNote { digest: packed.digest, bytes: packed.bytes })
        });
        packing.await.map_err(|e| Error::internal("packing ended").source(e))?
    }

    /// Copies the artifacts of one execution, as the workspace of another.
    pub async fn reuse(&self, source: &ExecutionId, user: &ExecutionId) -> Result<WorkspaceNote> {
        let closed = |_| Error::internal("packing is closed");
        let _turn = self.packing.acquire().await.map_err(closed)?;
        let (path, kept, user) = (self.path(source), self.workspaces.clone(), user.clone());
        let copying = tokio::task::spawn_blocking(move || {
            let unread =
                |e| Error::new(ErrorCode::Storage, format!("{} cannot be read", path.display())).source(e);
            let mut from = File::open(&path).map_err(unread)?;
            let mut draft = kept.draft(from.metadata().map_err(unread)?.len())?;
            let bytes = io::copy(&mut from, &mut draft.file).map_err(unread)?;
            draft.file.sync_all().map_err(unread)?;
            let digest = digest_of(&mut draft.file).map_err(unread)?;
            kept.keep(draft, &digest, Some(&user))?;
            Ok(WorkspaceNote { digest, bytes })
        });
        copying.await.map_err(|e| Error::internal("copying ended").source(e))?
    }

    /// The execution has ended, or was never stored.
    pub fn let_go(&self, workspace: Option<&WorkspaceNote>, user: &ExecutionId) {
        if let Some(note) = workspace {
            self.workspaces.unclaim(&note.digest, user);
        }
        self.roomless().remove(user);
    }

    /// Hands the order to its node, with what the node lacks.
    pub async fn forward(
        &self,
        worker: &dyn NodeWorker,
        order: Order,
        after_sequence: u64,
    ) -> Result<BoxStream<'static, Result<EventView>>> {
        let manifest = order.manifest.clone();
        // A local worker has the same engine. An execution that has begun has its image.
        let image = match worker.is_local() || after_sequence > 0 {
            true => None,
            false => self.offered(&manifest.image).await,
        };
        let offer = image.as_ref().map(|image| &image.offer);
        // In the order in which a node asks for them, each once: who asks again is not asked again.
        let workspace = manifest
            .workspace
            .as_ref()
            .map(|note| Content::Workspace { digest: note.digest.clone(), bytes: note.bytes });
        let image = image.as_ref().map(|image| Content::Image {
            reference: manifest.image.clone(),
            digest: image.offer.digest.clone(),
            bytes: image.bytes,
        });
        let mut contents = workspace.into_iter().chain(image);
        loop {
            match worker.assign(order.clone(), after_sequence, offer).await {
                Err(error) if error.code() == ErrorCode::ContentMissing => match contents.next() {
                    Some(content) => self.send(worker, content).await?,
                    None => return Err(error),
                },
                answer => return answer,
            }
        }
    }

    async fn send(&self, worker: &dyn NodeWorker, content: Content) -> Result<()> {
        let (at, what) = (Instant::now(), format!("{content:?}"));
        match &content {
            Content::Workspace { digest, .. } => {
                let file = tokio::fs::File::from_std(self.workspaces.read(digest)?);
                worker.put_content(content, Box::new(file)).await?;
            }
            Content::Image { reference, .. } => {
                let Some(engine) = &self.settings.engine else {
                    return Err(Error::internal("an image was offered without an engine"));
                };
                let export = engine.export(reference);
                let sent = worker.put_content(content, export.reader).await;
                if let Some(why) = export.failure.get() {
                    return Err(Error::new(
                        ErrorCode::Engine,
                        format!("this machine's engine broke off while it gave the image: {why}"),
                    ));
                }
                sent?;
            }
        }
        tracing::info!(what, seconds = at.elapsed().as_secs_f32(), "content was sent");
        Ok(())
    }

    /// Returns the image that this machine's engine has under a name, at most a few seconds old. An unreachable engine has
    /// no images. An image named by digest is never offered: a loaded image has no digest of a registry.
    async fn offered(&self, reference: &str) -> Option<Offered> {
        let engine = self.settings.engine.as_ref().filter(|_| !reference.contains('@'))?;
        let known = self
            .looked()
            .get(reference)
            .and_then(|looked| (looked.at.elapsed() < LOOK_INTERVAL).then(|| looked.found.clone()));
        if let Some(found) = known {
            return found;
        }
        let found = match engine.local_image(reference).await {
            Ok(found) => found.map(|local| Offered {
                offer: ImageOffer {
                    digest: local.content.digest(),
                    architecture: local.architecture,
                    exact: local.origin == aegis_engine::ImageOrigin::Built,
                },
                bytes: local.bytes,
            }),
            Err(error) => {
                tracing::debug!(error = %error.chain(), "no images of this machine's engine are offered");
                None
            }
        };
        let mut looked = self.looked();
        if looked.len() >= LOOKS_MAX {
            looked.retain(|_, looked| looked.at.elapsed() < LOOK_INTERVAL);
        }
        if looked.len() < LOOKS_MAX {
            looked.insert(reference.to_owned(), Looked { at: Instant::now(), found: found.clone() });
        }
        found
    }

    /// Fetches the artifacts of an ended execution to this disk. Returns `None` if the execution collected no artifacts.
    pub async fn fetch(
        &self,
        worker: &dyn NodeWorker,
        record: &ExecutionRecord,
    ) -> Result<Option<Artifacts>> {
        let id = &record.execution_id;
        match self.try_fetch(worker, id, record.attempt).await {
            Err(error) if matches!(error.code(), ErrorCode::Storage | ErrorCode::ResourceExhausted) => {
                let since = *self.roomless().entry(id.clone()).or_insert_with(Instant::now);
                if since.elapsed() < ROOM_WAIT_MAX {
                    return Err(error);
                }
                tracing::error!(execution_id = %id, error = %error.chain(), "its artifacts were not kept");
                Ok(Some(Artifacts::none_because(error.to_string())))
            }
            answer => answer,
        }
    }

    async fn try_fetch(
        &self,
        worker: &dyn NodeWorker,
        id: &ExecutionId,
        attempt: u32,
    ) -> Result<Option<Artifacts>> {
        // What came of it before a cut is not sent again. Another attempt's is another file.
        let part = self.artifacts.join(format!("{id}-{attempt}{PART_SUFFIX}"));
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.read(true).append(true).create(true), 0o600);
        let file = options.open(&part).map_err(|e| write_error(&part, e))?;
        let offset = file.metadata().map_err(|e| write_error(&part, e))?.len();
        let Some((collected, pieces)) = worker.artifacts(id, attempt, offset).await? else {
            let _ = fs::remove_file(&part);
            return Ok(None);
        };
        let Collected { artifacts, digest } = within_bounds(collected);
        if artifacts.problem.is_none() {
            ensure_room(&file, &self.artifacts, artifacts.bytes.saturating_sub(offset))?;
            let complete = write(file, pieces, artifacts.bytes.saturating_sub(offset), &digest).await;
            let complete = complete.map_err(|failed| match failed {
                Broken::Disk(error) => write_error(&part, error),
                Broken::Node(error) => error,
            })?;
            if !complete {
                let _ = fs::remove_file(&part);
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    "the artifacts came damaged; they are fetched anew",
                ));
            }
            let whole = self.path(id);
            fs::rename(&part, &whole)
                .and_then(|()| File::open(&self.artifacts)?.sync_all())
                .map_err(|e| write_error(&whole, e))?;
        } else {
            let _ = fs::remove_file(&part);
        }
        Ok(Some(artifacts))
    }

    /// Returns the file of an execution's artifacts, which may not exist.
    /// Its record is gone, and its artifacts go too; what is left is swept at the next start.
    pub fn forget(&self, id: &ExecutionId) {
        let _ = fs::remove_file(self.path(id));
    }

    pub fn path(&self, id: &ExecutionId) -> PathBuf {
        self.artifacts.join(format!("{id}{ARCHIVE_SUFFIX}"))
    }

    fn looked(&self) -> MutexGuard<'_, HashMap<String, Looked>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roomless(&self) -> MutexGuard<'_, HashMap<ExecutionId, Instant>> {
        self.roomless.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Broken {
    Disk(io::Error),
    Node(Error),
}

/// Appends what comes, and says whether the whole is what was told.
async fn write(
    file: File,
    pieces: impl Stream<Item = Result<Bytes>>,
    mut left: u64,
    digest: &str,
) -> Result<bool, Broken> {
    let mut file = tokio::fs::File::from_std(file);
    let mut pieces = std::pin::pin!(pieces);
    loop {
        let silent = |_| Error::new(ErrorCode::Unavailable, "the node stopped sending its artifacts");
        let piece = tokio::time::timeout(PIECE_LIMIT, pieces.next()).await.map_err(silent);
        let Some(piece) = piece.map_err(Broken::Node)? else { break };
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                // What has come so far is kept for the next time.
                file.flush().await.map_err(Broken::Disk)?;
                return Err(Broken::Node(error));
            }
        };
        let Some(rest) = left.checked_sub(piece.len() as u64) else { return Ok(false) };
        left = rest;
        file.write_all(&piece).await.map_err(Broken::Disk)?;
    }
    file.sync_all().await.map_err(Broken::Disk)?;
    let mut file = file.into_std().await;
    let hashing = tokio::task::spawn_blocking(move || digest_of(&mut file));
    let found = hashing.await.map_err(|e| Broken::Disk(io::Error::other(e)))?.map_err(Broken::Disk)?;
    Ok(left == 0 && found == digest)
}

/// Keeps nothing of artifacts that are larger than a worker packs, or that name more paths than may be asked for.
fn within_bounds(collected: Collected) -> Collected {
    let Artifacts { bytes, missing, .. } = &collected.artifacts;
    let (bytes, bytes_max) = (*bytes, BOUNDS.packed_bytes);
    let why = if bytes > bytes_max {
        format!("its node says that they have {bytes} bytes, more than {bytes_max}")
    } else if missing.len() > ARTIFACTS_MAX {
        format!("its node names {} missing paths, more than {ARTIFACTS_MAX}", missing.len())
    } else {
        return collected;
    };
    Collected { artifacts: Artifacts::none_because(why), digest: String::new() }
}

/// Files of executions that the store does not know, or knows to have kept nothing.
async fn sweep(directory: &Path, store: &Store) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(|e| write_error(directory, e))? {
        let entry = entry.map_err(|e| write_error(directory, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let wanted = match name.strip_suffix(ARCHIVE_SUFFIX).map(ExecutionId::parse) {
            Some(Ok(id)) => match store.execution(&id).await? {
                Some(record) => {
                    let is_kept = record.artifacts.is_some_and(|artifacts| artifacts.problem.is_none());
                    is_kept || !record.state.is_final()
                }
                None => false,
            },
            // A part is worth going on with while its execution is open.
            _ => match name.strip_suffix(PART_SUFFIX).and_then(|name| name.rsplit_once('-')) {
                Some((id, _)) => match ExecutionId::parse(id) {
                    Ok(id) => store.execution(&id).await?.is_some_and(|record| !record.state.is_final()),
                    Err(_) => false,
                },
                None => false,
            },
        };
        if !wanted {
            fs::remove_file(entry.path()).map_err(|e| write_error(&entry.path(), e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_beyond_their_bound_are_not_fetched() {
        let told = |bytes, missing| {
            let artifacts = Artifacts { bytes, missing: vec!["/x".into(); missing], ..Artifacts::default() };
            within_bounds(Collected { artifacts, digest: "d".into() }).artifacts
        };
        assert_eq!(told(BOUNDS.packed_bytes, ARTIFACTS_MAX).problem, None);
        for beyond in [told(BOUNDS.packed_bytes + 1, 0), told(u64::MAX, 0), told(1, ARTIFACTS_MAX + 1)] {
            assert!(beyond.problem.is_some_and(|why| why.contains("more than")));
            assert_eq!((beyond.bytes, beyond.missing.len()), (0, 0));
        }
    }
}
