//! File of a node's key, and the key's rotation. The next key is kept next to the current key until the controller has
//! pinned it, so that a crash loses neither.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_fs::write_new;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
    text::shown,
};
use arc_swap::ArcSwap;

use super::NodeKey;

const NEXT_EXTENSION: &str = "next.pem";
/// Extension of the file, next to the key, with the id of the node that made it.
const MARK_EXTENSION: &str = "owner";

#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    current: ArcSwap<NodeKey>,
}

impl KeyFile {
    /// Reads the key, or creates one if there is no file: see [`NodeKey::load_or_create`].
    pub fn open(path: &Path) -> Result<Self> {
        let current = ArcSwap::from_pointee(NodeKey::load_or_create(path)?);
        Ok(Self { path: path.to_owned(), current })
    }

    /// Opens the key of one node. A key marked as another node's came with a copied machine or a reused volume. It is
    /// replaced, since two nodes must not share a key. A key without a mark is marked. A key whose thumbprint is among
    /// `revoked` is replaced too, since no controller admits it.
    ///
    /// # Errors
    /// Fails if the key cannot be read, or if key or mark cannot be written.
    pub fn open_of(path: &Path, node_id: &NodeId, revoked: &[String]) -> Result<Self> {
        let mark = path.with_extension(MARK_EXTENSION);
        let failed = |error: std::io::Error| {
            Error::new(ErrorCode::Storage, format!("{} cannot be used", mark.display())).source(error)
        };
        let marked = match fs::read_to_string(&mark) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let is_own = marked.as_ref().map(|text| text.trim() == node_id.as_str());
        if is_own == Some(false) && path.exists() {
            tracing::warn!(%node_id, of = shown(marked.as_deref().unwrap_or_default()).as_str(),
                "the key is that of another node: a new one is generated");
            remove_keys(path).map_err(failed)?;
        }
        let mut keys = Self::open(path)?;
        if revoked.contains(&keys.current().public().thumbprint()) {
            tracing::warn!(%node_id, "the key was revoked: a new one is generated");
            remove_keys(path).map_err(failed)?;
            keys = Self::open(path)?;
        }
        // The key is stored first: a crash in between only makes another new key.
        if is_own != Some(true) {
            write_new(&mark, node_id.as_str().as_bytes()).map_err(failed)?;
        }
        Ok(keys)
    }

    /// Returns the current key.
    pub fn current(&self) -> Arc<NodeKey> {
        self.current.load_full()
    }

    fn next_path(&self) -> PathBuf {
        self.path.with_extension(NEXT_EXTENSION)
    }

    /// Returns the next key, if a rotation was started and its outcome is unknown.
    pub fn next(&self) -> Result<Option<NodeKey>> {
        let path = self.next_path();
        match path.try_exists() {
            Ok(true) => NodeKey::load_or_create(&path).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Starts a rotation. Returns the same next key until it is adopted or dropped.
    pub fn prepare_next(&self) -> Result<NodeKey> {
        NodeKey::load_or_create(&self.next_path())
    }

    /// Makes the next key the current key.
    pub fn adopt_next(&self) -> Result<()> {
        let next = NodeKey::load_or_create(&self.next_path())?;
        fs::rename(self.next_path(), &self.path).map_err(|error| self.failed(error))?;
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// Drops the next key of an abandoned rotation.
    pub fn drop_next(&self) -> Result<()> {
        match fs::remove_file(self.next_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(ErrorCode::Storage, format!("the node key {} cannot be changed", self.path.display()))
            .source(error)
    }
}

/// Removes a key, and the next key of an unfinished rotation.
fn remove_keys(path: &Path) -> std::io::Result<()> {
    for path in [path.to_owned(), path.with_extension(NEXT_EXTENSION)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
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

    #[test]
    fn key_marked_for_another_node_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-keypair.pem");
        let [one, other] = ["one", "other"].map(|name| NodeId::parse(name).unwrap());
        let key = |node: &NodeId| KeyFile::open_of(&path, node, &[]).unwrap().current().public();
        let unmarked = KeyFile::open(&path).unwrap().current().public();
        assert_eq!(key(&one), unmarked, "a key of an earlier version stays");
        KeyFile::open(&path).unwrap().prepare_next().unwrap();
        assert_eq!(key(&one), unmarked);
        let fresh = key(&other);
        assert_ne!(fresh, unmarked);
        assert!(
            KeyFile::open(&path).unwrap().next().unwrap().is_none(),
            "a change that was under way is not its own"
        );
        assert_eq!(key(&other), fresh, "replaced once");
        // As after a crash between key and mark.
        fs::write(path.with_extension(MARK_EXTENSION), "one").unwrap();
        assert_ne!(key(&other), fresh);
    }

    #[test]
    fn revoked_key_is_replaced_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-keypair.pem");
        let node = NodeId::parse("one").unwrap();
        let open = |revoked: &[String]| KeyFile::open_of(&path, &node, revoked).unwrap();
        let old = open(&[]).current().public();
        open(&[]).prepare_next().unwrap();
        let revoked = vec!["0".repeat(64), old.thumbprint()];
        let fresh = open(&revoked);
        assert_ne!(fresh.current().public(), old);
        assert!(fresh.next().unwrap().is_none(), "the next key was known to the holder of the old one");
        assert_eq!(open(&revoked).current().public(), fresh.current().public());
    }
}
