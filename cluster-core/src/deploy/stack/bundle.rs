//! The files that a compose file names and that travel with it: read from beneath its own directory
//! only, bounded, with their modes.
//!
//! On the host each named file or directory (a root) lies under the digest of its content, and releases
//! hold links to it. So what has not changed is neither sent nor replaced, and a container that is not
//! recreated keeps the directory that it has mounted, however many releases come after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use super::document::{Kind, Source, refuse};
use crate::{
    deploy::hex_digest,
    error::{Error, ErrorCode, Result},
    ids::shown,
};

const FILES_MAX: usize = 1000;
const BYTES_MAX: u64 = 64 * 1024 * 1024;
const DEPTH_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 512;
const SECRET_MODE: u32 = 0o600;
const FILE_MODE: u32 = 0o644;
const EXECUTABLE_MODE: u32 = 0o755;
/// Of the tar stream, after all else: a stream without it was cut.
pub const COMPLETE: &str = "complete";
/// What lies at the top of the base directory and is not the stack's.
const RESERVED: [&str; 13] = [
    "private.list",
    ".work",
    "releases",
    "run",
    "current",
    "current.new",
    "release.json",
    "previous",
    ".env",
    "aegis-config.yaml",
    "docker-compose.yml",
    "docker-compose.operator.yml",
    "docker-compose.override.yml",
];

#[derive(Clone, PartialEq, Eq)]
struct File {
    mode: u32,
    content: Vec<u8>,
    digest: String,
}

/// A file or directory that is named, with all that lies in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// Beneath the directory of the compose file; `/` between the parts.
    pub path: String,
    /// By path beneath the root; a root that is a file has the one with the empty path.
    files: BTreeMap<String, File>,
    /// Beneath the root; one that is a directory has at least itself, as the empty path.
    directories: Vec<String>,
}

/// All roots of a stack, none within another.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    roots: Vec<Root>,
    /// Env files and secret files: a service may print what they hold.
    private: Vec<String>,
}

/// Names only: among the contents are secrets.
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
    /// Of names, modes and contents.
    pub fn digest(&self) -> String {
        self.digest_under("")
    }

    fn digest_under(&self, path: &str) -> String {
        let mut text = String::new();
        for directory in self.directories.iter().filter(|directory| is_within(directory, path)) {
            text.push_str(&format!("d {directory}\n"));
        }
        for (name, file) in self.files.iter().filter(|(name, _)| is_within(name, path)) {
            text.push_str(&format!("f {name} {:o} {}\n", file.mode, file.digest));
        }
        hex_digest(text.as_bytes())
    }

    /// Whether one of these paths is in it.
    pub fn holds_any(&self, paths: &BTreeSet<&str>) -> bool {
        self.files.keys().any(|name| paths.contains(joined(&self.path, name).as_str()))
    }

    /// Where a release links to, seen from the link.
    pub fn link_target(&self) -> String {
        format!("{}../.files/{}", "../".repeat(self.path.matches('/').count()), self.digest())
    }
}

