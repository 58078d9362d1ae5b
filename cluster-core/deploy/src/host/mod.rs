//! Host of a deployment. Each action is one constant script (see [`crate::host::scripts`]). Scripts are idempotent, so that
//! they can run again after a cut connection.

pub mod access;
mod agent_sockets;
pub mod compose;
pub mod http;
pub mod images;
pub mod link_key;
pub mod releases;
pub mod scripts;

use std::{io::Cursor, time::Duration};

use aegis_ssh::{Connection, ScriptOutput, script::tail};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::DeploymentId,
};
use tokio::io::AsyncRead;

use super::{
    release::ReleaseFiles,
    stack::{Bundle, COMPLETE, Root},
};
use crate::model::{
    project::PROJECT,
    release::{NOTE_FILE, PRIVATE_FILE},
};

/// Time for an earlier lock process of this deployment to end.
const LOCK_WAIT_MIN_SECS: u64 = 3;
/// Age of the last beat after which the lock holder counts as dead, since its connection was cut silently. A beat may
/// wait behind data on a slow line, which SSH's own keepalive limits to seconds.
const LOCK_LEASE_SECS: &str = "120";
const SHORT: Duration = Duration::from_secs(30);
/// Time for Compose's own work, without waiting for health checks and stops.
const UP_TIMEOUT: Duration = Duration::from_secs(180);
/// Time to remove old releases and images, which may be slow. A failure is not an error of the deployment.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(180);
/// Time for 64 MB over a slow line.
const FILES_LIMIT: Duration = Duration::from_secs(600);
pub const LOG_LINES: usize = 20;

/// Host of a deployment, with its base directory.
#[derive(Debug, Clone, Copy)]
pub struct HostSession<'a> {
    pub connection: &'a Connection,
    pub base: &'a str,
}

pub use self::{
    compose::LogsAsked,
    releases::{LastLook, Standing},
};
/// Lock that keeps all other deployments off the host. It is released when dropped or when the connection ends.
pub use aegis_ssh::Held as HostLock;

