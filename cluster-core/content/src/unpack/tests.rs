use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::BOUNDS;

struct Made<'a> {
    name: &'a str,
    kind: EntryType,
    /// Content, or a link's target.
    content: &'a str,
}

const fn file<'a>(name: &'a str, content: &'a str) -> Made<'a> {
    Made { name, kind: EntryType::Regular, content }
}

const fn link<'a>(name: &'a str, kind: EntryType, content: &'a str) -> Made<'a> {
    Made { name, kind, content }
}

/// Builds an archive by hand, since the builder would reject most of these names.
fn archive(entries: &[Made<'_>]) -> io::Cursor<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let is_link = matches!(entry.kind, EntryType::Symlink | EntryType::Link);
        let content = if is_link { "" } else { entry.content };
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        if is_link {
            gnu.linkname[..entry.content.len()].copy_from_slice(entry.content.as_bytes());
        }
        header.set_entry_type(entry.kind);
        header.set_mode(0o4755);
        header.set_mtime(77);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut packed, &bytes).unwrap();
    io::Cursor::new(packed.finish().unwrap())
}

#[test]
fn files_links_and_times_come_out_as_they_went_in() {
    let world = tempfile::tempdir().unwrap();
    let into = world.path().join("new/out");
    let good = archive(&[
        link("d", EntryType::Directory, ""),
        file("./d/a", "1"),
        file("deep/er/b", "2"),
        link("d/same", EntryType::Link, "d/a"),
        link("d/to", EntryType::Symlink, "../deep/er/b"),
    ]);
    let counts = unpack(good.clone(), &into, false, &BOUNDS).unwrap();
    assert_eq!((counts.entries, counts.bytes), (5, 2));
    for (name, content) in [("d/a", "1"), ("deep/er/b", "2"), ("d/same", "1"), ("d/to", "2")] {
        assert_eq!(fs::read_to_string(into.join(name)).unwrap(), content, "{name}");
    }
    let found = fs::metadata(into.join("d/a")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7000, 0, "no set-user-id");
    assert_eq!(found.modified().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(77));
    fs::write(into.join("d/a"), "mine").unwrap();
    let error = unpack(good.clone(), &into, false, &BOUNDS).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict);
    assert_eq!(fs::read_to_string(into.join("d/a")).unwrap(), "mine");
    unpack(good, &into, true, &BOUNDS).unwrap();
    assert_eq!(fs::read_to_string(into.join("d/a")).unwrap(), "1");
}

#[test]
fn bad_archives_are_refused_before_anything_is_written() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    let cases: &[&[Made<'_>]] = &[
        &[file("../evil", "x")],
        &[file("/evil", "x")],
        &[file("a/../../evil", "x")],
        &[link("../evil", Directory, "")],
        &[link("l", Symlink, "/etc")],
        &[link("l", Symlink, "..")],
        &[link("a/l", Symlink, "../../x")],
        &[link("l", Symlink, "sub"), file("l/x", "x")],
        &[link("l", Symlink, "."), link("l/d", Directory, "")],
        &[link("h", Link, "/etc/passwd")],
        &[link("h", Link, "../outside")],
        &[link("h", Link, "not-in-it")],
        &[link("l", Symlink, "x"), link("h", Link, "l")],
        &[link("f", Fifo, "")],
        &[link("c", Char, "")],
        &[link("b", Block, "")],
        &[file("", "x")],
        &[file("first", "y")],
        &[link("l", Symlink, "first"), file("./l", "y")],
    ];
    for (number, case) in cases.iter().enumerate() {
        let world = tempfile::tempdir().unwrap();
        let into = world.path().join("into");
        fs::write(world.path().join("outside"), "old").unwrap();
        let mut entries = vec![file("first", "x")];
        entries.extend(case.iter().map(|made| Made { ..*made }));
        let error = unpack(archive(&entries), &into, true, &BOUNDS).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Forbidden, "case {number}: {error}");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "case {number} wrote something");
        assert_eq!(fs::read_dir(world.path()).unwrap().count(), 2, "case {number}");
    }
}

#[test]
fn a_link_that_waits_in_the_directory_leads_nowhere_outside() {
    let world = tempfile::tempdir().unwrap();
    let (into, outside) = (world.path().join("into"), world.path().join("outside"));
    fs::create_dir_all(&into).unwrap();
    fs::create_dir_all(&outside).unwrap();
    symlink(&outside, into.join("l")).unwrap();
    assert!(unpack(archive(&[file("l/x", "x")]), &into, true, &BOUNDS).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    fs::write(outside.join("x"), "old").unwrap();
    symlink(outside.join("x"), into.join("f")).unwrap();
    unpack(archive(&[file("f", "new")]), &into, true, &BOUNDS).unwrap();
    assert_eq!(fs::read_to_string(outside.join("x")).unwrap(), "old", "the link was replaced");
}

#[test]
fn a_bomb_and_a_cut_archive_are_refused() {
    let into = tempfile::tempdir().unwrap();
    let bounds = Bounds { entries: 2, content_bytes: 3, ..BOUNDS };
    let large = archive(&[file("a", "12"), file("b", "34")]);
    let many = archive(&[file("a", ""), file("b", ""), file("c", "")]);
    for bad in [large, many] {
        let error = unpack(bad, into.path(), false, &bounds).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    }
    let whole = archive(&[file("a", "12"), file("b", "34")]).into_inner();
    let cut = io::Cursor::new(whole[..whole.len() / 2].to_vec());
    assert!(unpack(cut, into.path(), false, &BOUNDS).is_err());
    assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
}
