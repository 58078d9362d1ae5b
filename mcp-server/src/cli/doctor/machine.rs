//! Checks the machine itself: its clock, the limit of open files, and whether `aegis` is found by name.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::sys::resource::{Resource, getrlimit};

use super::{Check, Finding};

/// Skew that the daemon tolerates between machines.
const CLOCK_SKEW_MAX_SECS: u64 = 30;
/// Each link has a few open files, and each assistant two.
const OPEN_FILES_GOOD: u64 = 1024;
const PROGRAM: &str = "aegis";

/// Seconds by which the clock is behind an earlier reading.
#[derive(Debug)]
pub struct ClockFacts {
    behind_program: u64,
    behind_data: u64,
}

/// There is no other clock to compare; but earlier files must not have times in the future.
pub fn look_at_clock(data_dir: &Path, own: &Path) -> ClockFacts {
    let behind = |path: &Path| {
        let written = std::fs::metadata(path).and_then(|it| it.modified()).ok();
        let ahead = written.and_then(|written| written.duration_since(SystemTime::now()).ok());
        ahead.map_or(0, |ahead| ahead.as_secs())
    };
    ClockFacts { behind_program: behind(own), behind_data: behind(&data_dir.join("aegis.db")) }
}

pub fn judge_clock(facts: &ClockFacts) -> Vec<Finding> {
    let behind = facts.behind_program.max(facts.behind_data);
    let finding = if behind > CLOCK_SKEW_MAX_SECS {
        Check::Clock.fail(
            format!("it went back: what was written here is {behind} s in its future"),
            "set it right and keep it so (NTP): tokens, certificates and nodes are judged by it",
        )
    } else {
        let now = cluster_core::types::clock::rfc3339(cluster_core::types::clock::now_ms() / 1000 * 1000);
        Check::Clock.ok(format!("{now}; deployments compare it with each host's"))
    };
    vec![finding]
}

/// Returns the limit that a daemon started from here would have; `None` if it cannot be read.
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

pub fn judge_open_files(limit: Option<u64>) -> Finding {
    let check = Check::OpenFiles;
    match limit {
        Some(limit) if limit < OPEN_FILES_GOOD => check.warn(
            format!("{limit} at most: many nodes and assistants need more"),
            format!("ulimit -n {OPEN_FILES_GOOD} (or more) before the daemon is started"),
        ),
        Some(limit) => check.ok(format!("{limit} at most")),
        None => check.ok("no limit is known"),
    }
}

#[derive(Debug)]
pub struct PathFacts {
    own: PathBuf,
    /// First executable of that name.
    found: Option<PathBuf>,
    same: bool,
}

pub fn look_at_path(own: PathBuf) -> PathFacts {
    let found = find(Path::new(PROGRAM), std::env::var_os("PATH"));
    let same = found.as_ref().and_then(|it| it.canonicalize().ok()) == own.canonicalize().ok();
    PathFacts { own, found, same }
}

/// Finds a program as a shell does: a path directly, a name in the directories of `PATH`.
pub fn find(program: &Path, path: Option<std::ffi::OsString>) -> Option<PathBuf> {
    let runs = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(runs);
    }
    std::env::split_paths(&path?).map(|directory| directory.join(program)).find(runs)
}

pub fn judge_path(PathFacts { own, found, same }: &PathFacts) -> Vec<Finding> {
    let check = Check::Path;
    let (own, link) =
        (own.display(), "install the one you mean first in PATH, for example in /usr/local/bin");
    let finding = match found {
        Some(found) if *same => check.ok(found.display().to_string()),
        Some(found) => check.warn(format!("`{PROGRAM}` is {}, and this is {own}", found.display()), link),
        None => check.warn(
            format!("`{PROGRAM}` is not found by name: a client that names no path cannot start {own}"),
            link,
        ),
    };
    vec![finding]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{Fail, Ok as Good, Warn};
    use std::time::Duration;

    #[test]
    fn a_clock_that_went_back_fails() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("aegis.db");
        let judged = || judge_clock(&look_at_clock(dir.path(), &database))[0].result;
        assert_eq!(judged(), Good, "nothing was written yet");
        let file = std::fs::File::create(&database).unwrap();
        assert_eq!(judged(), Good);
        file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        assert_eq!(judged(), Fail);
    }

    #[test]
    fn few_open_files_are_told() {
        assert_eq!(judge_open_files(Some(256)).result, Warn);
        assert_eq!(judge_open_files(Some(1024)).result, Good);
        assert!(open_files().is_some());
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for directory in [&one, &two] {
            std::fs::create_dir(directory).unwrap();
        }
        let path = std::env::join_paths([&one, &two]).unwrap();
        let program = two.join(PROGRAM);
        assert_eq!(find(Path::new(PROGRAM), Some(path.clone())), None);
        std::fs::write(&program, "").unwrap();
        assert_eq!(find(Path::new(PROGRAM), Some(path.clone())), None, "it is no program yet");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Path::new(PROGRAM), Some(path)), Some(program.clone()));
        assert_eq!(find(&program, None), Some(program.clone()));
        let facts =
            |found: Option<&PathBuf>, same| PathFacts { own: "/a".into(), found: found.cloned(), same };
        assert_eq!(judge_path(&facts(Some(&program), true))[0].result, Good);
        assert_eq!(judge_path(&facts(Some(&program), false))[0].result, Warn);
        assert_eq!(judge_path(&facts(None, false))[0].result, Warn);
    }
}
