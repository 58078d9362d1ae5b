//! Checks whether the data directory exists, has the right owner, is closed to others, and has space.

use std::{
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::statvfs::statvfs;

use super::{Check, Finding};
use crate::transport::unix;

/// Size limit of a socket's path, on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Below this space the database soon cannot be written.
const FREE_BYTES_MIN: u64 = 100 * MB;
/// Space for logs, workspaces and images in transit.
const FREE_BYTES_GOOD: u64 = 1024 * MB;
const MB: u64 = 1024 * 1024;
const OTHERS: u32 = 0o077;

#[derive(Debug)]
pub struct Facts {
    path: PathBuf,
    uid: u32,
    found: Found,
}

#[derive(Debug)]
enum Found {
    Missing,
    /// Error message of the system.
    Unreadable(String),
    NoDirectory,
    Directory {
        owner: u32,
        mode: u32,
        free_bytes: Option<u64>,
    },
}

pub fn look(path: &Path) -> Facts {
    let found = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Found::Missing,
        Err(e) => Found::Unreadable(e.to_string()),
        Ok(it) if !it.is_dir() => Found::NoDirectory,
        Ok(it) => Found::Directory {
            owner: it.uid(),
            mode: it.mode() & 0o7777,
            free_bytes: statvfs(path)
                .ok()
                .map(|disk| disk.blocks_available().saturating_mul(disk.fragment_size())),
        },
    };
    Facts { path: path.to_owned(), uid: nix::unistd::geteuid().as_raw(), found }
}

pub fn judge(Facts { path, uid, found }: &Facts) -> Vec<Finding> {
    let check = Check::DataDirectory;
    let shown = path.display();
    let mut findings = Vec::new();
    if path.join(unix::MCP).as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
        findings.push(check.fail(
            format!("{shown} is too long: a socket's path in it has at most {SOCKET_PATH_BYTES_MAX} bytes"),
            "use a shorter one with --data-dir or AEGIS_DATA_DIR",
        ));
    }
    match found {
        Found::Missing => findings.push(check.ok(format!("{shown} is made at the first start"))),
        Found::Unreadable(why) => findings.push(check.fail(
            format!("{shown} cannot be looked at: {why}"),
            "give the user who runs aegis a directory of its own (--data-dir)",
        )),
        Found::NoDirectory => findings
            .push(check.fail(format!("{shown} is no directory"), "move it away, or use another --data-dir")),
        Found::Directory { owner, mode, free_bytes } => {
            if owner != uid {
                findings.push(check.fail(
                    format!("{shown} belongs to user {owner}, and this is user {uid}"),
                    "run aegis as its owner, or use another --data-dir",
                ));
            }
            if mode & OTHERS != 0 {
                findings.push(check.fail(
                    format!("{shown} has mode {mode:04o}: other users reach what is in it"),
                    format!("chmod 700 {shown}"),
                ));
            }
            let free = free_bytes.unwrap_or(u64::MAX);
            let left = format!("{} MB are free in {shown}", free / MB);
            let space = "free some space there; `spec.runtime.retention` bounds what executions leave";
            if free < FREE_BYTES_MIN {
                findings.push(check.fail(left, space));
            } else if free < FREE_BYTES_GOOD {
                findings.push(check.warn(left, space));
            }
            if findings.is_empty() {
                findings.push(check.ok(shown.to_string()));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{self, Fail, Ok, Warn};
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    fn directory(owner: u32, mode: u32, free_mb: u64) -> Facts {
        let found = Found::Directory { owner, mode, free_bytes: Some(free_mb * MB) };
        Facts { path: "/home/a/.aegis".into(), uid: 1000, found }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        judge(facts).iter().map(|finding| finding.result).collect()
    }

    #[test]
    fn each_ill_is_a_finding() {
        assert_eq!(verdicts(&directory(1000, 0o700, 5000)), [Ok]);
        assert_eq!(verdicts(&directory(1000, 0o755, 5000)), [Fail]);
        assert_eq!(verdicts(&directory(0, 0o710, 50)), [Fail, Fail, Fail]);
        assert_eq!(verdicts(&directory(1000, 0o700, 500)), [Warn]);
        for (found, result) in
            [(Found::Missing, Ok), (Found::NoDirectory, Fail), (Found::Unreadable("denied".into()), Fail)]
        {
            assert_eq!(verdicts(&Facts { found, ..directory(0, 0, 0) }), [result]);
        }
        let long = Facts { path: format!("/{}", "x".repeat(120)).into(), ..directory(1000, 0o700, 5000) };
        assert_eq!(verdicts(&long), [Fail]);
    }

    #[test]
    fn a_real_one_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let close = |mode| std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        close(0o750);
        assert_eq!(verdicts(&look(dir.path())), [Fail]);
        close(0o700);
        assert_eq!(verdicts(&look(dir.path())), [Ok]);
        assert_eq!(verdicts(&look(&dir.path().join("not-yet"))), [Ok]);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(verdicts(&look(&file)), [Fail]);
    }
}
