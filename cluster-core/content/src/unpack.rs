//! Unpacks an archive that a container filled into a person's directory.
//!
//! The archive is read twice. The first pass writes nothing and rejects any problem or conflict. Writes are relative to
//! the open directory, links are written last, and nothing is written through a link of the archive.
//!
//! Not supported on purpose: owners, set-user-id, devices.

use std::{
    collections::HashSet,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};
use cap_std::{
    ambient_authority,
    fs::{Dir, OpenOptions, OpenOptionsExt as _},
};
use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use super::{
    Bounds, lexical_target,
    rewrite::{Counts, inner_name},
};

/// Unpacks a `tar.gz`. Existing files are an error unless `replace` is set. A directory is never replaced by a file.
pub fn unpack(mut archive: impl Read + Seek, into: &Path, replace: bool, bounds: &Bounds) -> Result<Counts> {
    std::fs::create_dir_all(into).map_err(|e| unwritable(into, e))?;
    let directory = Dir::open_ambient_dir(into, ambient_authority()).map_err(|e| unwritable(into, e))?;
    let mut checked =
        Checked { directory: &directory, replace, bounds, counts: Counts::default(), seen: Seen::default() };
    each(&mut archive, |entry| checked.entry(entry))?;
    let counts = checked.counts;
    let mut links = Vec::new();
    each(&mut archive, |entry| write(&directory, entry, replace, &mut links))?;
    for (name, target) in links {
        clear(&directory, &name, replace)?;
        directory.symlink_contents(&target, &name).map_err(|e| unwritable(&name, e))?;
    }
    Ok(counts)
}

type Entry<'a, R> = tar::Entry<'a, GzDecoder<R>>;

fn each<R: Read + Seek>(
    archive: &mut R,
    mut take: impl FnMut(&mut Entry<'_, &mut R>) -> Result<()>,
) -> Result<()> {
    archive.seek(SeekFrom::Start(0)).map_err(damaged)?;
    let mut tar = Archive::new(GzDecoder::new(archive));
    for entry in tar.entries().map_err(damaged)? {
        take(&mut entry.map_err(damaged)?)?;
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    files: HashSet<PathBuf>,
    links: HashSet<PathBuf>,
}

struct Checked<'a> {
    directory: &'a Dir,
    replace: bool,
    bounds: &'a Bounds,
    counts: Counts,
    seen: Seen,
}

impl Checked<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let name = name_of(entry)?;
        self.counts.entries += 1;
        self.counts.bytes = self.counts.bytes.saturating_add(entry.size());
        if self.counts.entries > self.bounds.entries || self.counts.bytes > self.bounds.content_bytes {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!(
                    "the archive holds more than {} files or {} bytes",
                    self.bounds.entries, self.bounds.content_bytes
                ),
            ));
        }
        if name.ancestors().skip(1).any(|above| self.seen.links.contains(above)) {
            return Err(bad(&name, "lies behind a link that the archive brings"));
        }
        if self.seen.files.contains(&name) || self.seen.links.contains(&name) {
            return Err(bad(&name, "is there twice"));
        }
        let kind = entry.header().entry_type();
        let found = self.directory.symlink_metadata(&name);
        if kind == EntryType::Directory {
            return match found {
                Ok(found) if !found.is_dir() => Err(in_the_way(&name, "it is not a directory")),
                _ => Ok(()),
            };
        }
        match found {
            Ok(found) if found.is_dir() => return Err(in_the_way(&name, "it is a directory")),
            Ok(_) if !self.replace => {
                return Err(in_the_way(&name, "it exists").remedy("use another directory, or --overwrite"));
            }
            _ => {}
        }
        let target = entry.link_name().map_err(damaged)?.map(|target| target.into_owned());
        match (kind, target) {
            (EntryType::Regular | EntryType::Continuous, _) => {
                self.seen.files.insert(name);
            }
            (EntryType::Symlink, Some(target)) => {
                if lexical_target(&name, &target).is_none() {
                    return Err(bad(&name, "is a link that leads out of the directory"));
                }
                self.seen.links.insert(name);
            }
            (EntryType::Link, Some(target)) => {
                let target = inner_name(&target).map_err(damaged)?;
                if !self.seen.files.contains(&target) {
                    return Err(bad(&name, "is another name of something that the archive does not hold"));
                }
                self.seen.files.insert(name);
            }
            _ => return Err(bad(&name, "is neither a file, a directory nor a link")),
        }
        Ok(())
    }
}

/// Writes the checked files; symbolic links are only recorded.
fn write<R: Read>(
    directory: &Dir,
    entry: &mut tar::Entry<'_, R>,
    replace: bool,
    links: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<()> {
    let name = name_of(entry)?;
    let kind = entry.header().entry_type();
    if kind == EntryType::Directory {
        return directory.create_dir_all(&name).map_err(|e| unwritable(&name, e));
    }
    if let Some(parent) = name.parent() {
        directory.create_dir_all(parent).map_err(|e| unwritable(&name, e))?;
    }
    let target = entry.link_name().map_err(damaged)?.map(|target| target.into_owned());
    match (kind, target) {
        (EntryType::Symlink, Some(target)) => links.push((name, target)),
        (EntryType::Link, Some(target)) => {
            clear(directory, &name, replace)?;
            let target = inner_name(&target).map_err(damaged)?;
            directory.hard_link(&target, directory, &name).map_err(|e| unwritable(&name, e))?;
        }
        _ => {
            clear(directory, &name, replace)?;
            let mode = entry.header().mode().map_err(damaged)? & 0o777;
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(mode);
            let file = directory.open_with(&name, &options).map_err(|e| unwritable(&name, e))?;
            let mut file = file.into_std();
            io::copy(entry, &mut file).map_err(|e| unwritable(&name, e))?;
            let modified = entry.header().mtime().map_err(damaged)?;
            if let Some(modified) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(modified)) {
                // A time that this file system cannot store is not an error.
                let _ = file.set_modified(modified);
            }
        }
    }
    Ok(())
}

/// Removes an existing file or link that may be replaced.
fn clear(directory: &Dir, name: &Path, replace: bool) -> Result<()> {
    if !replace {
        return Ok(());
    }
    match directory.remove_file(name) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unwritable(name, e)),
        _ => Ok(()),
    }
}

fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<PathBuf> {
    let name = entry.path().and_then(|name| inner_name(&name)).map_err(damaged)?;
    match name.as_os_str().is_empty() && entry.header().entry_type() != EntryType::Directory {
        true => Err(bad(&name, "is no name")),
        false => Ok(name),
    }
}

fn bad(name: &Path, why: &str) -> Error {
    Error::new(
        ErrorCode::Forbidden,
        format!("the archive is refused: \"{}\" {why}", shown(&name.to_string_lossy())),
    )
    .remedy("nothing was unpacked; do not trust what ran")
}

fn in_the_way(name: &Path, why: &str) -> Error {
    Error::new(ErrorCode::Conflict, format!("{} cannot be unpacked: {why}", shown(&name.to_string_lossy())))
}

fn damaged(error: io::Error) -> Error {
    let text = shown(&error.to_string());
    Error::new(ErrorCode::Forbidden, format!("the archive is refused: {text}")).source(error)
}

fn unwritable(name: &Path, error: io::Error) -> Error {
    let why = shown(&error.to_string());
    Error::new(ErrorCode::Storage, format!("{} cannot be written: {why}", name.display())).source(error)
}

#[cfg(test)]
mod tests;
