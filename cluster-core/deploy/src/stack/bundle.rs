//! Files that a compose file names and that are sent with it. They are read only from below its own directory, with
//! limits, and with their modes.
//!
//! Each named file or directory is a root. Releases hold links to the roots on the host.
//!
//! - A root that containers only read is stored under the digest of its content. Unchanged content is neither sent nor
//!   replaced, and a container that is not recreated keeps its mounted directory.
//! - A root that a container may write to is stored under its own path, outside the releases. It is sent once, if the
//!   host lacks it. From then on its content belongs to the containers. No deployment, rollback or clean-up reads,
//!   repairs or removes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};

use super::source::{Kind, PATH_BYTES_MAX, Source, is_within, joined, refuse};
use crate::hex_digest;

const FILES_MAX: usize = 1000;
const BYTES_MAX: u64 = 64 * 1024 * 1024;
const DEPTH_MAX: usize = 32;
/// Mode of a file secret, which any user of a container may read. The directory above it is 0700.
const SECRET_MODE: u32 = 0o444;
/// Bits of a mode that are kept: those of owner, group and others.
const MODE_BITS: u32 = 0o777;
/// Mode of a directory that digests leave out.
const DIRECTORY_MODE: u32 = 0o755;
/// Mode of the entry that ends an archive.
const END_MODE: u32 = 0o600;
/// Mode of the files that Compose reads, in a directory that is removed afterwards.
const PROJECT_MODE: u32 = 0o600;
/// Directory of an archive that Compose reads.
pub const PROJECT_DIRECTORY: &str = "project";
/// Last entry of the tar stream. A stream without it was cut.
pub const COMPLETE: &str = "complete";

#[derive(Clone, PartialEq, Eq)]
struct File {
    mode: u32,
    /// The file holds a secret.
    is_secret: bool,
    content: Vec<u8>,
    digest: String,
}

/// A named file or directory, with all its content.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// Path relative to the directory of the compose file, with `/` between the parts.
    pub path: String,
    /// Files by path relative to the root. A root that is a file has one entry with the empty path.
    files: BTreeMap<String, File>,
    /// Modes by path relative to the root. A root that is a directory has at least an entry with the empty path.
    directories: BTreeMap<String, u32>,
    /// A container may write to the root.
    is_writable: bool,
}

/// All roots of a stack, which do not overlap.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    roots: Vec<Root>,
    /// Env files and secret files, whose content a service may print.
    private: Vec<String>,
}

/// Shows names only, since the contents include secrets.
impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} files)", self.path, self.files.len())
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.roots).finish()
    }
}

impl Root {
    /// Returns the digest of names, modes and contents.
    pub fn digest(&self) -> String {
        self.digest_under("")
    }

    fn digest_under(&self, path: &str) -> String {
        let mut text = String::new();
        for (directory, mode) in self.directories.iter().filter(|(directory, _)| is_within(directory, path)) {
            match *mode {
                DIRECTORY_MODE => text.push_str(&format!("d {directory}\n")),
                mode => text.push_str(&format!("d {directory} {mode:o}\n")),
            }
        }
        for (name, file) in self.files.iter().filter(|(name, _)| is_within(name, path)) {
            text.push_str(&format!("f {name} {:o} {}\n", file.mode, file.digest));
        }
        hex_digest(text.as_bytes())
    }

    /// Returns whether a path is the root or lies in it.
    pub fn holds(&self, path: &str) -> bool {
        is_within(path, &self.path)
    }

    /// Returns whether any of these paths lies in the root.
    pub fn holds_any(&self, paths: &BTreeSet<&str>) -> bool {
        self.files.keys().any(|name| paths.contains(joined(&self.path, name).as_str()))
    }

    /// Returns the target of the release's link, relative to the link.
    pub fn link_target(&self) -> String {
        let up = "../".repeat(self.path.matches('/').count());
        match self.is_writable {
            true => format!("{up}../../.data/{}", self.path),
            false => format!("{up}../.files/{}", self.digest()),
        }
    }

    /// Returns the root's name in an archive: the digest of its content, or its path.
    fn name(&self) -> String {
        if self.is_writable { self.path.clone() } else { self.digest() }
    }
}

impl Bundle {
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Returns the paths of env files and secret files.
    pub fn private(&self) -> &[String] {
        &self.private
    }

    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Returns the roots that containers only read.
    pub fn read_only(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(|root| !root.is_writable)
    }

    /// Returns the roots that a container may write to.
    pub fn writable(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(|root| root.is_writable)
    }

