//! Packed files on disk, named by the digest of their bytes, as long as an execution needs them. On the controller that
//! is from submission to the end, and on a worker from arrival to release.
//!
//! Users of a blob are in memory only. At start the executions of the store or the journal claim their blobs again.
//! Then unclaimed blobs are removed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aegis_fs::{private_directory, write_error};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::ExecutionId,
};
use nix::sys::statvfs::fstatvfs;
use sha2::{Digest as _, Sha256};

/// Size limit of all content together.
pub const KEPT_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// Disk space left free for other uses: journals, the database.
pub const FREE_BYTES_MIN: u64 = 512 * 1024 * 1024;
/// Age at which content that was sent but never claimed is removed.
const UNCLAIMED_FOR: Duration = Duration::from_secs(3600);
const DIGEST_LENGTH: usize = 64;
const DRAFT_SUFFIX: &str = "part";

/// Handle on one directory of content, cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    users: Mutex<HashMap<String, HashSet<ExecutionId>>>,
}

/// File that is being written. Removed when dropped.
#[derive(Debug)]
pub struct Draft {
    pub file: File,
    path: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `keep`, no file has this name.
        let _ = fs::remove_file(&self.path);
    }
}

impl BlobStore {
    /// Opens the directory. Removes partial files left by a previous process.
    pub fn open(directory: PathBuf) -> Result<Self> {
        private_directory(&directory).map_err(|e| write_error(&directory, e))?;
        let kept = Self(Arc::new(Inner { directory, users: Mutex::default() }));
        for (path, _) in kept.files()? {
            if path.extension().is_some_and(|suffix| suffix == DRAFT_SUFFIX) {
                fs::remove_file(&path).map_err(|e| write_error(&path, e))?;
            }
        }
        Ok(kept)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, HashSet<ExecutionId>>> {
        self.0.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves space for `bytes`, or fails.
    pub fn draft(&self, bytes: u64) -> Result<Draft> {
        self.sweep(Some(UNCLAIMED_FOR))?;
        let directory = &self.0.directory;
        let held = self.files()?.iter().map(|(_, found)| found.len()).sum::<u64>();
        if held.saturating_add(bytes) > KEPT_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("{} holds {held} bytes; {bytes} more do not fit", directory.display()),
            )
            .remedy("wait until some executions have ended"));
        }
        let path = directory.join(format!("{}.{DRAFT_SUFFIX}", uuid::Uuid::new_v4()));
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let draft = Draft { file: opened.map_err(|e| write_error(&path, e))?, path };
        ensure_room(&draft.file, directory, bytes)?;
        Ok(draft)
    }

    /// Turns a synced draft into the content of this digest. With a user, the content is claimed at once.
    pub fn keep(&self, draft: Draft, digest: &str, user: Option<&ExecutionId>) -> Result<()> {
        let path = self.path(digest)?;
        let mut users = self.users();
        fs::rename(&draft.path, &path)
            .and_then(|()| File::open(&self.0.directory)?.sync_all())
            .map_err(|e| write_error(&path, e))?;
        if let Some(user) = user {
            users.entry(digest.to_owned()).or_default().insert(user.clone());
        }
        Ok(())
    }

    /// Claims content for an execution until it is released. Fails with `ContentMissing` if the content is absent.
    pub fn claim(&self, digest: &str, user: &ExecutionId) -> Result<()> {
        let path = self.path(digest)?;
        let mut users = self.users();
        if !path.exists() {
            return Err(missing(digest));
        }
        users.entry(digest.to_owned()).or_default().insert(user.clone());
        Ok(())
    }

    /// Releases a claim. The content is removed with its last user.
    pub fn unclaim(&self, digest: &str, user: &ExecutionId) {
        let Ok(path) = self.path(digest) else { return };
        let mut users = self.users();
        let Some(left) = users.get_mut(digest) else { return };
        left.remove(user);
        if left.is_empty() {
            users.remove(digest);
            remove(&path);
        }
    }

    pub fn read(&self, digest: &str) -> Result<File> {
        let path = self.path(digest)?;
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => missing(digest),
            _ => Error::new(ErrorCode::Storage, format!("{} cannot be read", path.display())).source(e),
        })
    }

    /// Removes unclaimed content; with an age, only older content.
    pub fn sweep(&self, older_than: Option<Duration>) -> Result<()> {
        let users = self.users();
        for (path, found) in self.files()? {
            let claimed =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|n| users.contains_key(n));
            let is_draft = path.extension().is_some();
            let modified = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            if !claimed && !is_draft && older_than.is_none_or(|limit| age > limit) {
                remove(&path);
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<(PathBuf, fs::Metadata)>> {
        let directory = &self.0.directory;
        let entries = fs::read_dir(directory).map_err(|e| write_error(directory, e))?;
        Ok(entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                // Skip blobs removed since the directory was listed.
                Some((entry.path(), entry.metadata().ok()?))
            })
            .collect())
    }

    /// Returns the path of a digest. The digest is checked, since it comes from the other side and names a local file.
    fn path(&self, digest: &str) -> Result<PathBuf> {
        let good = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        match digest.len() == DIGEST_LENGTH && digest.chars().all(good) {
            true => Ok(self.0.directory.join(digest)),
            false => Err(Error::invalid("a content's digest must be SHA-256 in lower-case hex")),
        }
    }
}

