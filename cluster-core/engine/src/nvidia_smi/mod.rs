//! GPUs of this machine, as reported by NVIDIA's own program.
//!
//! One task runs `nvidia-smi` at start and every few minutes, so that a hanging driver delays no heartbeat. The task
//! ends with the node. A failed run keeps the earlier result. If the program is missing, as in the container of a
//! deployed node, no GPU is found and the configured numbers and devices apply.
//!
//! `/proc/driver/nvidia/gpus/*/information` is not used instead. It has names and, after the first use of a GPU, UUIDs,
//! but neither memory nor MIG devices. The container toolkit also hides it from containers with GPUs.

mod output;

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use aegis_types::error::{Error, ErrorCode, Result};
use tokio::{io::AsyncReadExt as _, process::Command, sync::watch};
use tokio_util::sync::CancellationToken;

pub use output::{FoundGpu, parse};

/// Time limit of a run. Without persistence mode each run starts the driver, for one or two seconds a GPU.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of runs. MIG devices are changed by hand, and GPUs seldom fail.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);
/// Output limit. 64 devices take some 8 KiB.
const OUTPUT_BYTES_MAX: u64 = 256 * 1024;
const PROGRAM: &str = "nvidia-smi";

/// GPUs of the last run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FoundGpus(watch::Receiver<Option<Vec<FoundGpu>>>);

impl FoundGpus {
    /// Returns a handle for a node that does not look for GPUs.
    pub fn none() -> Self {
        Self(watch::channel(Some(Vec::new())).1)
    }

    /// Looks for GPUs until `stop`, with the program in `PATH`.
    pub fn spawn(stop: CancellationToken) -> Self {
        Self::spawn_with(PROGRAM.into(), stop)
    }

    fn spawn_with(program: PathBuf, stop: CancellationToken) -> Self {
        let (sender, found) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let Some(outcome) = stop.run_until_cancelled(look(&program)).await else { return };
                note(&sender, outcome);
                if stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_none() {
                    return;
                }
            }
        });
        Self(found)
    }

    /// Returns the GPUs of the last run. Waits for the first run, which takes at most 30 s.
    pub async fn get(&self) -> Vec<FoundGpu> {
        let mut found = self.0.clone();
        // The task ended with the node before its first result.
        found.wait_for(Option::is_some).await.ok().and_then(|found| found.clone()).unwrap_or_default()
    }
}

fn note(found: &watch::Sender<Option<Vec<FoundGpu>>>, outcome: Result<Vec<FoundGpu>>) {
    match outcome {
        Ok(gpus) => {
            found.send_if_modified(|known| {
                let is_new = known.as_ref() != Some(&gpus);
                if is_new && (known.is_some() || !gpus.is_empty()) {
                    tracing::info!(count = gpus.len(), "GPUs found");
                }
                *known = Some(gpus);
                is_new
            });
        }
        Err(error) => {
            tracing::warn!(error = %error.chain(), "GPUs could not be looked for");
            found.send_if_modified(|known| {
                let is_first = known.is_none();
                known.get_or_insert_default();
                is_first
            });
        }
    }
}

/// Looks once for the GPUs of this machine, with the program in `PATH`.
pub async fn find() -> Result<Vec<FoundGpu>> {
    look(Path::new(PROGRAM)).await
}

/// Runs the program; no devices are found if the program is missing.
async fn look(program: &Path) -> Result<Vec<FoundGpu>> {
    match tokio::time::timeout(LOOK_TIMEOUT, ask(program)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            format!("{PROGRAM} has not answered for {} s", LOOK_TIMEOUT.as_secs()),
        )
        .remedy("look for Xid errors of the NVIDIA driver in the kernel's log; a reboot often helps")),
    }
}

