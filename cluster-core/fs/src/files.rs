//! Files that are whole or not there, on disk before a function returns, and private to their owner.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aegis_types::error::{Error, ErrorCode};

/// Mode of files that their owner alone may read.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of directories that their owner alone may enter.
pub const PRIVATE_DIRECTORY: u32 = 0o700;

/// Made if it is missing, for its owner alone: the data directory itself may be open to others, as the
/// volumes of Docker are.
pub fn private_directory(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIRECTORY).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_DIRECTORY))
}

/// Does the same as [`write_synced`] on a thread that may block.
pub async fn write_synced_elsewhere(path: PathBuf, bytes: Vec<u8>) -> std::io::Result<()> {
    let written = tokio::task::spawn_blocking(move || write_synced(&path, &bytes)).await;
    written.map_err(std::io::Error::other)?
}

/// Returns the error for a file that cannot be written.
pub fn write_error(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Storage, format!("{} cannot be written", path.display()))
        .remedy("free some disk space, and give the file to the user that runs aegis")
        .source(error)
}

/// Whole or not at all, and on disk before it returns.
pub fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE_FILE).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Creates a file that only its owner may read, whole or not at all.
pub fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The new name too: a key that is lost in a power cut would be replaced by another.
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