    /// Returns the SHA-256 of each read-only file, by its path below the compose file's directory.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let files = self.read_only().flat_map(|root| {
            root.files.iter().map(|(name, file)| (joined(&root.path, name), file.digest.clone()))
        });
        files.collect()
    }

    /// Returns the digest of a source; `None` if it is not sent, or belongs to the containers.
    pub fn digest_of(&self, path: &str) -> Option<String> {
        let root = self.read_only().find(|root| is_within(path, &root.path))?;
        let beneath = path[root.path.len()..].trim_start_matches('/');
        Some(root.digest_under(beneath))
    }

    /// Returns contents that must not be shown.
    pub fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        let files = self.roots.iter().flat_map(|root| root.files.values());
        files.filter(|file| file.is_secret).map(|file| file.content.as_slice())
    }

    /// Packs the read-only roots with these digests as one tar stream, each under its digest.
    pub fn archive(&self, digests: &[String]) -> Result<Vec<u8>> {
        Self::pack(self.read_only().filter(|root| digests.contains(&root.digest())))
    }

    /// Packs the writable roots with these paths as one tar stream, each under its path.
    pub fn archive_writable(&self, paths: &[String]) -> Result<Vec<u8>> {
        Self::pack(self.writable().filter(|root| paths.contains(&root.path)))
    }

    /// Packs all roots under their paths and other files, each below [`PROJECT_DIRECTORY`], as one tar stream.
    pub(super) fn archive_project(&self, others: &[(&str, &str)]) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = header(tar::EntryType::Regular, PROJECT_MODE, content.len() as u64);
            archive.append_data(&mut header, joined(PROJECT_DIRECTORY, name), content).map_err(failed)
        };
        for root in &self.roots {
            for (name, file) in &root.files {
                add(&joined(&root.path, name), &file.content)?;
            }
        }
        for (name, content) in others {
            add(name, content.as_bytes())?;
        }
        finish(archive)
    }

    fn pack<'a>(roots: impl Iterator<Item = &'a Root>) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut done = Vec::new();
        for root in roots {
            let top = root.name();
            // Two paths with equal content share one entry.
            if done.contains(&top) {
                continue;
            }
            for (directory, mode) in &root.directories {
                let path = format!("{}/", joined(&top, directory));
                let mut header = header(tar::EntryType::Directory, *mode, 0);
                archive.append_data(&mut header, path, std::io::empty()).map_err(failed)?;
            }
            for (name, file) in &root.files {
                let mut header = header(tar::EntryType::Regular, file.mode, file.content.len() as u64);
                let path = joined(&top, name);
                archive.append_data(&mut header, path, file.content.as_slice()).map_err(failed)?;
            }
            done.push(top);
        }
        finish(archive)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::internal("the archive of files cannot be made").source(error)
}

/// Ends an archive with the entry that proves that it is complete.
fn finish(mut archive: tar::Builder<Vec<u8>>) -> Result<Vec<u8>> {
    let mut end = header(tar::EntryType::Regular, END_MODE, 0);
    archive.append_data(&mut end, COMPLETE, std::io::empty()).map_err(failed)?;
    archive.into_inner().map_err(failed)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

/// Sources to read: by path, the user and the kind.
pub(super) type Named = BTreeMap<String, (String, Source)>;

/// Reads every root. A file that is not required may be missing.
pub(super) fn read(directory: &Path, named: &Named) -> Result<Bundle> {
    let directory =
        fs::canonicalize(directory).map_err(|error| refuse("its directory cannot be read").source(error))?;
    let secrets: Vec<&str> = named
        .iter()
        .filter(|(_, (_, source))| source.kind == Kind::Secret)
        .map(|(path, _)| path.as_str())
        .collect();
    let mut reader = Reader { directory: &directory, secrets: &secrets, files: 0, bytes: 0 };
    let mut roots: Vec<Root> = Vec::new();
    // A directory sorts before its content only if paths are compared part by part.
    let mut paths: Vec<&String> = named.keys().collect();
    paths.sort_by_key(|path| path.split('/').collect::<Vec<_>>());
    for path in paths {
        let (user, source) = &named[path];
        let at = At { user, key: &source.key };
        if roots.iter().any(|root| is_within(path, &root.path)) {
            // The file is sent with its directory; only its existence is checked.
            if source.required && !directory.join(path).exists() {
                return Err(at.wrong(path, "is not there"));
            }
            continue;
        }
        let full = directory.join(path);
        if full.symlink_metadata().is_err() && !source.required {
            continue;
        }
        // A directory belongs to the containers if one of them may write anywhere in it.
        let is_writable =
            named.iter().any(|(name, (_, source))| source.kind == Kind::Bind && is_within(name, path));
        let mut root =
            Root { path: path.clone(), files: BTreeMap::new(), directories: BTreeMap::new(), is_writable };
        reader.add(&mut root, at, full, "", 0)?;
        roots.push(root);
    }
    let private =
        |(_, (_, source)): &(&String, &(String, Source))| matches!(source.kind, Kind::Secret | Kind::EnvFile);
    let private = named.iter().filter(private).map(|(path, _)| path.clone()).collect();
    Ok(Bundle { roots, private })
}

/// User of the source that is being read, for errors.
#[derive(Clone, Copy)]
struct At<'a> {
    user: &'a str,
    key: &'a str,
}