async fn ask(program: &Path) -> Result<Vec<FoundGpu>> {
    let query = |fields: &str| [format!("--query-gpu={fields}"), output::FORMAT.to_owned()];
    let Some((status, mut rows)) = run(program, &query(output::FIELDS)).await? else {
        return Ok(Vec::new());
    };
    if !status.success() && parse(&rows, "").is_empty() {
        // A driver without MIG rejects the query; any other cause fails again.
        let (status, before_mig) = run(program, &query(output::FIELDS_BEFORE_MIG))
            .await?
            .ok_or_else(|| Error::internal("nvidia-smi was removed while it ran"))?;
        if !status.success() {
            return Err(Error::new(
                ErrorCode::Unavailable,
                format!("{PROGRAM} finds no GPU: {}", output::first_line(&before_mig)),
            )
            .remedy("run nvidia-smi by hand; install or load the NVIDIA driver, or remove the program"));
        }
        rows = output::with_mig_field(&before_mig);
    }
    let list = match output::has_mig(&rows) {
        true => run(program, &["-L".to_owned()]).await?.map(|(_, list)| list).unwrap_or_default(),
        false => String::new(),
    };
    Ok(parse(&rows, &list))
}

/// Runs the program and returns its status and output; `None` if the program does not exist. The program is killed when
/// the caller is cancelled.
async fn run(program: &Path, arguments: &[String]) -> Result<Option<(ExitStatus, String)>> {
    let failed = |error| {
        Error::new(ErrorCode::Unavailable, format!("{} cannot be run", program.display())).source(error)
    };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut text).await.map_err(failed)?;
    }
    // The pipe is closed by now: a program that prints more ends by a signal.
    let status = child.wait().await.map_err(failed)?;
    Ok(Some((status, String::from_utf8_lossy(&text).into_owned())))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    /// Rejects what the real program would not accept.
    const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/e2e/stand_ins/nvidia-smi");

    fn program(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("nvidia-smi");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn found(text: &str) -> Result<Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let gpus = look(&program(directory.path(), text)).await?;
        Ok(gpus.iter().map(|gpu| format!("{} {}", gpu.device.name, gpu.device.memory_mb)).collect())
    }

    async fn found_on(machine: &str) -> Result<Vec<String>> {
        found(&format!("STAND_IN_MACHINE={machine} exec sh '{STAND_IN}' \"$@\"")).await
    }

    #[tokio::test]
    async fn devices_of_each_kind_of_machine_are_found() {
        assert_eq!(found_on("a10").await.unwrap(), ["NVIDIA A10 23028", "NVIDIA A10 23028"]);
        assert_eq!(
            found_on("mig").await.unwrap(),
            [
                "NVIDIA A100-SXM4-40GB MIG 3g.20gb 17166",
                "NVIDIA A100-SXM4-40GB MIG 1g.5gb 4291",
                "Tesla T4 15360"
            ]
        );
        assert_eq!(found_on("before-mig").await.unwrap(), ["Tesla K80 11441"]);
        let error = found_on("no-driver").await.unwrap_err();
        assert!(error.message().contains("NVIDIA-SMI has failed"), "{error}");
    }

    #[tokio::test]
    async fn missing_program_finds_nothing() {
        assert_eq!(look(Path::new("/nowhere/nvidia-smi")).await.unwrap(), []);
    }

    #[tokio::test]
    async fn endless_output_ends_the_look() {
        let error = found("exec yes 'No devices were found'").await.unwrap_err();
        assert!(error.message().contains("No devices"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_program_is_killed_at_the_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let text =
            format!("echo $$ >'{0}.new'; mv '{0}.new' '{0}'; exec tail -f /dev/null", pid_file.display());
        let program = program(directory.path(), &text);
        let mut look = Box::pin(look(&program));
        // The paused clock stands still until the program runs.
        while !pid_file.exists() {
            tokio::select! {
                biased;
                _ = &mut look => panic!("it hangs"),
                () = tokio::task::yield_now() => {}
            }
        }
        let error = look.await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Timeout);
        let process = PathBuf::from("/proc").join(fs::read_to_string(&pid_file).unwrap().trim());
        // A killed child exists until it is reaped.
        let is_running = || {
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        };
        while is_running() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn failed_look_leaves_what_was_found() {
        let (sender, found) = watch::channel(None);
        let found = FoundGpus(found);
        let failed = || Err(Error::new(ErrorCode::Timeout, "it hangs"));
        note(&sender, failed());
        assert_eq!(found.get().await, [], "a first look that fails holds up no heartbeat");
        let gpus = parse("0, GPU-1, Disabled, 1000, NVIDIA A10\n", "");
        note(&sender, Ok(gpus.clone()));
        note(&sender, failed());
        assert_eq!(found.get().await, gpus);
    }
}
