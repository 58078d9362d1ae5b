//! A submission as it comes from any surface, and how it is checked.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    dependencies::Dependencies,
    image_reference::check_image,
    manifest::{Iterations, Manifest, NetworkMode, PlacementRequest, Relaxations},
    retry::RetryPolicy,
};
use crate::{
    agent::AgentReference,
    caller::Identity,
    error::{Error, Result},
    execution::after::AfterCondition,
    gpu::is_reserved_variable,
    ids::{ExecutionId, HookName, NodeId, Tag},
    principal::Origin,
    resources::Amounts,
    secret::SecretName,
    text::shown,
};

/// One MiB, which fits into one gRPC message with its envelope.
pub const INPUT_BYTES_MAX: usize = 1024 * 1024;
/// Linux refuses one argument or variable above 128 KiB (MAX_ARG_STRLEN).
pub const ARGUMENT_BYTES_MAX: usize = 128 * 1024 - 1;
/// All arguments and variables together; Linux allows about 2 MiB for both.
pub const ARGUMENTS_BYTES_MAX: usize = 1024 * 1024;
pub const TIMEOUT_SECONDS_DEFAULT: u64 = 300;
pub const TIMEOUT_SECONDS_MAX: u64 = 86_400;
/// Longer than any planned outage; what fits nowhere by then is an error to be seen.
pub const QUEUE_SECONDS_MAX: u64 = 30 * 86_400;
/// A few classes are enough to say what goes first.
pub const PRIORITY_MAX: u32 = 10;
pub const CPU_MAX: f64 = 1024.0;
pub const MEMORY_MB_MIN: u32 = 6;
pub const MEMORY_MB_MAX: u32 = 16 * 1024 * 1024;
pub const CPU_MILLICORES_DEFAULT: u32 = 500;
pub const MEMORY_MB_DEFAULT: u32 = 256;
pub const TARGET_TAGS_MAX: usize = 32;
pub const LABELS_MAX: usize = 16;
pub const ITERATIONS_MAX: u32 = 100;
pub const ATTEMPTS_MAX: u32 = 10;
pub const ARTIFACTS_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 1024;
const PROCESSES_MAX: u32 = 32_768;
const TMP_MB_MAX: u32 = 16_384;
/// Number of capabilities that Docker knows. The node's policy withholds dangerous ones.
const CAPABILITIES_MAX: usize = 40;

/// Resources as a caller states them. Missing amounts get a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceRequest {
    /// Cores: 0.05-1024, default 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// At least 6, default 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    // The sum over its GPUs, an equal share on each.
    /// Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_gb: Option<u32>,
}

/// Caller of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitter {
    pub origin: Origin,
    pub identity: Identity,
}

impl Submitter {
    /// Returns the submitter of work that this process needs itself.
    pub fn this_process() -> Self {
        Self { origin: Origin::Person, identity: Identity::LocalUser(nix::unistd::geteuid().as_raw()) }
    }
}