/// Whether a path beneath a root is another one, or lies in it.
fn is_within(path: &str, directory: &str) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Bundle {
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Paths of env files and secret files.
    pub fn private(&self) -> &[String] {
        &self.private
    }

    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// SHA-256 of each file, by its path beneath the compose file's directory.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let files = self.roots.iter().flat_map(|root| {
            root.files.iter().map(|(name, file)| (joined(&root.path, name), file.digest.clone()))
        });
        files.collect()
    }

    /// Of what one source names; `None` when it does not travel.
    pub fn digest_of(&self, path: &str) -> Option<String> {
        let root = self.roots.iter().find(|root| is_within(path, &root.path))?;
        let beneath = path[root.path.len()..].trim_start_matches('/');
        Some(root.digest_under(beneath))
    }

    /// Contents that must not be shown.
    pub fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        let files = self.roots.iter().flat_map(|root| root.files.values());
        files.filter(|file| file.mode == SECRET_MODE).map(|file| file.content.as_slice())
    }

    /// The roots of these digests as one tar stream, each under its digest.
    pub fn archive(&self, digests: &[String]) -> Result<Vec<u8>> {
        let failed =
            |error: std::io::Error| Error::internal("the archive of files cannot be made").source(error);
        let mut archive = tar::Builder::new(Vec::new());
        let mut done = Vec::new();
        for root in &self.roots {
            let digest = root.digest();
            // Two names of equal content are one.
            if !digests.contains(&digest) || done.contains(&digest) {
                continue;
            }
            for directory in &root.directories {
                let path = format!("{}/", joined(&digest, directory));
                let mut header = header(tar::EntryType::Directory, EXECUTABLE_MODE, 0);
                archive.append_data(&mut header, path, std::io::empty()).map_err(failed)?;
            }
            for (name, file) in &root.files {
                let mut header = header(tar::EntryType::Regular, file.mode, file.content.len() as u64);
                let path = joined(&digest, name);
                archive.append_data(&mut header, path, file.content.as_slice()).map_err(failed)?;
            }
            done.push(digest);
        }
        let mut end = header(tar::EntryType::Regular, SECRET_MODE, 0);
        archive.append_data(&mut end, COMPLETE, std::io::empty()).map_err(failed)?;
        archive.into_inner().map_err(failed)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn joined(directory: &str, name: &str) -> String {
    match (directory.is_empty(), name.is_empty()) {
        (_, true) => directory.to_owned(),
        (true, _) => name.to_owned(),
        _ => format!("{directory}/{name}"),
    }
}

/// Where a source lies beneath the compose file's directory; `None` when it is the host's.
pub(super) fn local_path(service: &str, source: &Source, directory: &Path) -> Result<Option<String>> {
    let Source { kind, path, key, .. } = source;
    let wrong = |why: &str| {
        refuse(format!("service {service}: {key} names {}, {why}", shown(path)))
            .remedy("keep the files of a stack beside or below its compose file, and name them like ./x")
    };
    if path.starts_with('/') {
        return match kind {
            Kind::Bind if !Path::new(path).starts_with(directory) => Ok(None),
            Kind::Bind => Err(wrong("which is a path of this machine and not of the host")),
            Kind::EnvFile | Kind::Config | Kind::Secret => Err(wrong("an absolute path")),
        };
    }
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(|| wrong("which is not UTF-8"))?),
            _ => return Err(wrong("which leads out of the compose file's directory")),
        }
    }
    let Some(first) = parts.first() else {
        return Err(wrong("the whole directory of the compose file"));
    };
    if RESERVED.contains(first)
        || first.starts_with(".lock")
        || first.starts_with(".aegis-before")
        || first.ends_with(".before-aegis")
    {
        return Err(wrong("a name that a deployment has for itself"));
    }
    let path = parts.join("/");
    if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
        return Err(wrong("which is too long or holds control characters"));
    }
    Ok(Some(path))
}

/// What is to be read: by path, who names it and why.
pub(super) type Named = BTreeMap<String, (String, Source)>;

/// Reads every root; a file that is not required may be missing.
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
    // A directory comes before what lies in it only if it is a prefix part by part.
    let mut paths: Vec<&String> = named.keys().collect();
    paths.sort_by_key(|path| path.split('/').collect::<Vec<_>>());
    for path in paths {
        let (service, source) = &named[path];
        let at = At { service, key: &source.key };
        if roots.iter().any(|root| is_within(path, &root.path)) {
            // It is sent with its directory; that it is there is all there is to ask.
            if source.required && !directory.join(path).exists() {
                return Err(at.wrong(path, "is not there"));
            }
            continue;
        }
        let full = directory.join(path);
        if full.symlink_metadata().is_err() && !source.required {
            continue;
        }
        let mut root = Root { path: path.clone(), files: BTreeMap::new(), directories: Vec::new() };
        reader.add(&mut root, at, full, "", 0)?;
        roots.push(root);
    }
    let private =
        |(_, (_, source)): &(&String, &(String, Source))| matches!(source.kind, Kind::Secret | Kind::EnvFile);
    let private = named.iter().filter(private).map(|(path, _)| path.clone()).collect();
    Ok(Bundle { roots, private })
}

