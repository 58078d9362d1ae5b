//! A node's key where it is kept, and its change: the next key lies beside the one in use until the
//! controller has pinned it, so that a crash in between loses neither.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::NodeKey;
use crate::error::{Error, ErrorCode, Result};

#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    current: ArcSwap<NodeKey>,
}

impl KeyFile {
    /// Reads the key, or makes one where there is no file: see [`NodeKey::load_or_create`].
    pub fn open(path: &Path) -> Result<Self> {
        let current = ArcSwap::from_pointee(NodeKey::load_or_create(path)?);
        Ok(Self { path: path.to_owned(), current })
    }

    /// The key in use.
    pub fn current(&self) -> Arc<NodeKey> {
        self.current.load_full()
    }

    fn next_path(&self) -> PathBuf {
        self.path.with_extension("next.pem")
    }

    /// The key that is to follow, if a change was begun and its outcome is not known.
    pub fn next(&self) -> Result<Option<NodeKey>> {
        let path = self.next_path();
        match path.try_exists() {
            Ok(true) => NodeKey::load_or_create(&path).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Begins a change: the same next key until it is adopted or dropped.
    pub fn prepare_next(&self) -> Result<NodeKey> {
        NodeKey::load_or_create(&self.next_path())
    }

    /// The next key is the key from now on.
    pub fn adopt_next(&self) -> Result<()> {
        let next = NodeKey::load_or_create(&self.next_path())?;
        fs::rename(self.next_path(), &self.path).map_err(|error| self.failed(error))?;
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// The change did not take place.
    pub fn drop_next(&self) -> Result<()> {
        match fs::remove_file(self.next_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(ErrorCode::Storage, format!("the node key {} cannot be changed", self.path.display()))
            .source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_survives_a_crash_before_and_after_it_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-keypair.pem");
        let first = KeyFile::open(&path).unwrap();
        let old = first.current().public();
        let next = first.prepare_next().unwrap().public();
        // As after a crash.
        let second = KeyFile::open(&path).unwrap();
        assert_eq!(second.current().public(), old);
        assert_eq!(second.next().unwrap().unwrap().public(), next);
        second.adopt_next().unwrap();
        assert_eq!((second.current().public(), second.next().unwrap().is_none()), (next, true));
        assert_eq!(KeyFile::open(&path).unwrap().current().public(), next);
        second.prepare_next().unwrap();
        second.drop_next().unwrap();
        second.drop_next().unwrap();
        assert_eq!(KeyFile::open(&path).unwrap().current().public(), next);
    }
}