/// Unchecked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionRequest {
    /// A registered agent, like code-review or code-review@3: what it says counts where nothing is said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentReference>,
    /// Container image, present on the node or to be pulled there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Replaces the image's entrypoint when given.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's default arguments when given.
    #[serde(default)]
    pub args: Vec<String>,
    /// A value `secret:NAME` is the operator's secret of that name.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Text for the container's stdin and `AEGIS_INPUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Tags that the node must all have.
    #[serde(default)]
    pub target_tags: Vec<Tag>,
    /// Nodes with more of these tags come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferred_tags: Vec<Tag>,
    /// Pins the execution to one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    #[serde(default)]
    pub resources: ResourceRequest,
    /// Default: no network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Limit of the execution as a whole, from the start of its container, in seconds: 1 to 86400, default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Repeat on the same node until it exits with 0, so often at most: 1 to 100, default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_iterations: Option<u32>,
    /// Limit of each iteration, in seconds (default: timeout_seconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iteration_timeout_seconds: Option<u64>,
    /// Start again on another node when its node is lost, so often in all: 1 (never, the default) to 10.
    /// It may then run twice, partly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// When it runs again after its program failed (default: never).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// Executions that must have succeeded before this one is placed; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ExecutionId>,
    /// Condition on the executions in `after` (default: they succeeded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_condition: Option<AfterCondition>,
    /// An execution whose artifacts become /workspace. This one runs after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_from: Option<ExecutionId>,
    /// A directory of the controller's machine that is sent along, at /workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<PathBuf>,
    /// An empty volume at /workspace, where no directory is sent along.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_workspace: bool,
    /// Files and folders in /workspace that are kept when it has ended; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// File in /workspace that holds the result; default: the last line on stdout if it is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_file: Option<String>,
    /// Parts of the hardening to take back, within the node's policy.
    #[serde(default, skip_serializing_if = "is_hardened")]
    pub security: Relaxations,
    /// Wait for a node with room (default), or fail at once.
    #[serde(default = "yes")]
    pub queue: bool,
    /// Time to wait for a node with room, in seconds: 1 to 2592000 (30 days, the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_seconds: Option<u64>,
    /// Priority in the queue, -10 to 10 (default 0); higher ones are placed first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Words to find it by, like nightly or pr=42; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Tag>,
    /// Hooks of the operator that are told of the end, besides those for all; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<HookName>,
    /// The same key with the same request gives the same execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

const fn yes() -> bool {
    true
}

fn is_hardened(security: &Relaxations) -> bool {
    *security == Relaxations::default()
}

/// A checked submission. Its agent is resolved; what its workspace is packed into is noted once it has an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    pub agent: Option<AgentReference>,
    pub manifest: Manifest,
    pub demand: PlacementRequest,
    pub labels: Vec<Tag>,
    pub input: String,
    pub max_attempts: u32,
    pub retry: Option<RetryPolicy>,
    pub dependencies: Option<Dependencies>,
    /// Hooks that the caller names.
    pub notify: Vec<HookName>,
    pub queue: bool,
    pub idempotency_key: Option<String>,
}

