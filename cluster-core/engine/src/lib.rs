//! Container engine of a worker: Docker, through its socket.
//!
//! Module [`container`] decides what an execution's container may do. This module sends requests to the engine and
//! translates its errors.

mod archive;
mod broken_start;
mod container;
mod events;
pub mod facts;
mod guard;
mod home;
mod image;
mod image_removal;
mod labels;
pub mod network_guard;
pub mod node_image;
pub mod nvidia_smi;
mod output;
mod restarted;
mod stats;
mod usage;
mod volume;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::order::Attempt,
    ids::ExecutionId,
    registry::{PullLogin, cannot_pull},
};
use bollard::{
    Docker,
    auth::DockerCredentials,
    errors::Error as DockerError,
    models::{ContainerState, NetworkCreateRequest},
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
        ImportImageOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
        StopContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _},
    sync::OnceCell,
};
use tokio_util::io::ReaderStream;

pub use broken_start::{STARTS_MAX, is_broken_start};
pub use container::{ContainerSpec, container_name, log_file_mb};
pub use events::{Change, EngineEvent};
pub use guard::{GuardSpec, guard_name};
pub use image::{Export, ImageContent, ImageOrigin, LocalImage};
pub use image_removal::ImageId;
pub use labels::{LABEL_ATTEMPT, LABEL_EXECUTION, LABEL_ITERATION, LABEL_NODE, LABEL_OWNER};
pub use output::{OutputPiece, OutputTime};
pub use usage::DiskUsage;
pub use volume::{HOME, VolumeOf, WORKSPACE, home_volume, workspace_volume};

pub const SOCKET_DEFAULT: &str = "/var/run/docker.sock";
/// Well below the buffer of a connection that is not read.
const INPUT_BEFORE_START: usize = 64 * 1024;
/// Time limit of calls that respond at once; streams have no limit.
const CALL_TIMEOUT_SECS: u64 = 120;
/// Silence after which a pull is abandoned.
const PULL_SILENCE_MAX: Duration = Duration::from_secs(180);

/// Maximum number of volumes that an image may declare. Each becomes a mount.
const IMAGE_VOLUMES_MAX: usize = 32;
const VOLUME_PATH_BYTES_MAX: usize = 255;

/// Description of the engine and its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub version: String,
    pub cpu_cores: u32,
    pub memory_mb: u32,
    pub os: String,
    pub arch: String,
    pub runtimes: Vec<String>,
}

impl EngineInfo {
    /// Returns whether the engine can give containers NVIDIA GPUs. Judged by the runtime's name, as in deployments.
    pub fn has_nvidia_runtime(&self) -> bool {
        self.runtimes.iter().any(|name| name == "nvidia")
    }
}

/// Exit codes above this value are signals.
pub const SIGNALLED: i32 = 128;

/// Result of an ended container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub out_of_memory: bool,
    /// A signal ended the container, and its engine was restarted since.
    pub with_engine: bool,
}

/// State of a container that may exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Missing,
    Created,
    Running,
    Exited(Exit),
}

/// Settings of an image for its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `USER[:GROUP]`; empty is root.
    pub user: String,
    /// Paths that the image declares as volumes, sorted.
    pub volumes: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
}

/// Container or volume of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurPart {
    pub name: String,
    pub attempt: Attempt,
}

impl OurPart {
    fn of(name: String, labels: &HashMap<String, String>) -> Option<Self> {
        let execution_id = ExecutionId::parse(labels.get(LABEL_EXECUTION)?.as_str()).ok()?;
        let number = labels.get(LABEL_ATTEMPT)?.parse().ok()?;
        Some(Self { name, attempt: Attempt { execution_id, number } })
    }
}

/// Handle on the engine, cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    socket: Arc<Path>,
    /// Client and engine have agreed on an API version.
    negotiated: Arc<AtomicBool>,
    /// Whether the engine has an init program for containers; set after the first query.
    has_init: Arc<OnceCell<bool>>,
    pull_silence_max: Duration,
}