/// Who names what is being read.
#[derive(Clone, Copy)]
struct At<'a> {
    service: &'a str,
    key: &'a str,
}

impl At<'_> {
    fn wrong(self, path: &str, why: &str) -> Error {
        refuse(format!("service {}: {}: {} {why}", self.service, self.key, shown(path)))
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
    /// Links are followed as long as they stay beneath the directory.
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
        root.directories.push(name.to_owned());
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
        let mode = match metadata.permissions().mode() & 0o111 != 0 {
            _ if is_secret => SECRET_MODE,
            true => EXECUTABLE_MODE,
            false => FILE_MODE,
        };
        Ok(File { mode, digest: hex_digest(&content), content })
    }
}

fn too_much(at: At<'_>, what: &str) -> Error {
    Error::new(
        ErrorCode::ResourceExhausted,
        format!("the stack's files are too many: {what} (at service {}, {})", at.service, at.key),
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
            let path = local_path("web", source, Path::new("/project")).unwrap().unwrap();
            (path, ("web".to_owned(), source.clone()))
        });
        named.collect()
    }

    #[test]
    fn only_what_lies_beneath_the_compose_file_is_named() {
        let local = |kind, path: &str| local_path("web", &source(kind, path), Path::new("/project"));
        assert_eq!(local(Kind::Bind, "./a/./b/").unwrap().as_deref(), Some("a/b"));
        assert_eq!(local(Kind::Bind, "/dev/dri").unwrap(), None);
        for (kind, bad) in [
            (Kind::Bind, "../x"),
            (Kind::Bind, "a/../../x"),
            (Kind::Bind, "."),
            (Kind::Bind, "./"),
            (Kind::Bind, "./releases/x"),
            (Kind::Bind, ".env"),
            (Kind::Bind, "run"),
            (Kind::Bind, "a\nb"),
            (Kind::Bind, "/project/conf"),
            (Kind::Secret, "/etc/shadow"),
            (Kind::EnvFile, "/etc/environment"),
        ] {
            let error = local(kind, bad).unwrap_err();
            assert!(error.to_string().contains("service web: volumes names"), "{bad}: {error}");
        }
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
        fs::set_permissions(path("conf/run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(path("pw"), "hunter2-secret").unwrap();
        symlink("a", path("conf/link")).unwrap();
        let wanted =
            named(&[source(Kind::Bind, "conf"), source(Kind::Secret, "pw"), source(Kind::Bind, "conf/a")]);
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
        assert_eq!(found[&format!("{conf}/run.sh")], 0o755);
        assert_eq!(found[&format!("{conf}/a")], 0o644);
        assert_eq!(found[&digests[1]], 0o600);
        assert!(found.contains_key(&format!("{conf}/empty/")) && found.contains_key(COMPLETE));
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
    fn what_is_missing_is_named_unless_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path(), &named(&[source(Kind::Bind, "conf")])).unwrap_err();
        assert!(error.to_string().contains("service web: volumes: conf is not there"), "{error}");
        let optional = Source { required: false, ..source(Kind::EnvFile, "x.env") };
        assert!(read(dir.path(), &named(&[optional])).unwrap().is_empty());
    }

    #[test]
    fn links_of_a_release_lead_to_the_content() {
        let root =
            |path: &str| Root { path: path.into(), files: BTreeMap::new(), directories: vec![String::new()] };
        let digest = root("a").digest();
        assert_eq!(root("a").link_target(), format!("../.files/{digest}"));
        assert_eq!(root("a/b/c").link_target(), format!("../../../.files/{digest}"));
    }
}
