//! Folders of orders on disk, changed in groups by one thread.
//!
//! A disk takes many syncs at once in about the time of one. All files of a group are therefore synced together,
//! and one sync of the parent directory makes all of its renames durable.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use aegis_fs::private_directory;

use super::{GONE, NEW};

/// Syncs at once. The kernel joins those of one file system; more of them only cost threads.
const SYNCS_AT_ONCE: usize = 16;

/// A change of one folder.
#[derive(Debug)]
pub(super) enum Change {
    Put { folder: PathBuf, files: Vec<(&'static str, Vec<u8>)> },
    Remove { folder: PathBuf },
}

/// Carries out changes, in their order. Each is on disk or has not happened when its result is there.
pub(super) fn carry_out(parent: &Path, changes: &[Change]) -> Vec<io::Result<()>> {
    let mut results: Vec<io::Result<()>> = Vec::with_capacity(changes.len());
    let mut unsynced = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        let written = match change {
            Change::Put { folder, files } => write(&folder.with_extension(NEW), files),
            Change::Remove { .. } => Ok(Vec::new()),
        };
        results.push(written.map(|files| unsynced.extend(files.into_iter().map(|file| (number, file)))));
    }
    for (number, error) in sync_together(&unsynced) {
        results[number] = Err(error);
    }
    let mut is_changed = false;
    for (change, result) in changes.iter().zip(&mut results) {
        if result.is_ok() {
            *result = change.rename().map(|renamed| is_changed |= renamed);
        }
    }
    let synced = if is_changed { sync(parent) } else { Ok(()) };
    for (change, result) in changes.iter().zip(&mut results) {
        change.finish(result, &synced);
    }
    results
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Change {
    /// Gives the folder its final name. Returns false where there is nothing to remove.
    fn rename(&self) -> io::Result<bool> {
        match self {
            Self::Put { folder, .. } => fs::rename(folder.with_extension(NEW), folder).map(|()| true),
            Self::Remove { folder } => match fs::rename(folder, folder.with_extension(GONE)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                renamed => renamed.map(|()| true),
            },
        }
    }

    /// Removes what is not needed any more: a removed folder, and one whose order is refused.
    fn finish(&self, result: &mut io::Result<()>, synced: &io::Result<()>) {
        let is_renamed = result.is_ok();
        if let (true, Err(error)) = (is_renamed, synced) {
            *result = Err(io::Error::new(error.kind(), error.to_string()));
        }
        match self {
            Self::Put { folder, .. } if result.is_err() => {
                // A folder that cannot be removed now is removed at the next start, before anything is read.
                let left = if is_renamed { folder.with_extension(GONE) } else { folder.with_extension(NEW) };
                if is_renamed && let Err(error) = fs::rename(folder, &left) {
                    *result = Err(error);
                }
                let _ = fs::remove_dir_all(&left);
            }
            Self::Put { .. } => {}
            Self::Remove { folder } => {
                let gone = folder.with_extension(GONE);
                if result.is_ok() && gone.exists() {
                    *result = fs::remove_dir_all(&gone);
                }
            }
        }
    }
}

/// Writes a folder, and returns what is to be synced: its files and the folder itself.
fn write(folder: &Path, files: &[(&'static str, Vec<u8>)]) -> io::Result<Vec<File>> {
    // Left over from a put whose clean-up failed.
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    private_directory(folder)?;
    let mut written = Vec::with_capacity(files.len() + 1);
    for (name, bytes) in files {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
        file.write_all(bytes)?;
        written.push(file);
    }
    written.push(File::open(folder)?);
    Ok(written)
}

/// Syncs all files, and returns the errors with the numbers of their files' owners.
fn sync_together(files: &[(usize, File)]) -> Vec<(usize, io::Error)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut errors = Vec::new();
        while let Some((number, file)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = file.sync_all() {
                errors.push((*number, error));
            }
        }
        errors
    };
    std::thread::scope(|threads| {
        let others = (1..files.len().min(SYNCS_AT_ONCE)).map(|_| threads.spawn(work)).collect::<Vec<_>>();
        let mut failed = work();
        for other in others {
            match other.join() {
                Ok(errors) => failed.extend(errors),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        failed
    })
}
