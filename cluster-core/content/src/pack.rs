//! Packs a directory as one `tar.gz`: sorted, without owners, and byte-identical for identical content.
//!
//! Files that git ignores by `.gitignore`, files that `.ignore` and `.aegisignore` name, and `.git` are left out.
//! Hidden files are included. Files are opened relative to the open directory without following links, so that a file
//! swapped for a link leads nowhere outside.
//!
//! Not supported on purpose: rules from parent directories or of the user, so that a directory packs identically for
//! every user. Extended attributes and hard links are not supported either; each name gets the content.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};
use cap_std::fs::{Dir, MetadataExt as _, OpenOptions, OpenOptionsExt as _};
use flate2::{Compression, GzBuilder, write::GzEncoder};
use ignore::{DirEntry, WalkBuilder};
use tar::{Builder, EntryType, Header};

use super::{
    Bounds, lexical_target,
    roots::Source,
    written::{TooLarge, Written},
};

pub const IGNORE_FILE: &str = ".aegisignore";
const GIT_DIRECTORY: &str = ".git";

/// Result of packing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// SHA-256 of the packed bytes, in hex.
    pub digest: String,
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

/// Packs everything into `out`, and syncs the file.
pub fn pack(source: &Source, out: &File, bounds: &Bounds) -> Result<Packed> {
    // No time and no name in the gzip header: they would make equal content differ.
    let out = out.try_clone().map_err(|e| told(Path::new("."), e))?;
    let packed = GzBuilder::new().write(Written::new(out, bounds.packed_bytes), Compression::fast());
    let mut packer = Packer { tar: Builder::new(packed), root: &source.directory, entries: 0, content: 0 };
    for entry in walk(&source.path) {
        let entry = entry.map_err(|e| unwalkable(&source.path, e))?;
        if let Some(error) = entry.error() {
            return Err(Error::invalid(format!("workspace: {}", shown(&error.to_string())))
                .remedy("correct this rule: it says what stays here"));
        }
        let Ok(name) = entry.path().strip_prefix(&source.path) else { continue };
        if !name.as_os_str().is_empty() {
            packer.add(&entry, name, bounds)?;
        }
    }
    let entries = packer.entries;
    let written = packer.tar.into_inner().and_then(GzEncoder::finish).and_then(Written::finish);
    let (digest, bytes) = written.map_err(|e| told(Path::new("."), e))?;
    Ok(Packed { digest, bytes, entries })
}

fn walk(root: &Path) -> ignore::Walk {
    WalkBuilder::new(root)
        .hidden(false)
        .parents(false)
        .git_global(false)
        .git_exclude(false)
        .require_git(false)
        .follow_links(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .filter_entry(|entry| entry.depth() == 0 || entry.file_name() != GIT_DIRECTORY)
        .sort_by_file_name(std::ffi::OsStr::cmp)
        .build()
}

struct Packer<'a, W: Write> {
    tar: Builder<W>,
    root: &'a Dir,
    entries: u64,
    content: u64,
}