impl At<'_> {
    fn wrong(self, path: &str, why: &str) -> Error {
        refuse(format!("{}: {}: {} {why}", self.user, self.key, shown(path)))
            .remedy("put it there (an empty directory will do for one), or take it out of the compose file")
    }
}

struct Reader<'a> {
    directory: &'a Path,
    secrets: &'a [&'a str],
    files: usize,
    bytes: u64,
}

impl Reader<'_> {
    /// Adds a path to a root. Follows links as long as they stay inside the directory.
    fn add(&mut self, root: &mut Root, at: At<'_>, full: PathBuf, name: &str, depth: usize) -> Result<()> {
        let path = joined(&root.path, name);
        let real = fs::canonicalize(&full).map_err(|error| at.wrong(&path, "is not there").source(error))?;
        if !real.starts_with(self.directory) {
            return Err(at.wrong(&path, "is a link that leads out of the compose file's directory"));
        }
        if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
            return Err(at.wrong(&path, "is too long, or holds control characters"));
        }
        self.files += 1;
        if self.files > FILES_MAX || depth > DEPTH_MAX {
            return Err(too_much(
                at,
                &format!("more than {FILES_MAX} files, or {DEPTH_MAX} directories deep"),
            ));
        }
        let metadata =
            fs::metadata(&real).map_err(|error| at.wrong(&path, "cannot be read").source(error))?;
        if metadata.is_file() {
            let file = self.read_file(at, &path, &real, &metadata)?;
            root.files.insert(name.to_owned(), file);
            return Ok(());
        }
        if !metadata.is_dir() {
            return Err(at.wrong(&path, "is neither a file nor a directory"));
        }
        // The owner must be able to fill the directory.
        root.directories.insert(name.to_owned(), metadata.permissions().mode() & MODE_BITS | 0o700);
        let unreadable = |error: std::io::Error| at.wrong(&path, "cannot be read").source(error);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&real).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?.file_name();
            let entry = entry.to_str().ok_or_else(|| at.wrong(&path, "holds a name that is not UTF-8"))?;
            entries.push(entry.to_owned());
            if entries.len() > FILES_MAX {
                return Err(too_much(at, &format!("more than {FILES_MAX} files")));
            }
        }
        entries.sort();
        for entry in entries {
            self.add(root, at, full.join(&entry), &joined(name, &entry), depth + 1)?;
        }
        Ok(())
    }

    fn read_file(&mut self, at: At<'_>, path: &str, real: &Path, metadata: &fs::Metadata) -> Result<File> {
        let left = BYTES_MAX.saturating_sub(self.bytes);
        let mut content = Vec::new();
        let read = fs::File::open(real).and_then(|file| file.take(left + 1).read_to_end(&mut content));
        read.map_err(|error| at.wrong(path, "cannot be read").source(error))?;
        self.bytes += content.len() as u64;
        if self.bytes > BYTES_MAX {
            return Err(too_much(at, &format!("more than {} MB in all", BYTES_MAX / (1024 * 1024))));
        }
        let is_secret = self.secrets.iter().any(|secret| is_within(path, secret));
        let mode = if is_secret { SECRET_MODE } else { metadata.permissions().mode() & MODE_BITS };
        Ok(File { mode, is_secret, digest: hex_digest(&content), content })
    }
}