impl Submission {
    pub fn check(mut request: ExecutionRequest) -> Result<Self> {
        let dependencies = Dependencies::new(
            std::mem::take(&mut request.after),
            request.after_condition.take(),
            request.workspace_from.take(),
            request.workspace.is_some(),
        )?;
        let Some(image) = request.image else {
            return Err(Error::invalid("image: it is missing").remedy(
                "name an image that the node has or can pull, like busybox:1.36, or a registered agent",
            ));
        };
        check_image(&image)?;
        check_words("command", &request.command)?;
        check_words("args", &request.args)?;
        if request.command.first().is_some_and(String::is_empty) {
            return Err(Error::invalid("command: the first word is empty").remedy("name a program"));
        }
        let (env, secret_env) = check_env(request.env)?;
        let words = request.command.iter().chain(&request.args).map(String::len).sum::<usize>();
        let variables = env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if words + variables > ARGUMENTS_BYTES_MAX {
            return Err(Error::invalid(format!(
                "command, args and env together have {} bytes; at most {ARGUMENTS_BYTES_MAX} fit",
                words + variables
            ))
            .remedy("send large data as input"));
        }
        let input = request.input.unwrap_or_default();
        if input.len() > INPUT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "input has {} bytes; at most {INPUT_BYTES_MAX} are taken",
                input.len()
            )));
        }
        for (what, tags) in
            [("target_tags", &request.target_tags), ("preferred_tags", &request.preferred_tags)]
        {
            if tags.len() > TARGET_TAGS_MAX {
                return Err(Error::invalid(format!("{what}: at most {TARGET_TAGS_MAX} are taken")));
            }
        }
        let timeout_seconds = request.timeout_seconds.unwrap_or(TIMEOUT_SECONDS_DEFAULT);
        check_range("timeout_seconds", timeout_seconds, TIMEOUT_SECONDS_MAX)?;
        let max = request.max_iterations.unwrap_or(1);
        check_range("max_iterations", max, ITERATIONS_MAX)?;
        if let Some(seconds) = request.iteration_timeout_seconds {
            check_range("iteration_timeout_seconds", seconds, TIMEOUT_SECONDS_MAX)?;
        }
        let max_attempts = request.max_attempts.unwrap_or(1);
        check_range("max_attempts", max_attempts, ATTEMPTS_MAX)?;
        if let Some(retry) = &request.retry {
            retry.check()?;
        }
        if request.artifacts.len() > ARTIFACTS_MAX {
            return Err(Error::invalid(format!("artifacts: at most {ARTIFACTS_MAX} are taken")));
        }
        for path in &request.artifacts {
            check_path("artifacts", path)?;
        }
        if let Some(path) = &request.result_file {
            check_path("result_file", path)?;
        }
        check_relaxations(&request.security)?;
        if let Some(seconds) = request.queue_timeout_seconds {
            check_range("queue_timeout_seconds", seconds, QUEUE_SECONDS_MAX)?;
        }
        let priority = request.priority.unwrap_or_default();
        if priority.unsigned_abs() > PRIORITY_MAX {
            return Err(Error::invalid(format!(
                "priority {priority} is out of range -{PRIORITY_MAX} to {PRIORITY_MAX}"
            )));
        }
        let idempotency_key = request.idempotency_key;
        if let Some(key) = &idempotency_key {
            check_idempotency_key(key)?;
        }
        if request.labels.len() > LABELS_MAX {
            return Err(Error::invalid(format!("labels: at most {LABELS_MAX} are taken")));
        }
        let resources = amounts(&request.resources)?;
        let takes_over =
            dependencies.as_ref().is_some_and(|dependencies| dependencies.workspace_from.is_some());
        Ok(Self {
            agent: request.agent,
            labels: request.labels,
            demand: PlacementRequest {
                tags: request.target_tags,
                preferred_tags: request.preferred_tags,
                node_id: request.node_id,
                amounts: resources,
                wait_seconds: if request.queue { request.queue_timeout_seconds } else { Some(0) },
                priority,
            },
            manifest: Manifest {
                image,
                command: request.command,
                args: request.args,
                env,
                secret_env,
                resources,
                network: request.network.unwrap_or_default(),
                timeout_seconds,
                iterations: Iterations { max, timeout_seconds: request.iteration_timeout_seconds },
                workspace: None,
                // What is taken over is noted when it is there.
                empty_workspace: request.empty_workspace || takes_over,
                artifacts: request.artifacts,
                result_file: request.result_file,
                relaxed: request.security,
            },
            input,
            max_attempts,
            retry: request.retry,
            dependencies,
            notify: request.notify,
            queue: request.queue,
            idempotency_key,
        })
    }
}

/// Keys are the caller's; they are compared bytewise and shown in errors.
pub fn check_idempotency_key(key: &str) -> Result<()> {
    const KEY_LENGTH_MAX: usize = 128;
    if key.is_empty() || key.len() > KEY_LENGTH_MAX || key.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "idempotency_key must have 1 to {KEY_LENGTH_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

/// From 1 on.
fn check_range<T: PartialOrd + From<u8> + std::fmt::Display>(what: &str, value: T, max: T) -> Result<()> {
    if value < T::from(1) || value > max {
        return Err(Error::invalid(format!("{what} {value} is out of range 1 to {max}")));
    }
    Ok(())
}

fn amounts(request: &ResourceRequest) -> Result<Amounts> {
    let cpu_millicores = match request.cpu {
        None => CPU_MILLICORES_DEFAULT,
        // NaN is in no range.
        Some(cpu) if (0.05..=CPU_MAX).contains(&cpu) => (cpu * 1000.0).round() as u32,
        Some(cpu) => {
            return Err(Error::invalid(format!("resources.cpu {cpu} is out of range 0.05 to {CPU_MAX}")));
        }
    };
    let memory_mb = request.memory_mb.unwrap_or(MEMORY_MB_DEFAULT);
    if !(MEMORY_MB_MIN..=MEMORY_MB_MAX).contains(&memory_mb) {
        return Err(Error::invalid(format!(
            "resources.memory_mb {memory_mb} is out of range {MEMORY_MB_MIN} to {MEMORY_MB_MAX}"
        )));
    }
    let (gpus, vram_gb) = (request.gpus.unwrap_or(0), request.vram_gb.unwrap_or(0));
    if gpus > 64 || vram_gb > 65_536 {
        return Err(Error::invalid("resources: gpus is at most 64, vram_gb at most 65536"));
    }
    if vram_gb > 0 && gpus == 0 {
        return Err(
            Error::invalid("resources.vram_gb is asked for without a GPU").remedy("set resources.gpus")
        );
    }
    Ok(Amounts { cpu_millicores, memory_mb, gpus, vram_gb })
}

fn check_words(what: &str, words: &[String]) -> Result<()> {
    for (index, word) in words.iter().enumerate() {
        if word.contains('\0') {
            return Err(Error::invalid(format!("{what}[{index}] holds a NUL character")));
        }
        if word.len() > ARGUMENT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{what}[{index}] has {} bytes; at most {ARGUMENT_BYTES_MAX} are possible",
                word.len()
            ))
            .remedy("send large data as input"));
        }
    }
    Ok(())
}

