//! A data directory has one owner at a time, held by `flock` so that the kernel frees it with the
//! process.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aegis_types::error::{Error, ErrorCode, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{PRIVATE_DIRECTORY, PRIVATE_FILE};

/// Below the data directory; it holds the number of the process that has it, or had it last.
pub const LOCK_FILE: &str = "lock";

/// A data directory that this process owns.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDirectory {
    /// Creates the directory with mode 0700 where it is missing, and takes its lock.
    pub fn own(path: &Path) -> Result<Self> {
        let unusable = |e: std::io::Error| {
            Error::new(ErrorCode::Storage, format!("the data directory {} cannot be used", path.display()))
                .remedy("give the user who runs aegis a directory it may write (AEGIS_DATA_DIR)")
                .source(e)
        };
        fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIRECTORY).create(path).map_err(unusable)?;
        let path = path.canonicalize().map_err(unusable)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_FILE)
            .open(path.join(LOCK_FILE))
            .map_err(unusable)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(Error::new(
                    ErrorCode::Conflict,
                    format!("the data directory {} belongs to process {}", path.display(), owner.trim()),
                )
                .remedy("stop that one with `aegis stop`, or use another --data-dir"));
            }
            Err((_, errno)) => return Err(unusable(errno.into())),
        };
        // For the message above only; the lock itself is the kernel's.
        lock.set_len(0).map_err(unusable)?;
        lock.rewind().map_err(unusable)?;
        writeln!(lock, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of this name, made if it is missing, that its owner alone can read.
    pub fn private_file(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        match OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(&path) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => self.protect(&path)?,
            Err(e) => {
                return Err(Error::new(ErrorCode::Storage, format!("{} cannot be made", path.display()))
                    .remedy("give the user who runs aegis a directory it may write, with room in it")
                    .source(e));
            }
        }
        Ok(path)
    }

    /// Readable by its owner alone.
    pub fn protect(&self, file: &Path) -> Result<()> {
        fs::set_permissions(file, fs::Permissions::from_mode(PRIVATE_FILE)).map_err(|e| {
            Error::new(ErrorCode::Storage, format!("{} cannot be protected", file.display())).source(e)
        })
    }
}
