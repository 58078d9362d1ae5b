use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::Command,
    time::{Duration, SystemTime},
};

use cap_std::ambient_authority;
use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::BOUNDS;

fn source(path: &Path) -> Source {
    let path = path.canonicalize().unwrap();
    Source { directory: Dir::open_ambient_dir(&path, ambient_authority()).unwrap(), path }
}

fn packed(path: &Path, bounds: &Bounds) -> Result<(Packed, Vec<u8>)> {
    let mut out = tempfile::tempfile().unwrap();
    let packed = pack(&source(path), &out, bounds)?;
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut out).unwrap();
    out.read_to_end(&mut bytes).unwrap();
    assert_eq!(packed.bytes, bytes.len() as u64);
    assert_eq!(packed.digest, hex::encode(Sha256::digest(&bytes)));
    Ok((packed, bytes))
}

/// Name to (content or target, mode, time).
fn listed(bytes: &[u8]) -> BTreeMap<String, (String, u32, u64)> {
    let mut archive = tar::Archive::new(GzDecoder::new(bytes));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        if let Some(target) = entry.link_name().unwrap() {
            content = target.to_string_lossy().into_owned();
        }
        (name, (content, header.mode().unwrap(), header.mtime().unwrap()))
    });
    entries.collect()
}

#[test]
fn the_same_content_packs_to_the_same_bytes() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let names = ["b", "a/x", "a.b", "z/y/w", ".hidden", "é", &long];
    let fill = |directory: &Path, names: &mut dyn Iterator<Item = &&str>| {
        for name in names {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
        for entry in walk(directory) {
            let file = File::open(entry.unwrap().path()).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(77)).unwrap();
        }
    };
    fill(first.path(), &mut names.iter());
    fill(second.path(), &mut names.iter().rev());
    let (one, bytes) = packed(first.path(), &BOUNDS).unwrap();
    let (two, _) = packed(second.path(), &BOUNDS).unwrap();
    assert_eq!(one, two);
    let found = listed(&bytes);
    assert_eq!(found[&long], (long.clone(), 0o644, 77));
    assert!(found.contains_key(".hidden") && found.contains_key("é"));
    fs::write(first.path().join("b"), "c").unwrap();
    assert_ne!(packed(first.path(), &BOUNDS).unwrap().0.digest, two.digest);
}

#[test]
fn ignore_files_hold_and_everything_else_goes_along() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in [".git/config", "target/big", "src/a.rs", "src/.env", "data/raw/x", "data/keep", "logs/a.log"]
    {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), "x").unwrap();
    }
    fs::create_dir(at("empty")).unwrap();
    fs::write(at(".gitignore"), "/target\n*.log\n!keep\n").unwrap();
    fs::write(at("data/.ignore"), "raw/\n").unwrap();
    fs::write(at("src/.aegisignore"), ".env\n").unwrap();
    fs::set_permissions(at("src/a.rs"), fs::Permissions::from_mode(0o4755)).unwrap();
    let found = listed(&packed(directory.path(), &BOUNDS).unwrap().1);
    let files = found.keys().map(String::as_str).filter(|name| !name.ends_with('/')).collect::<Vec<_>>();
    let expected = [
        ".gitignore",
        "data",
        "data/.ignore",
        "data/keep",
        "empty",
        "logs",
        "src",
        "src/.aegisignore",
        "src/a.rs",
    ];
    assert_eq!(files, expected);
    assert_eq!(found["src/a.rs"].1, 0o755, "no set-user-id");
    fs::write(at(".aegisignore"), "{bad\n[\n").unwrap();
    let error = packed(directory.path(), &BOUNDS).unwrap_err();
    assert!(error.to_string().contains("rule"), "{error}");
}

#[test]
fn links_that_stay_are_kept_and_those_that_leave_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/file"), "x").unwrap();
    for (target, link) in [("file", "a/l"), ("../a/file", "a/up"), ("nowhere", "dangling"), ("..", "a/b/top")]
    {
        symlink(target, at(link)).unwrap();
    }
    let found = listed(&packed(directory.path(), &BOUNDS).unwrap().1);
    assert_eq!((found["a/up"].0.as_str(), found["dangling"].0.as_str()), ("../a/file", "nowhere"));
    // The last one stays by its words, and leaves by where `top` leads.
    for (target, link) in
        [("/etc/passwd", "absolute"), ("..", "parent"), ("../../x", "a/far"), ("a/b/top/../../x", "sly")]
    {
        symlink(target, at(link)).unwrap();
        let error = packed(directory.path(), &BOUNDS).unwrap_err();
        assert!(error.to_string().contains(&format!("the link {link}")), "{error}");
        fs::remove_file(at(link)).unwrap();
    }
    symlink("/etc", at("a/etc")).unwrap();
    fs::write(at(IGNORE_FILE), "etc\n").unwrap();
    packed(directory.path(), &BOUNDS).expect("what stays here may lead anywhere");
}

#[test]
fn what_is_no_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let error = packed(directory.path(), &BOUNDS).unwrap_err();
    assert!(error.to_string().contains("pipe is a FIFO"), "{error}");
    fs::remove_file(at("pipe")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
    let error = packed(directory.path(), &BOUNDS).unwrap_err();
    assert!(error.to_string().contains("sock is a socket"), "{error}");
}

#[test]
fn sizes_and_counts_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        let noise = (0..40_000).map(|_| uuid::Uuid::new_v4().as_u128() as u8).collect::<Vec<_>>();
        fs::write(directory.path().join(name), noise).unwrap();
    }
    for (bounds, text) in [
        (Bounds { entries: 2, ..BOUNDS }, "more than 2 files"),
        (Bounds { packed_bytes: 50_000, ..BOUNDS }, "more than 50000 bytes"),
        (Bounds { packed_bytes: 10, ..BOUNDS }, "more than 10 bytes"),
        (Bounds { content_bytes: 100_000, ..BOUNDS }, "more than 100000 bytes"),
    ] {
        let error = packed(directory.path(), &bounds).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_file_that_changes_or_is_swapped_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, "12345").unwrap();
    let file = File::open(&path).unwrap();
    let mut cut = Steady { file: &file, left: 6 };
    let error = told(Path::new("log"), cut.read_to_end(&mut Vec::new()).unwrap_err());
    assert!(error.to_string().contains("log changed while it was packed"), "{error}");
    // After the walk has seen a file there, a link that leads out takes its place.
    let source = source(directory.path());
    let seen = walk(&source.path).find(|entry| entry.as_ref().unwrap().depth() == 1).unwrap().unwrap();
    let mut packer =
        Packer { tar: Builder::new(Vec::new()), root: &source.directory, entries: 0, content: 0 };
    fs::remove_file(&path).unwrap();
    let error = packer.add(&seen, Path::new("log"), &BOUNDS).unwrap_err();
    assert!(error.to_string().contains("log vanished"), "{error}");
    symlink("/etc/passwd", &path).unwrap();
    packer.add(&seen, Path::new("log"), &BOUNDS).unwrap_err();
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    packer.add(&seen, Path::new("log"), &BOUNDS).unwrap_err();
    let written = packer.tar.into_inner().unwrap();
    assert!(!written.windows(4).any(|four| four == b"root"), "nothing of it was read");
}