/// Plain values, and the names of those that are secrets.
type Variables = (BTreeMap<String, String>, BTreeMap<String, SecretName>);

fn check_env(env: BTreeMap<String, String>) -> Result<Variables> {
    let (mut plain, mut secret) = Variables::default();
    for (name, value) in env {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Error::invalid(format!("env: \"{}\" is not a variable name", shown(&name)))
                .remedy("use letters, digits and '_', not beginning with a digit"));
        }
        if name.starts_with("AEGIS_") {
            return Err(Error::invalid(format!("env: {name} is set by the node"))
                .remedy("names that begin with AEGIS_ are reserved"));
        }
        if is_reserved_variable(&name) {
            return Err(Error::invalid(format!("env: {name} is set by the node"))
                .remedy("ask for GPUs with resources.gpu_count"));
        }
        // The value may be a secret: it is named, never shown.
        if value.contains('\0') || name.len() + value.len() + 1 > ARGUMENT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "env: the value of {name} holds a NUL character or has more than {ARGUMENT_BYTES_MAX} bytes"
            )));
        }
        match value.strip_prefix("secret:") {
            Some(reference) => {
                let reference =
                    SecretName::parse(reference).map_err(|e| Error::invalid(format!("env: {name}: {e}")))?;
                secret.insert(name, reference);
            }
            None => {
                plain.insert(name, value);
            }
        }
    }
    Ok((plain, secret))
}

/// Checks a path in `/workspace`, absolute or relative to it.
fn check_path(what: &str, path: &str) -> Result<()> {
    let beneath = path.strip_prefix("/workspace/").unwrap_or(path);
    let wrong = beneath.is_empty()
        || beneath.len() > PATH_BYTES_MAX
        || beneath.starts_with('/')
        || beneath.chars().any(char::is_control)
        || beneath.split('/').any(|part| part == "..");
    if wrong {
        return Err(Error::invalid(format!("{what}: \"{}\" is no path beneath /workspace", shown(path)))
            .remedy("write it like target/report.json, without .."));
    }
    Ok(())
}