impl HostSession<'_> {
    /// Takes the lock of the host: `flock` held by a process of this session. Waits up to `wait`; the error for a busy
    /// host names the holder. A holder left by a cut connection of this deployment is ended, as are its scripts. A
    /// holder without recent beats is ended too.
    pub async fn lock(&self, deployment: &DeploymentId, owner: &str, wait: Duration) -> Result<HostLock> {
        let who = format!("{deployment} of {owner}");
        let seconds = wait.as_secs().max(LOCK_WAIT_MIN_SECS).to_string();
        let arguments = [self.base, deployment.as_str(), &who, &seconds, LOCK_LEASE_SECS];
        let (output, held) =
            self.connection.hold(scripts::LOCK, &arguments, "AEGIS-LOCK", wait + SHORT).await?;
        if let Some(holder) = output.stdout.lines().find_map(|line| line.strip_prefix("BUSY ")) {
            let host = &self.connection.target().host;
            return Err(Error::new(
                ErrorCode::HostBusy,
                format!("{host} is held by deployment {}", tail(holder, 1)),
            )
            .remedy(
                "follow it with get_deployment_status where it was started, or wait for it with lock_wait_seconds",
            ));
        }
        if !output.stdout.lines().any(|line| line == "AEGIS-LOCK") {
            return Err(Error::new(
                ErrorCode::DeploymentFailed,
                format!("{} cannot be made or locked", self.base),
            )
            .remedy("make it writable for the ssh user"));
        }
        Ok(held)
    }

    /// Sends a release and switches to it in one rename.
    pub async fn upload(&self, files: &ReleaseFiles, deployment: &DeploymentId, note: &[u8]) -> Result<()> {
        let release = format!("{}/releases/{deployment}", self.base);
        let arguments = [self.base, deployment.as_str(), PROJECT];
        self.run("make the release directory", scripts::PREPARE, &arguments, SHORT).await?;
        self.send_bundle(files, deployment).await?;
        // The note is sent last: a release without a note is incomplete.
        let private = files.private_list();
        let private = private.iter().map(|names| (PRIVATE_FILE, names.as_slice()));
        let all = files.iter().chain(private).chain([(NOTE_FILE, note)]);
        // SFTP runs as the login's user, and not every host has SFTP.
        let sftp = match self.connection.is_elevated() {
            true => None,
            false => match self.connection.sftp().await {
                Ok(sftp) => Some(sftp),
                Err(error) if error.code() == ErrorCode::HostCheckFailed => None,
                Err(error) => return Err(error),
            },
        };
        for (name, content) in all {
            let path = format!("{release}/{name}");
            match &sftp {
                Some(sftp) => sftp.write_file(&path, content, 0o600).await?,
                None => self.write_over_stdin(&path, content).await?,
            }
        }
        // The SFTP session may be the only one that the host allows.
        drop(sftp);
        self.switch_to(deployment).await
    }

    /// Sends the bundle files that the host lacks in one stream, and links the release to them.
    async fn send_bundle(&self, files: &ReleaseFiles, deployment: &DeploymentId) -> Result<()> {
        let bundle = files.bundle();
        if bundle.is_empty() {
            return Ok(());
        }
        self.send_writable(bundle, deployment).await?;
        let digests: Vec<String> = bundle.read_only().map(Root::digest).collect();
        let mut arguments = vec![self.base];
        arguments.extend(digests.iter().map(String::as_str));
        let output =
            self.run("look for the stack's files", scripts::MISSING_FILES, &arguments, SHORT).await?;
        let mut missing: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
        missing.extend(digests.iter().filter(|digest| files.was_changed_by_hand(digest)).cloned());
        if !missing.is_empty() {
            let input = Cursor::new(bundle.archive(&missing)?);
            let arguments = [self.base, deployment.as_str(), COMPLETE];
            self.run_with("receive the stack's files", scripts::RECEIVE, &arguments, input, FILES_LIMIT)
                .await?;
        }
        let links: Vec<(&str, String)> =
            bundle.roots().iter().map(|root| (root.path.as_str(), root.link_target())).collect();
        let mut arguments = vec![self.base, deployment.as_str()];
        arguments.extend(links.iter().flat_map(|(path, target)| [*path, target.as_str()]));
        self.run("link the stack's files", scripts::LINK, &arguments, SHORT).await.map(drop)
    }

    /// Fills each writable root that is absent on the host. The current release's content is used first, since its
    /// layout may be older, and otherwise the controller's content.
    async fn send_writable(&self, bundle: &Bundle, deployment: &DeploymentId) -> Result<()> {
        let paths: Vec<&str> = bundle.writable().map(|root| root.path.as_str()).collect();
        if paths.is_empty() {
            return Ok(());
        }
        let mut arguments = vec![self.base];
        arguments.extend(&paths);
        let output = self.run("look for the stack's data", scripts::MISSING_DATA, &arguments, SHORT).await?;
        let missing: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let input = Cursor::new(bundle.archive_writable(&missing)?);
        let mut arguments = vec![self.base, deployment.as_str(), COMPLETE];
        arguments.extend(missing.iter().map(String::as_str));
        self.run_with("receive the stack's data", scripts::RECEIVE_DATA, &arguments, input, FILES_LIMIT)
            .await
            .map(drop)
    }

    /// Writes a file whose content comes over standard input, so that no process list shows it.
    async fn write_over_stdin(&self, path: &str, content: &[u8]) -> Result<()> {
        let (length, input) = (content.len().to_string(), Cursor::new(content.to_vec()));
        self.run_with(&format!("write {path}"), scripts::WRITE, &[path, &length], input, SHORT)
            .await
            .map(drop)
    }

    /// Returns whether this login works on the host by `sudo -n`, for operations that do not examine the host.
    pub async fn needs_sudo(&self) -> Result<bool> {
        Ok(self.connection.script(scripts::NEEDS_SUDO, &[self.base], SHORT).await?.success())
    }

    pub async fn switch_to(&self, deployment: &DeploymentId) -> Result<()> {
        let arguments = [self.base, deployment.as_str()];
        self.run("switch to the release", scripts::SWITCH, &arguments, SHORT).await.map(drop)
    }

    /// Returns whether the complete release of this deployment is on the host.
    pub async fn has_release(&self, deployment: &DeploymentId) -> Result<bool> {
        let output =
            self.connection.script(scripts::HAS_RELEASE, &[self.base, deployment.as_str()], SHORT).await?;
        Ok(output.success())
    }

    pub async fn read_public_key(&self) -> Result<Option<String>> {
        let output = self.connection.script(scripts::PUBLIC_KEY, &[self.base], SHORT).await?;
        Ok(Some(output.stdout.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    async fn run(
        &self,
        what: &str,
        script: &'static str,
        args: &[&str],
        limit: Duration,
    ) -> Result<ScriptOutput> {
        let output = self.connection.script(script, args, limit).await;
        checked(output.map_err(|error| named(error, what))?, what)
    }

    /// Runs a script with an input of its own.
    async fn run_with(
        &self,
        what: &str,
        script: &'static str,
        args: &[&str],
        input: impl AsyncRead + Send + Unpin + 'static,
        limit: Duration,
    ) -> Result<ScriptOutput> {
        let output = self.connection.script_with_input(script, args, input, limit).await;
        checked(output.map_err(|error| named(error, what))?, what)
    }
}

/// Names the operation in a timeout error.
fn named(error: Error, what: &str) -> Error {
    match error.code() {
        ErrorCode::Timeout => Error::new(ErrorCode::Timeout, format!("{what}: {}", error.message())),
        _ => error,
    }
}

fn checked(output: ScriptOutput, what: &str) -> Result<ScriptOutput> {
    if output.success() {
        return Ok(output);
    }
    let why = tail(&output.stderr, 3).replace('\n', " ");
    Err(Error::new(
        ErrorCode::DeploymentFailed,
        format!("{what} failed on the host (exit {}): {why}", output.status),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_names_the_action_and_other_errors_stay() {
        let late = named(Error::new(ErrorCode::Timeout, "did not end within 180 s"), "docker compose up");
        assert_eq!(late.message(), "docker compose up: did not end within 180 s");
        let lost =
            named(Error::new(ErrorCode::HostUnreachable, "the connection was lost"), "docker compose up");
        assert_eq!(lost.message(), "the connection was lost");
    }
}