impl Engine {
    /// Creates the client without connecting: the first call shows whether the engine responds.
    pub fn new(socket: Option<&Path>) -> Result<Self> {
        let socket = socket.unwrap_or(Path::new(SOCKET_DEFAULT));
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, CALL_TIMEOUT_SECS, bollard::API_DEFAULT_VERSION)
            .map_err(|e| {
                Error::new(ErrorCode::Engine, format!("the engine socket {path} cannot be used"))
                    .remedy("start Docker, or set spec.runtime.docker_socket_path")
                    .source(e)
            })?;
        Ok(Self {
            docker,
            socket: socket.into(),
            negotiated: Arc::default(),
            has_init: Arc::default(),
            pull_silence_max: PULL_SILENCE_MAX,
        })
    }

    /// Sets how long a pull may report nothing before it fails.
    #[must_use]
    pub fn with_pull_silence(self, pull_silence_max: Duration) -> Self {
        Self { pull_silence_max, ..self }
    }

    /// Agrees on a common API version, with the first response.
    async fn agree(&self) -> Result<()> {
        if !self.negotiated.load(Ordering::Acquire) {
            // The version is shared by all clones of the client.
            self.docker.clone().negotiate_version().await.map_err(|e| refused("agree on a version", e))?;
            self.negotiated.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Asks the engine to describe itself.
    pub async fn info(&self) -> Result<EngineInfo> {
        self.agree().await?;
        let info = self.docker.info().await.map_err(|e| refused("describe itself", e))?;
        let positive = |number: Option<i64>| u32::try_from(number.unwrap_or(0)).unwrap_or(0);
        Ok(EngineInfo {
            version: info.server_version.unwrap_or_default(),
            cpu_cores: positive(info.ncpu),
            memory_mb: u32::try_from(info.mem_total.unwrap_or(0) / (1024 * 1024)).unwrap_or(0),
            os: info.operating_system.unwrap_or_default(),
            arch: info.architecture.unwrap_or_default(),
            runtimes: info.runtimes.map(|runtimes| runtimes.into_keys().collect()).unwrap_or_default(),
        })
    }

    /// Returns whether the engine can run an init program as a container's first process. An engine without the program
    /// reports no commit of it, and could not start such a container.
    async fn has_init(&self) -> Result<bool> {
        let ask = async || {
            self.agree().await?;
            let info = self.docker.info().await.map_err(|e| refused("describe itself", e))?;
            Ok(info.init_commit.and_then(|commit| commit.id).as_deref() != Some("N/A"))
        };
        self.has_init.get_or_try_init(ask).await.copied()
    }

    pub async fn has_image(&self, image: &str) -> Result<bool> {
        match self.docker.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(e) if status(&e) == Some(404) => Ok(false),
            Err(e) => Err(refused("look for an image", e)),
        }
    }

    /// Returns the settings of an image for its containers; `None` if the engine does not have the image.
    ///
    /// # Errors
    /// `ContainerFailed` if the image declares too many volumes, or a volume path that is not absolute.
    pub async fn image_config(&self, image: &str) -> Result<Option<ImageConfig>> {
        let found = match self.docker.inspect_image(image).await {
            Ok(found) => found,
            Err(e) if status(&e) == Some(404) => return Ok(None),
            Err(e) => return Err(refused("look at an image", e)),
        };
        let config = found.config.unwrap_or_default();
        let volumes = config.volumes.unwrap_or_default();
        Ok(Some(ImageConfig {
            user: config.user.unwrap_or_default(),
            volumes: check_volumes(volumes.into_iter().map(|volume| volume.to_string()).collect())?,
            env: config.env.unwrap_or_default(),
        }))
    }

    /// Loads an image in the format of `docker save`.
    pub async fn load_image(&self, tar: impl AsyncRead + Send + 'static) -> Result<()> {
        let loading =
            self.docker.import_image_stream(ImportImageOptions::default(), ReaderStream::new(tar), None);
        let mut loading = std::pin::pin!(loading);
        while let Some(line) = loading.next().await {
            line.map_err(|e| refused("load an image", e))?;
        }
        Ok(())
    }

    /// Pulls a missing image. `progress` receives each new status line.
    pub async fn pull(
        &self,
        image: &str,
        login: Option<&PullLogin>,
        mut progress: impl FnMut(String) + Send,
    ) -> Result<()> {
        // A reference without tag or digest would pull all tags.
        let named = image.contains('@') || image.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let reference = if named { image.to_owned() } else { format!("{image}:latest") };
        let options = CreateImageOptionsBuilder::new().from_image(&reference).build();
        let credentials = login.map(|login| DockerCredentials {
            username: Some(login.username.clone()),
            password: Some(login.password.reveal().to_owned()),
            serveraddress: Some(login.server().to_owned()),
            ..Default::default()
        });
        let mut pull = self.docker.create_image(Some(options), None, credentials);
        let missing = |why: &str| cannot_pull(image, "node", login.is_some(), why);
        let silent = |_| missing(&format!("no progress for {} s", self.pull_silence_max.as_secs()));
        while let Some(info) =
            tokio::time::timeout(self.pull_silence_max, pull.next()).await.map_err(silent)?
        {
            let info = info.map_err(|e| missing(&cause(&e)).source(e))?;
            if let Some(status) = info.status {
                progress(match info.id {
                    Some(id) => format!("{status} {id}"),
                    None => status,
                });
            }
        }
        if self.has_image(image).await? {
            return Ok(());
        }
        Err(Error::new(ErrorCode::ImageNotFound, format!("the image {image} was pulled and is not there")))
    }

    /// Creates the container, unless a container of this name exists. Idempotent.
    pub async fn ensure_created(&self, spec: &ContainerSpec<'_>) -> Result<()> {
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let body = spec.to_body(self.has_init().await?);
        match self.docker.create_container(Some(options), body).await {
            Ok(_) => Ok(()),
            Err(e) => match status(&e) {
                // The code is also used for a taken name: then there is a container.
                Some(409) if self.find(&spec.name).await? != Found::Missing => Ok(()),
                Some(400 | 409) => Err(Error::new(
                    ErrorCode::ContainerFailed,
                    format!("the container cannot be created: {}", cause(&e)),
                )
                .remedy("check resources and security against what the node and its engine allow")
                .source(e)),
                _ => Err(refused("create the container", e)),
            },
        }
    }

    /// Starts a created container with its input on stdin; without input, nothing is attached. Returns `Lost` if the
    /// container does not exist and was not started.
    pub async fn start(&self, name: &str, input: Option<Bytes>) -> Result<()> {
        let mut starts = 1;
        loop {
            match self.start_once(name, input.clone()).await {
                Err(error) if starts < STARTS_MAX && is_broken_start(error.message()) => {
                    tracing::warn!(container = name, error = %error.chain(), "a broken start is made again");
                    starts += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn start_once(&self, name: &str, input: Option<Bytes>) -> Result<()> {
        let Some(input) = input else { return self.start_attached(name).await };
        let options = AttachContainerOptionsBuilder::new().stdin(true).stream(true).build();
        let mut attached = self
            .docker
            .attach_container(name, Some(options))
            .await
            .map_err(|e| gone_or_refused("attach to the container", e))?;
        // Buffered input reaches the container even if this process dies right after the start.
        let mut rest = input;
        let first = rest.split_to(rest.len().min(INPUT_BEFORE_START));
        if let Err(error) = attached.input.write_all(&first).await {
            tracing::debug!(%error, "the engine took no input before the start");
        }
        self.start_attached(name).await?;
        // A container that never reads blocks only this writer.
        tokio::spawn(async move {
            if let Err(error) = attached.input.write_all(&rest).await {
                tracing::debug!(%error, "the container did not read all of its input");
            }
            let _ = attached.input.shutdown().await;
            // The engine closes the container's stdin when this connection ends.
            drop(attached);
        });
        Ok(())
    }

    async fn start_attached(&self, name: &str) -> Result<()> {
        self.docker.start_container(name, None).await.map_err(|e| {
            // 400: the command cannot be executed, which is an error of the manifest.
            match status(&e) {
                Some(400) => Error::new(
                    ErrorCode::ContainerFailed,
                    format!("the container cannot start: {}", cause(&e)),
                )
                .remedy("check command and args against what the image holds")
                .source(e),
                _ => gone_or_refused("start the container", e),
            }
        })
    }

    pub async fn find(&self, name: &str) -> Result<Found> {
        match self.docker.inspect_container(name, None).await {
            Ok(found) => {
                let container = found.state.unwrap_or_default();
                let mut found = state(&container);
                if let Found::Exited(exit) = &mut found {
                    exit.with_engine = exit.code > SIGNALLED && self.has_started_since(&container).await;
                }
                Ok(found)
            }
            Err(e) if status(&e) == Some(404) => Ok(Found::Missing),
            Err(e) => Err(refused("look for the container", e)),
        }
    }

    /// Sends SIGTERM, and SIGKILL after `grace`. Succeeds if the container is gone or has ended.
    pub async fn stop(&self, name: &str, grace: Duration) -> Result<()> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        match self.docker.stop_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            Err(e) if matches!(status(&e), Some(304 | 404)) => Ok(()),
            Err(e) => Err(refused("stop the container", e)),
        }
    }

    pub async fn remove(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            // 409: the removal is in progress.
            Err(e) if matches!(status(&e), Some(404 | 409)) => Ok(()),
            Err(e) => Err(refused("remove the container", e)),
        }
    }

    /// Returns all containers of executions with an owner's label.
    pub async fn ours(&self, owner: &str) -> Result<Vec<OurPart>> {
        let label = format!("{LABEL_OWNER}={owner}");
        let filters = HashMap::from([("label", vec![label.as_str()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let list = self
            .docker
            .list_containers(Some(options))
            .await
            .map_err(|e| refused("list its containers", e))?;
        Ok(list
            .into_iter()
            .filter_map(|container| {
                let name = container.names?.into_iter().next()?.trim_start_matches('/').to_owned();
                OurPart::of(name, &container.labels?)
            })
            .collect())
    }

    /// Creates the network of executions that may use one. Its containers cannot reach each other.
    pub async fn ensure_network(&self, name: &str) -> Result<()> {
        match self.docker.inspect_network(name, None).await {
            Ok(_) => return Ok(()),
            Err(e) if status(&e) == Some(404) => {}
            Err(e) => return Err(refused("look for a network", e)),
        }
        let options = HashMap::from([("com.docker.network.bridge.enable_icc".into(), "false".into())]);
        let request =
            NetworkCreateRequest { name: name.to_owned(), options: Some(options), ..Default::default() };
        match self.docker.create_network(request).await {
            Ok(_) => Ok(()),
            Err(e) if status(&e) == Some(409) => Ok(()),
            Err(e) => Err(refused("create a network", e)),
        }
    }
}

/// Sorts the paths and rejects those that cannot be mounted over.
fn check_volumes(mut volumes: Vec<String>) -> Result<Vec<String>> {
    let is_bad = |path: &String| !path.starts_with('/') || path == "/" || path.len() > VOLUME_PATH_BYTES_MAX;
    if volumes.len() > IMAGE_VOLUMES_MAX || volumes.iter().any(is_bad) {
        return Err(Error::new(
            ErrorCode::ContainerFailed,
            format!("the image declares volumes that the node does not mount ({} of them)", volumes.len()),
        )
        .remedy("use an image with few VOLUME lines, each an absolute path"));
    }
    volumes.sort();
    Ok(volumes)
}

fn state(state: &ContainerState) -> Found {
    use bollard::models::ContainerStateStatusEnum as Status;
    match state.status {
        Some(Status::CREATED) => Found::Created,
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING | Status::STOPPING) => Found::Running,
        Some(Status::EXITED | Status::DEAD | Status::REMOVING) | Some(Status::EMPTY) | None => {
            Found::Exited(Exit {
                code: i32::try_from(state.exit_code.unwrap_or(-1)).unwrap_or(-1),
                out_of_memory: state.oom_killed.unwrap_or(false),
                with_engine: false,
            })
        }
    }
}

fn status(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Returns the engine's own message, bounded: it comes from other software and may contain anything.
fn cause(error: &DockerError) -> String {
    match error {
        DockerError::DockerResponseServerError { message, .. } => shown_long(message),
        DockerError::DockerStreamError { error } => shown_long(error),
        other => shown_long(&other.to_string()),
    }
}

fn shown_long(text: &str) -> String {
    const CAUSE_CHARS_MAX: usize = 300;
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CAUSE_CHARS_MAX);
    text.collect::<String>().trim().to_owned()
}

fn gone_or_refused(what: &str, error: DockerError) -> Error {
    match status(&error) {
        Some(404) => Error::new(ErrorCode::Lost, "the container was removed before it was started")
            .remedy("submit it again; something else removes containers on the node")
            .source(error),
        _ => refused(what, error),
    }
}

fn refused(what: &str, error: DockerError) -> Error {
    let remedy = match &error {
        DockerError::DockerResponseServerError { .. } => "see the engine's own log on the node",
        _ => "start Docker on the node and give aegis access to its socket",
    };
    Error::new(ErrorCode::Engine, format!("the container engine did not {what}: {}", cause(&error)))
        .remedy(remedy)
        .source(error)
}