fn check_relaxations(relaxed: &Relaxations) -> Result<()> {
    let good = |name: &String| {
        !name.is_empty()
            && name.len() <= 32
            && !name.starts_with("CAP_")
            && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
    };
    if relaxed.capabilities.len() > CAPABILITIES_MAX {
        return Err(Error::invalid(format!("security.capabilities: at most {CAPABILITIES_MAX} are taken")));
    }
    if let Some(bad) = relaxed.capabilities.iter().find(|name| !good(name)) {
        return Err(Error::invalid(format!("security.capabilities: \"{}\" is none", shown(bad)))
            .remedy("write them like NET_BIND_SERVICE; each must be allowed by the node's policy"));
    }
    if let Some(processes) = relaxed.processes {
        check_range("security.processes", processes, PROCESSES_MAX)?;
    }
    for (what, size_mb) in [("security.tmp_mb", relaxed.tmp_mb), ("security.shm_mb", relaxed.shm_mb)] {
        if let Some(size_mb) = size_mb {
            check_range(what, size_mb, TMP_MB_MAX)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(image: &str) -> ExecutionRequest {
        ExecutionRequest { image: Some(image.into()), queue: true, ..Default::default() }
    }

    fn check(request: ExecutionRequest) -> Result<Submission> {
        Submission::check(request)
    }

    #[test]
    fn ranges_are_refused_with_the_range() {
        for (change, text) in [
            (ResourceRequest { cpu: Some(f64::NAN), ..Default::default() }, "0.05 to 1024"),
            (ResourceRequest { cpu: Some(0.0), ..Default::default() }, "0.05 to 1024"),
            (ResourceRequest { memory_mb: Some(1), ..Default::default() }, "6 to"),
            (ResourceRequest { vram_gb: Some(8), ..Default::default() }, "without a GPU"),
        ] {
            let error = check(ExecutionRequest { resources: change, ..request("busybox") }).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        for seconds in [0, 100 * 365 * 86_400] {
            let bad = ExecutionRequest { timeout_seconds: Some(seconds), ..request("busybox") };
            assert!(check(bad).unwrap_err().to_string().contains("1 to 86400"));
        }
        for max in [0, 101] {
            let bad = ExecutionRequest { max_iterations: Some(max), ..request("busybox") };
            assert!(check(bad).unwrap_err().to_string().contains("1 to 100"));
            let bad = ExecutionRequest { max_attempts: Some(max), ..request("busybox") };
            assert!(check(bad).unwrap_err().to_string().contains("1 to 10"));
        }
        for priority in [-11, 11, i32::MIN] {
            let bad = ExecutionRequest { priority: Some(priority), ..request("busybox") };
            assert!(check(bad).unwrap_err().to_string().contains("-10 to 10"));
        }
    }

    #[test]
    fn words_and_variables_are_bounded_and_reserved_names_refused() {
        for bad in [
            ExecutionRequest { command: vec![String::new()], ..request("busybox") },
            ExecutionRequest { args: vec!["a\0b".into()], ..request("busybox") },
            ExecutionRequest { args: vec!["x".repeat(2 * 1024 * 1024)], ..request("busybox") },
            ExecutionRequest::default(),
        ] {
            assert!(check(bad).is_err());
        }
        for name in ["", "1A", "A-B", "AEGIS_INPUT", "NVIDIA_VISIBLE_DEVICES"] {
            let mut bad = request("busybox");
            bad.env.insert(name.into(), "v".into());
            assert!(check(bad).is_err(), "{name}");
        }
    }

    #[test]
    fn a_secret_is_kept_by_its_name() {
        let mut asked = request("busybox");
        asked.env = [("KEY".to_owned(), "secret:api-key".to_owned()), ("A".into(), "b".into())].into();
        let manifest = check(asked.clone()).unwrap().manifest;
        assert_eq!(manifest.secret_env["KEY"], SecretName::parse("api-key").unwrap());
        assert_eq!(manifest.env.keys().collect::<Vec<_>>(), ["A"]);
        asked.env.insert("KEY".into(), "secret:no name".into());
        assert!(check(asked).is_err());
    }

    #[test]
    fn paths_stay_beneath_the_workspace() {
        for good in ["out", "target/report.json", "/workspace/a b"] {
            check_path("artifacts", good).unwrap();
        }
        for bad in ["", "/etc/passwd", "a/../../b", "..", "/workspace/", "/workspace/../x", "a\nb"] {
            assert!(check_path("artifacts", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn capabilities_are_names() {
        for (bad, good) in [("CAP_CHOWN", "CHOWN"), ("net_raw", "NET_RAW"), ("A;B", "SYS_PTRACE")] {
            let with = |name: &str| ExecutionRequest {
                security: Relaxations { capabilities: vec![name.into()], ..Default::default() },
                ..request("busybox")
            };
            assert!(check(with(bad)).is_err(), "{bad}");
            check(with(good)).unwrap();
        }
    }
}