/// Checks that the disk has space for `bytes` and the reserve.
pub fn ensure_room(file: &File, directory: &Path, bytes: u64) -> Result<()> {
    let found = fstatvfs(file).map_err(|e| write_error(directory, e.into()))?;
    let free = found.blocks_available() as u64 * found.fragment_size() as u64;
    if free < bytes.saturating_add(FREE_BYTES_MIN) {
        return Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!("the disk of {} has {free} bytes free; {bytes} do not fit", directory.display()),
        )
        .remedy(format!("free some disk space: {FREE_BYTES_MIN} bytes must stay")));
    }
    Ok(())
}

/// Returns the SHA-256 of a complete file, in hexadecimal.
pub fn digest_of(file: &mut File) -> io::Result<String> {
    const PIECE_BYTES: usize = 64 * 1024;
    file.rewind()?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => hash.update(&piece[..read]),
        }
    }
    file.rewind()?;
    Ok(hex::encode(hash.finalize()))
}

fn missing(digest: &str) -> Error {
    Error::new(ErrorCode::ContentMissing, format!("the content {digest} is not here"))
        .remedy("the controller sends it, and asks again")
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "content could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn put(kept: &BlobStore, content: &[u8], user: Option<&ExecutionId>) -> String {
        let mut draft = kept.draft(content.len() as u64).unwrap();
        draft.file.write_all(content).unwrap();
        let digest = digest_of(&mut draft.file).unwrap();
        kept.keep(draft, &digest, user).unwrap();
        digest
    }

    #[test]
    fn content_stays_while_somebody_needs_it() {
        let directory = tempfile::tempdir().unwrap();
        let kept = BlobStore::open(directory.path().join("content")).unwrap();
        let (first, second) = (ExecutionId::mint(), ExecutionId::mint());
        let digest = put(&kept, b"a", Some(&first));
        assert_eq!(put(&kept, b"a", None), digest, "the same bytes are kept once");
        kept.claim(&digest, &second).unwrap();
        kept.unclaim(&digest, &first);
        kept.unclaim(&digest, &first);
        kept.read(&digest).unwrap();
        kept.unclaim(&digest, &second);
        assert_eq!(kept.read(&digest).unwrap_err().code(), ErrorCode::ContentMissing);
        assert_eq!(kept.claim(&digest, &first).unwrap_err().code(), ErrorCode::ContentMissing);
        for bad in ["", "../x", &digest.to_uppercase(), &digest[1..]] {
            assert_eq!(kept.claim(bad, &first).unwrap_err().code(), ErrorCode::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_start_clears_what_nobody_claims_and_what_was_half_written() {
        let directory = tempfile::tempdir().unwrap();
        let kept = BlobStore::open(directory.path().to_owned()).unwrap();
        let user = ExecutionId::mint();
        let (wanted, orphan) = (put(&kept, b"a", Some(&user)), put(&kept, b"b", None));
        std::mem::forget(kept.draft(1).unwrap());
        drop(kept.draft(1).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        let kept = BlobStore::open(directory.path().to_owned()).unwrap();
        kept.claim(&wanted, &user).unwrap();
        kept.sweep(Some(UNCLAIMED_FOR)).unwrap();
        kept.read(&orphan).expect("too young");
        kept.sweep(None).unwrap();
        assert_eq!(kept.read(&orphan).unwrap_err().code(), ErrorCode::ContentMissing);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let kept = BlobStore::open(directory.path().to_owned()).unwrap();
        let refused = kept.draft(KEPT_BYTES_MAX + 1).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ResourceExhausted);
        let file = File::open(directory.path()).unwrap();
        let refused = ensure_room(&file, directory.path(), u64::MAX).unwrap_err();
        assert!(refused.to_string().contains("bytes free"), "{refused}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
