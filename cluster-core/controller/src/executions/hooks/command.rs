//! The process of a hook that is a command.

use std::{process::Stdio, time::Duration};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::lifecycle::State,
    ids::{ExecutionId, HookName},
    text::shown,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

/// A command that takes longer does its work elsewhere.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of its stderr that an error shows.
const STDERR_BYTES_MAX: u64 = 1024;

/// Runs a command with an event on its stdin. It succeeds with exit code 0.
///
/// # Errors
///
/// It cannot be started, ends otherwise, or takes longer than a minute and is killed.
pub(super) async fn run(
    words: &[String],
    name: &HookName,
    id: &ExecutionId,
    state: State,
    event: Vec<u8>,
) -> Result<()> {
    let failed = |message: String| Error::new(ErrorCode::Unavailable, message);
    let [program, arguments @ ..] = words else { return Err(Error::internal("a hook without a program")) };
    let mut command = Command::new(program);
    command
        .args(arguments)
        // The daemon's own variables may hold secrets.
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("AEGIS_HOOK", name.as_str())
        .env("AEGIS_EXECUTION_ID", id.as_str())
        .env("AEGIS_STATE", state.name())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| failed(format!("{program} cannot be started")).source(e))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let running = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A command need not read it.
                let _ = stdin.write_all(&event).await;
            }
        };
        let read = async {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(STDERR_BYTES_MAX).read_to_end(&mut text).await;
                // The rest must not block it.
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            }
            text
        };
        let ((), text) = tokio::join!(write, read);
        (child.wait().await, text)
    };
    let Ok((status, text)) = tokio::time::timeout(TIME_LIMIT, running).await else {
        if let Some(group) = group {
            // What it started goes with it.
            let _ = killpg(group, Signal::SIGKILL);
        }
        return Err(failed(format!("{program} has not ended within {} s", TIME_LIMIT.as_secs())));
    };
    let status = status.map_err(|e| failed(format!("{program} cannot be waited for")).source(e))?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&text);
    Err(failed(format!("{program} ended with {status}: {}", shown(said.trim()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str) -> Result<()> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        let (name, id) = (HookName::parse("h").unwrap(), ExecutionId::mint());
        run(&words, &name, &id, State::Failed, b"event".to_vec()).await
    }

    #[tokio::test]
    async fn event_comes_on_stdin_and_the_code_counts() {
        sh(r#"test "$(cat)" = event && test "$AEGIS_STATE" = failed && test -z "$HOME""#).await.unwrap();
        let error = sh("echo why >&2; exit 3").await.unwrap_err();
        assert!(error.message().ends_with("exit status: 3: why"), "{error}");
        // It reads nothing, and says more than is told.
        sh("head -c 200000 /dev/zero >&2").await.unwrap();
        let missing = ["/nonexistent/program".to_owned()];
        let (name, id) = (HookName::parse("h").unwrap(), ExecutionId::mint());
        let error = run(&missing, &name, &id, State::Failed, Vec::new()).await.unwrap_err();
        assert_eq!(error.message(), "/nonexistent/program cannot be started");
    }
}