fn too_much(at: At<'_>, what: &str) -> Error {
    Error::new(
        ErrorCode::ResourceExhausted,
        format!("the stack's files are too many: {what} (at {}, {})", at.user, at.key),
    )
    .remedy("put data into a volume or an image, and send only what configures the stack")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn source(kind: Kind, path: &str) -> Source {
        Source { kind, path: path.to_owned(), key: "volumes".to_owned(), required: true }
    }

    fn named(sources: &[Source]) -> Named {
        let named = sources.iter().map(|source| {
            let path = super::super::source::local_path("service web", source, Path::new("/project"))
                .unwrap()
                .unwrap();
            (path, ("service web".to_owned(), source.clone()))
        });
        named.collect()
    }

    #[test]
    fn files_are_read_with_their_modes_and_none_from_outside() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("key"), "private").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("conf/empty")).unwrap();
        fs::write(path("conf/a"), "a").unwrap();
        fs::write(path("conf/run.sh"), "#!/bin/sh").unwrap();
        let set =
            |name: &str, mode| fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        set("conf/run.sh", 0o750);
        set("conf/a", 0o600);
        set("conf/empty", 0o700);
        fs::write(path("pw"), "hunter2-secret").unwrap();
        symlink("a", path("conf/link")).unwrap();
        let wanted = named(&[
            source(Kind::BindReadOnly, "conf"),
            source(Kind::Secret, "pw"),
            source(Kind::Config, "conf/a"),
        ]);
        let bundle = read(dir.path(), &wanted).unwrap();
        assert_eq!(bundle.digests().keys().collect::<Vec<_>>(), ["conf/a", "conf/link", "conf/run.sh", "pw"]);
        assert_eq!(bundle.roots().len(), 2, "one lies within another");
        assert!(!format!("{bundle:?}").contains("hunter2"));
        assert_eq!(bundle.secrets().collect::<Vec<_>>(), [b"hunter2-secret"]);
        let digests: Vec<String> = bundle.roots().iter().map(Root::digest).collect();
        let archive = bundle.archive(&digests).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            found.insert(name, entry.header().mode().unwrap());
        }
        let conf = &digests[0];
        assert_eq!(found[&format!("{conf}/run.sh")], 0o750);
        assert_eq!(found[&format!("{conf}/a")], 0o600);
        assert_eq!(found[&format!("{conf}/empty/")], 0o700);
        assert_eq!(found[&digests[1]], 0o444, "the container's user reads it");
        assert!(found.contains_key(COMPLETE));
        let before = bundle.digest_of("conf/a").unwrap();
        fs::write(path("conf/run.sh"), "#!/bin/sh\n").unwrap();
        let after = read(dir.path(), &wanted).unwrap();
        assert_eq!(after.digest_of("conf/a"), Some(before), "each source has a digest of its own");
        assert_ne!(after.digest_of("conf"), bundle.digest_of("conf"));
        symlink(outside.path().join("key"), path("conf/out")).unwrap();
        let error = read(dir.path(), &wanted).unwrap_err();
        assert!(error.to_string().contains("conf/out is a link that leads out"), "{error}");
        fs::remove_file(path("conf/out")).unwrap();
        symlink(".", path("conf/circle")).unwrap();
        assert_eq!(read(dir.path(), &wanted).unwrap_err().code(), ErrorCode::ResourceExhausted);
    }

    #[test]
    fn writable_roots_lie_under_their_paths_and_are_not_compared() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pgdata", "redis", "www", "www/cache"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("pgdata/notes"), "1").unwrap();
        fs::write(dir.path().join("www/index.html"), "2").unwrap();
        let wanted = named(&[
            source(Kind::Bind, "pgdata"),
            source(Kind::Bind, "redis"),
            source(Kind::BindReadOnly, "www"),
            source(Kind::Bind, "www/cache"),
        ]);
        let bundle = read(dir.path(), &wanted).unwrap();
        let targets: Vec<_> = bundle.roots().iter().map(Root::link_target).collect();
        assert_eq!(targets, ["../../.data/pgdata", "../../.data/redis", "../../.data/www"]);
        assert!(bundle.digests().is_empty() && bundle.digest_of("pgdata").is_none());
        assert_eq!(bundle.read_only().count(), 0, "a directory with a writable part is its containers'");
        let archive = bundle.archive_writable(&["pgdata".to_owned()]).unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        let names: Vec<_> = names.map(|path| path.to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["pgdata/", "pgdata/notes", COMPLETE]);
    }

    #[test]
    fn what_is_missing_is_named_unless_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path(), &named(&[source(Kind::Bind, "conf")])).unwrap_err();
        assert!(error.to_string().contains("service web: volumes: conf is not there"), "{error}");
        let optional = Source { required: false, ..source(Kind::EnvFile, "x.env") };
        assert!(read(dir.path(), &named(&[optional])).unwrap().is_empty());
    }

    #[test]
    fn links_of_a_release_lead_to_the_content() {
        let of = |path: &str, is_writable| Root {
            path: path.into(),
            files: BTreeMap::new(),
            directories: BTreeMap::from([(String::new(), DIRECTORY_MODE)]),
            is_writable,
        };
        let root = |path| of(path, false);
        assert_eq!(of("a/b", true).link_target(), "../../../.data/a/b");
        let digest = root("a").digest();
        assert_eq!(root("a").link_target(), format!("../.files/{digest}"));
        assert_eq!(root("a/b/c").link_target(), format!("../../../.files/{digest}"));
    }
}