impl<W: Write> Packer<'_, W> {
    fn add(&mut self, entry: &DirEntry, name: &Path, bounds: &Bounds) -> Result<()> {
        self.entries += 1;
        if self.entries > bounds.entries {
            return Err(too_large(format!("it has more than {} files", bounds.entries)));
        }
        let kind = entry.file_type().ok_or_else(|| told(name, io::ErrorKind::Unsupported.into()))?;
        if kind.is_dir() {
            let found = self.root.symlink_metadata(name).map_err(|e| told(name, e))?;
            let mut header = header(EntryType::Directory, found.mode() & 0o777, found.mtime());
            self.tar.append_data(&mut header, name, io::empty()).map_err(|e| told(name, e))
        } else if kind.is_symlink() {
            self.link(name)
        } else if kind.is_file() {
            self.file(name, bounds)
        } else {
            let what = match kind {
                kind if kind.is_fifo() => "a FIFO",
                kind if kind.is_socket() => "a socket",
                _ => "a device",
            };
            Err(Error::invalid(format!("workspace: {} is {what}", shown(&name.to_string_lossy())))
                .remedy(format!("remove it, or name it in {IGNORE_FILE}")))
        }
    }

    fn file(&mut self, name: &Path, bounds: &Bounds) -> Result<()> {
        let mut options = OpenOptions::new();
        // Without NONBLOCK, a FIFO in the file's place would block without end.
        options.read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
        let file = self.root.open_with(name, &options).map_err(|e| told(name, e))?.into_std();
        let before = file.metadata().map_err(|e| told(name, e))?;
        if !before.is_file() {
            return Err(told(name, Trouble::Changed.into()));
        }
        self.content += before.len();
        if self.content > bounds.content_bytes {
            return Err(too_large(format!("its files have more than {} bytes", bounds.content_bytes)));
        }
        let mut header = header(EntryType::Regular, before.mode() & 0o777, before.mtime());
        header.set_size(before.len());
        let content = Steady { file: &file, left: before.len() };
        self.tar.append_data(&mut header, name, content).map_err(|e| told(name, e))?;
        let after = file.metadata().map_err(|e| told(name, e))?;
        let seen = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        match seen(&before) == seen(&after) {
            true => Ok(()),
            false => Err(told(name, Trouble::Changed.into())),
        }
    }

    fn link(&mut self, name: &Path) -> Result<()> {
        let target = self.root.read_link_contents(name).map_err(|e| told(name, e))?;
        // Also resolved by the kernel, since links on the path may lead elsewhere than the text says. A dangling link
        // is kept unchanged.
        let led = self.root.canonicalize(name);
        let leaves = |e: &io::Error| !matches!(e.kind(), io::ErrorKind::NotFound);
        if lexical_target(name, &target).is_none() || led.as_ref().is_err_and(leaves) {
            return Err(Error::invalid(format!(
                "workspace: the link {} leads out of the directory, to {}",
                shown(&name.to_string_lossy()),
                shown(&target.to_string_lossy())
            ))
            .remedy(format!("put what it names into the directory, or name the link in {IGNORE_FILE}")));
        }
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, name, &target).map_err(|e| told(name, e))
    }
}

/// Owner and group are root: an execution's container gives the files to its own user.
fn header(kind: EntryType, mode: u32, modified_secs: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(modified_secs).unwrap_or(0));
    header.set_size(0);
    header
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("it changed while it was read")]
    Changed,
}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> Self {
        io::Error::other(trouble)
    }
}

/// File with exactly the length in its header.
struct Steady<'a> {
    file: &'a File,
    left: u64,
}

impl Read for Steady<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.file.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(Trouble::Changed.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn told(name: &Path, error: io::Error) -> Error {
    let name = shown(&name.to_string_lossy());
    let changed = error.get_ref().is_some_and(|inner| inner.is::<Trouble>());
    match error.kind() {
        _ if changed => Error::new(
            ErrorCode::FailedPrecondition,
            format!("workspace: {name} changed while it was packed"),
        )
        .remedy("submit again once nothing writes there"),
        io::ErrorKind::NotFound => Error::new(
            ErrorCode::FailedPrecondition,
            format!("workspace: {name} vanished while it was packed"),
        )
        .remedy("submit again once nothing writes there"),
        io::ErrorKind::PermissionDenied => {
            Error::invalid(format!("workspace: the controller's user may not read {name}"))
                .remedy(format!("name it in {IGNORE_FILE}, or let the user read it"))
        }
        io::ErrorKind::StorageFull => {
            Error::new(ErrorCode::Storage, "the packed workspace does not fit on the controller's disk")
        }
        _ if error.get_ref().is_some_and(|inner| inner.is::<TooLarge>()) => too_large(error.to_string()),
        _ => Error::invalid(format!("workspace: {name} cannot be packed")),
    }
    .source(error)
}

fn too_large(why: String) -> Error {
    Error::new(ErrorCode::ResourceExhausted, format!("workspace: {why}"))
        .remedy(format!("leave out what is not needed, in {IGNORE_FILE}"))
}

fn unwalkable(root: &Path, error: ignore::Error) -> Error {
    let text = error.to_string().replace(&*root.to_string_lossy(), ".");
    Error::invalid(format!("workspace: it cannot be read as a whole: {}", shown(&text)))
        .remedy(format!("name what cannot be read in {IGNORE_FILE}"))
        .source(error)
}

#[cfg(test)]
mod tests;
