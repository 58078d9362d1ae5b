//! Directories in transit: workspaces packed on the controller's machine and sent to a node, and artifacts on their
//! way back.
//!
//! - [`roots`]: the directories that may be packed, depending on the requester.
//! - [`pack`]: packs a directory as one file, byte-identical for identical content.
//! - [`written`]: a packed file while it is written.
//! - [`blob_store`]: packed files on disk, by the digest of their bytes, as long as an execution needs them.
//! - [`rewrite`]: rewrites an archive with other names or owners.
//! - [`unpack`]: unpacks an untrusted archive into a person's directory, and nowhere else.
//!
//! All functions block: callers use a blocking thread. This crate has no tasks.

pub mod blob_store;
pub mod pack;
pub mod rewrite;
pub mod roots;
pub mod unpack;
pub mod written;

use std::path::{Component, Path, PathBuf};

/// Limits of one archive.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub packed_bytes: u64,
    /// Unpacked size of all files together.
    pub content_bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

/// Limits of workspaces and of artifacts.
pub const BOUNDS: Bounds =
    Bounds { packed_bytes: 512 * 1024 * 1024, content_bytes: 4 * 1024 * 1024 * 1024, entries: 100_000 };

/// Returns the target of a link if it stays inside the base directory. Only the text is examined; the kernel decides
/// about other links on the path.
fn lexical_target(link: &Path, target: &Path) -> Option<PathBuf> {
    let mut place = link.parent()?.to_path_buf();
    for part in target.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::CurDir => {}
            Component::ParentDir if place.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_inside_or_nowhere() {
        let leads = |link: &str, target: &str| lexical_target(Path::new(link), Path::new(target));
        assert_eq!(leads("a/b", "../c"), Some("c".into()));
        assert_eq!(leads("a/b", "./d/../e"), Some("a/e".into()));
        assert_eq!(leads("a", "."), Some("".into()));
        for (link, target) in [("a", ".."), ("a/b", "../../c"), ("a", "/etc"), ("a", "b/../../c")] {
            assert_eq!(leads(link, target), None, "{link} -> {target}");
        }
    }
}
