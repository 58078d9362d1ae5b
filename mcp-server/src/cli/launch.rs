//! Starts the daemon in the background, for `aegis up` and `aegis mcp`.
//!
//! Concurrent starts are serialised by a lock in the data directory, so that only one daemon is started. The daemon's
//! own lock on the directory would reject a second one anyway.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use cluster_core::{
    config::{ConfigChoice, StartedBy},
    core::HealthView,
    fs::DataDirectory,
    types::error::{Error, ErrorCode, Result},
};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::{Context, client::Client, own_path};
use crate::daemon::files;

const LOG_FILE: &str = "aegis.log";
/// A larger log is renamed at the next start, which replaces the previous old log.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
const LOG_FILE_OLD: &str = "aegis.log.old";
const LOCK_FILE: &str = "start.lock";
/// Includes making keys and opening the database on a slow disk.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Time after which a daemon that answers but lacks a part (no Docker) is used as it is.
const READY_TIME_MAX: Duration = Duration::from_secs(15);
/// Number of attempts in one call, if another daemon was in the way.
const STARTS_MAX: u32 = 3;
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const LOG_BYTES_SHOWN_MAX: u64 = 4096;
const LOG_LINES_SHOWN_MAX: usize = 15;

/// Daemon that a start found or created.
#[derive(Debug)]
pub struct Launched {
    pub data_dir: PathBuf,
    pub client: Client,
    pub health: HealthView,
    /// False if a daemon was running already.
    pub started: bool,
}

/// Returns a daemon that answers: the running one, or a new one.
///
/// # Errors
///
/// Fails if the running daemon has another configuration than the requested one.
pub async fn ensure(context: &Context, config: &ConfigChoice, started_by: StartedBy) -> Result<Launched> {
    let data_dir = context.data_dir()?;
    let client = Client::new(&data_dir);
    if let Ok(health) = health(&client).await
        && health.ready
    {
        check_same(config, files::config_path(&data_dir).as_deref())?;
        return Ok(Launched { data_dir, client, health, started: false });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&data_dir).map_err(|e| unusable(&data_dir, e))?;
    let deadline = Instant::now() + START_TIME_MAX;
    let turn = take_turn(&data_dir, deadline).await?;
    let start = || spawn(context, &data_dir, config, started_by);
    let log_start = std::fs::metadata(data_dir.join(LOG_FILE)).map_or(0, |log| log.len());
    // Another process may have started the daemon during the wait.
    let child = if health(&client).await.is_ok() { None } else { Some(start()?) };
    let started = child.is_some();
    let log = Log { path: data_dir.join(LOG_FILE), start: log_start };
    let health = await_ready(&client, &data_dir, &log, child, start, deadline).await?;
    drop(turn);
    Ok(Launched { data_dir, client, health, started })
}

/// Checks that the running daemon has the requested configuration.
fn check_same(asked: &ConfigChoice, running: Option<&Path>) -> Result<()> {
    let runs_with = || running.map_or("the defaults".to_owned(), |path| path.display().to_string());
    let same = match asked {
        ConfigChoice::Usual => true,
        ConfigChoice::Defaults => running.is_none(),
        ConfigChoice::Named(path) => {
            let real = |path: &Path| std::fs::canonicalize(path).ok();
            running.is_some_and(|running| {
                running == path || real(running).is_some_and(|it| real(path) == Some(it))
            })
        }
    };
    match same {
        true => Ok(()),
        false => Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!("the daemon is running with {}", runs_with()),
        )
        .remedy("run `aegis stop` first, then start it with the other configuration")),
    }
}

/// Returns the health of a daemon, ready or not.
async fn health(client: &Client) -> Result<HealthView> {
    client.health().await
}

