//! Rewrites an archive entry by entry: with other names and another owner, and without entries that a container may not
//! make.

use std::{
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use tar::{Archive, Builder, EntryType};

use super::Bounds;

/// Owner of a file inside a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u64,
    pub gid: u64,
}

pub const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// Counts of the rewritten entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub entries: u64,
    /// Bytes of the files' content.
    pub bytes: u64,
    /// Entries that are neither file, directory nor link, which are left out.
    pub skipped: u64,
}

/// The content exceeds the limit.
#[derive(Debug, thiserror::Error)]
#[error("it holds more than {entries} files or {content_bytes} bytes")]
pub struct TooMuch {
    entries: u64,
    content_bytes: u64,
}

/// Writes the entries of `from` to `to` under the names that `rename` gives, and adds them to `counts`.
///
/// Names and targets of hard links are relative to the archive. Any other name is an error.
pub fn rewrite<W: Write>(
    from: impl Read,
    to: &mut Builder<W>,
    rename: impl Fn(&Path) -> PathBuf,
    owner: Owner,
    bounds: &Bounds,
    counts: &mut Counts,
) -> io::Result<()> {
    let mut archive = Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !matches!(
            kind,
            EntryType::Regular
                | EntryType::Continuous
                | EntryType::Directory
                | EntryType::Symlink
                | EntryType::Link
        ) {
            counts.skipped += 1;
            continue;
        }
        let name = rename(&inner_name(&entry.path()?)?);
        if name.as_os_str().is_empty() {
            // The directory into which everything is unpacked.
            continue;
        }
        counts.entries += 1;
        counts.bytes = counts.bytes.saturating_add(entry.size());
        if counts.entries > bounds.entries || counts.bytes > bounds.content_bytes {
            let Bounds { entries, content_bytes, .. } = *bounds;
            return Err(io::Error::other(TooMuch { entries, content_bytes }));
        }
        // A new header: devices, user names and set-user-id bits are dropped.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(entry.header().mode()? & 0o777);
        header.set_mtime(entry.header().mtime()?);
        header.set_uid(owner.uid);
        header.set_gid(owner.gid);
        header.set_size(0);
        let target = || entry.link_name().map(|name| name.map(|name| name.into_owned()));
        match kind {
            EntryType::Symlink => to.append_link(&mut header, name, target()?.unwrap_or_default())?,
            EntryType::Link => {
                let target = rename(&inner_name(&target()?.unwrap_or_default())?);
                to.append_link(&mut header, name, target)?;
            }
            EntryType::Directory => to.append_data(&mut header, name, io::empty())?,
            _ => {
                header.set_size(entry.size());
                to.append_data(&mut header, name, &mut entry)?;
            }
        }
    }
    Ok(())
}

/// Returns the name without parts that lead to the root or above.
pub(super) fn inner_name(name: &Path) -> io::Result<PathBuf> {
    let refused = || {
        let name = aegis_types::text::shown(&name.to_string_lossy());
        io::Error::new(io::ErrorKind::InvalidData, format!("the name \"{name}\" leads out of the archive"))
    };
    let mut inner = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => inner.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(refused()),
        }
    }
    Ok(inner)
}
