//! Checks whether the daemon runs, answers, has the same build, and has all its parts.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use cluster_core::{
    core::HealthView,
    fs::LOCK_FILE,
    types::error::{Error, ErrorCode, Result},
};

use super::{Check, Finding};
use crate::cli::client::Client;

/// Shorter than the time of a check: the holder of the directory is looked up concurrently.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(2500);

#[derive(Debug)]
pub struct Facts {
    pub health: Result<HealthView>,
    /// The process that holds the data directory.
    owner: Option<u32>,
}

impl Facts {
    pub fn holder(&self) -> Holder {
        match (&self.health, self.owner) {
            (Ok(_), _) => Holder::Daemon,
            (Err(_), Some(process)) => Holder::Silent(process),
            (Err(_), None) => Holder::Nobody,
        }
    }
}

/// Holder of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// A daemon that answers.
    Daemon,
    /// This process, which does not answer.
    Silent(u32),
}

pub async fn look(data_dir: &Path) -> Facts {
    let client = Client::new(data_dir);
    let silent = || Error::new(ErrorCode::Timeout, "it did not answer in time");
    let asked = tokio::time::timeout(ANSWER_TIME_MAX, client.health());
    let lock = data_dir.join(LOCK_FILE);
    let (health, owner) = tokio::join!(asked, super::blocking(move || owner_of(&lock)));
    Facts { health: health.unwrap_or_else(|_| Err(silent())), owner: owner.flatten() }
}

/// Returns the holder of a lock file from the kernel's list. Trying the lock could take it from a starting daemon.
fn owner_of(lock: &Path) -> Option<u32> {
    let inode = std::fs::metadata(lock).ok()?.ino();
    let noted = std::fs::read_to_string(lock).ok()?.trim().parse().ok()?;
    holds(&std::fs::read_to_string("/proc/locks").ok()?, inode, noted).then_some(noted)
}

/// Searches lines like `4: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`. Device numbers depend on the file system, so
/// the process must match too.
fn holds(locks: &str, inode: u64, process: u32) -> bool {
    locks.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words.as_slice() else { return false };
        pid.parse() == Ok(process) && file.rsplit(':').next().and_then(|it| it.parse().ok()) == Some(inode)
    })
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let check = Check::Daemon;
    let health = match (&facts.health, facts.owner) {
        (Ok(health), _) => health,
        (Err(_), Some(process)) => {
            return vec![check.fail(
                format!("process {process} has the data directory and does not answer"),
                "look into aegis.log in the data directory; if it hangs, end that process, then `aegis up`",
            )];
        }
        (Err(error), None) if error.code() == ErrorCode::Unavailable => {
            return vec![
                check.warn("none runs", "`aegis up` starts it, and so does an assistant's first request"),
            ];
        }
        (Err(error), None) => {
            return vec![check.fail(error.message(), "`aegis stop`, then `aegis up`")];
        }
    };
    let own = env!("CARGO_PKG_VERSION");
    let mut findings = Vec::new();
    if health.version != own {
        findings.push(check.warn(
            format!("the one that runs is aegis {}, and this is aegis {own}", health.version),
            "`aegis stop`, then `aegis up`: work on nodes goes on meanwhile",
        ));
    }
    for part in health.subsystems.iter().filter(|part| !part.ok) {
        let what = format!("{}: {}", part.name, part.detail);
        let remedy = match part.name.as_str() {
            "engine" => "start Docker and let the daemon's user use it",
            "cluster" => "see `aegis status` and aegis.log in the data directory",
            "certificates" => "see the certificates below, and aegis.log in the data directory",
            _ => "see aegis.log in the data directory",
        };
        findings.push(if part.critical { check.fail(what, remedy) } else { check.warn(what, remedy) });
    }
    if findings.is_empty() {
        let role = crate::cli::node::name(&health.role);
        findings.push(check.ok(format!("aegis {} runs as {role} {}", health.version, health.node_id)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{self, Fail, Ok as Good, Warn};
    use cluster_core::{core::Subsystem, types::node::Role};

    fn running(version: &str, parts: &[(&str, bool, bool)]) -> Facts {
        let part = |&(name, ok, critical): &(&str, bool, bool)| Subsystem {
            name: name.to_owned(),
            ok,
            critical,
            detail: "so it is".to_owned(),
        };
        let health = HealthView {
            ready: true,
            uptime_seconds: 1,
            version: version.to_owned(),
            node_id: "home".parse().unwrap(),
            cluster_id: None,
            role: Role::Hybrid,
            subsystems: parts.iter().map(part).collect(),
        };
        Facts { health: Ok(health), owner: Some(1) }
    }

    fn silent(code: ErrorCode, owner: Option<u32>) -> Facts {
        Facts { health: Err(Error::new(code, "nobody answers")), owner }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        judge(facts).iter().map(|finding| finding.result).collect()
    }

    #[test]
    fn a_daemon_is_judged_by_its_parts_and_version() {
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(verdicts(&running(own, &[("database", true, true)])), [Good]);
        assert_eq!(verdicts(&running("0.0.1", &[])), [Warn]);
        assert_eq!(
            verdicts(&running(own, &[("database", false, true), ("engine", false, false)])),
            [Fail, Warn]
        );
        assert_eq!(verdicts(&silent(ErrorCode::Unavailable, None)), [Warn]);
        assert_eq!(verdicts(&silent(ErrorCode::Unavailable, Some(7))), [Fail]);
        assert_eq!(verdicts(&silent(ErrorCode::Timeout, None)), [Fail]);
    }

    #[test]
    fn the_kernels_list_tells_who_holds_a_lock() {
        let list = "1: POSIX  ADVISORY  WRITE 7 fd:01:99 0 EOF\n2: FLOCK  ADVISORY  WRITE 7 fd:01:42 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 8 fd:01:42 0 EOF\n";
        assert!(holds(list, 42, 7));
        assert!(!holds(list, 99, 7) && !holds(list, 42, 8) && !holds("", 42, 7));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_data_directory_that_is_held_is_seen_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join(LOCK_FILE);
        let held = cluster_core::fs::DataDirectory::own(dir.path()).unwrap();
        assert_eq!(owner_of(&lock), Some(std::process::id()));
        drop(held);
        assert_eq!(owner_of(&lock), None);
    }
}