async fn take_turn(data_dir: &Path, deadline: Instant) -> Result<Flock<File>> {
    let open = || {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(data_dir.join(LOCK_FILE))
    };
    let mut file = open().map_err(|e| unusable(data_dir, e))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(Error::new(ErrorCode::Timeout, "another start of the daemon does not end"));
            }
            Err((_, errno)) => return Err(unusable(data_dir, errno.into())),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn spawn(context: &Context, data_dir: &Path, config: &ConfigChoice, started_by: StartedBy) -> Result<Child> {
    let path = data_dir.join(LOG_FILE);
    // The only place to rotate the log: no process writes to it now.
    if std::fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        std::fs::rename(&path, data_dir.join(LOG_FILE_OLD)).map_err(|e| unusable(&path, e))?;
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| unusable(data_dir, e))?;
    let mut command = Command::new(own_path()?);
    command.arg("serve").arg("--detached").arg("--data-dir").arg(data_dir);
    match config {
        ConfigChoice::Named(path) => {
            let path = std::path::absolute(path).map_err(|e| unusable(path, e))?;
            command.arg("--config").arg(path);
        }
        ConfigChoice::Defaults => {
            command.arg("--no-config");
        }
        ConfigChoice::Usual => {}
    }
    match started_by {
        // An assistant's working directory must not influence the daemon.
        StartedBy::Assistant => {
            command.arg("--started-by-assistant").current_dir(data_dir);
        }
        StartedBy::Person => {}
    }
    tracing::debug!(overrides = ?context.overrides, "starting the daemon");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map_err(|e| Error::internal("the daemon could not be started").source(e))
}

async fn await_ready(
    client: &Client,
    data_dir: &Path,
    log: &Log,
    mut child: Option<Child>,
    start: impl Fn() -> Result<Child>,
    deadline: Instant,
) -> Result<HealthView> {
    let ready_by = Instant::now() + READY_TIME_MAX;
    let mut starts = 1;
    loop {
        let known = health(client).await;
        if let Ok(health) = &known
            && (health.ready || Instant::now() >= ready_by)
        {
            return known;
        }
        let ended = match &mut child {
            Some(running) => running.try_wait().ok().flatten(),
            None => None,
        };
        if let Some(status) = ended {
            // Another daemon had the directory. Either it is starting and will answer soon, or it is about to end. Then
            // the directory is free, and the start is retried. (Or a port was taken.)
            let conflict = i32::from(crate::codes::of(ErrorCode::Conflict).exit);
            if status.code() != Some(conflict) || starts >= STARTS_MAX {
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    format!("the daemon ended at its start ({status}):\n{}", log.end()),
                )
                .remedy(format!("the whole log is {}", log.path.display())));
            }
            if known.is_err() && DataDirectory::own(data_dir).is_ok() {
                child = Some(start()?);
                starts += 1;
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorCode::Timeout,
                format!("the daemon is not up after {} s", START_TIME_MAX.as_secs()),
            )
            .remedy(format!("see {}", log.path.display())));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The daemon's log, and the position at which this start begins.
struct Log {
    path: PathBuf,
    start: u64,
}

impl Log {
    /// Returns the last lines of this start.
    fn end(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            // A log that is shorter than before was rotated at this start.
            let start = if self.start <= length { self.start } else { 0 };
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_SHOWN_MAX).max(start)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES_SHOWN_MAX);
        lines[from..].join("\n")
    }
}

fn unusable(path: &Path, e: std::io::Error) -> Error {
    Error::new(ErrorCode::Storage, format!("{} cannot be used", path.display()))
        .remedy("give the user who runs aegis a data directory it may write (--data-dir)")
        .source(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_end_shows_lines_of_this_start_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        std::fs::write(&path, "ERROR of yesterday\n").unwrap();
        let log = Log { path: path.clone(), start: std::fs::metadata(&path).unwrap().len() };
        std::fs::write(&path, "ERROR of yesterday\nERROR of today\n").unwrap();
        assert_eq!(log.end(), "ERROR of today");
        std::fs::write(&path, "short\n").unwrap();
        assert_eq!(log.end(), "short", "the old log was put aside");
    }

    #[test]
    fn another_configuration_than_the_running_one_is_refused() {
        let named = |path: &str| ConfigChoice::Named(path.into());
        let file = Some(Path::new("/etc/aegis/a.yaml"));
        for (asked, running, same) in [
            (ConfigChoice::Usual, file, true),
            (ConfigChoice::Usual, None, true),
            (ConfigChoice::Defaults, None, true),
            (ConfigChoice::Defaults, file, false),
            (named("/etc/aegis/a.yaml"), file, true),
            (named("/etc/aegis/b.yaml"), file, false),
            (named("/etc/aegis/a.yaml"), None, false),
        ] {
            assert_eq!(check_same(&asked, running).is_ok(), same, "{asked:?} {running:?}");
        }
    }
}
