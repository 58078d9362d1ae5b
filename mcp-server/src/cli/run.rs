//! `aegis run`: like `docker run`, on the node that fits best.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use cluster_core::types::{
    error::{Error, ErrorCode, Result},
    execution::{
        after::AfterCondition,
        lifecycle::State,
        manifest::{NetworkMode, Relaxations},
        request::{ExecutionRequest, INPUT_BYTES_MAX, ResourceRequest},
        retry::RetryPolicy,
        view::{EventKind, EventView, ExecutionView, Stream},
    },
    ids::{ExecutionId, HookName, NodeId, Tag},
};
use serde_json::json;

use super::{Context, artifacts::Unpack, client::Client, node::duration, segment};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    None,
    Allow,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Container image
    #[arg(long, value_name = "IMAGE", required_unless_present = "agent")]
    image: Option<String>,
    /// Registered agent; options given here override the agent's
    #[arg(long, value_name = "NAME[@VERSION]", conflicts_with = "image")]
    agent: Option<String>,
    /// Tag that the node must have; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Tag that the node should have, if such a node fits; may be repeated
    #[arg(long = "prefer-tag", value_name = "TAG")]
    preferred_tags: Vec<String>,
    /// Run on this node
    #[arg(long)]
    node: Option<String>,
    /// CPU cores, like 0.5
    #[arg(long)]
    cpu: Option<f64>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// GPUs [without a number: 1]
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", require_equals = true)]
    gpu: Option<u32>,
    /// GPU memory in GiB, an equal share on each GPU
    #[arg(long, value_name = "GIB")]
    vram_gb: Option<u32>,
    /// Network of the container [default: the agent's, else no network]
    #[arg(long, value_enum)]
    network: Option<Network>,
    /// Environment variable; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Text for the container's stdin; - reads this command's stdin
    #[arg(long, value_name = "TEXT|-")]
    input: Option<String>,
    /// Cancel the execution after this long, like 90s or 10m
    #[arg(long, value_parser = duration)]
    timeout: Option<std::time::Duration>,
    /// Repeat on the same node until it exits with 0, at most this often
    #[arg(long, value_name = "N")]
    max_iterations: Option<u32>,
    /// End one iteration after this long
    #[arg(long, value_parser = duration, value_name = "TIME")]
    iteration_timeout: Option<std::time::Duration>,
    /// Start again on another node if the node is lost, at most this often in all; it may then run twice
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    #[command(flatten)]
    retry: Retry,
    /// Run after this execution has succeeded; may be repeated
    #[arg(long = "after", value_name = "ID")]
    after: Vec<String>,
    /// Run also after executions that failed or were cancelled
    #[arg(long)]
    after_any_end: bool,
    /// Use the artifacts of this execution as /workspace, and run after it
    #[arg(long, value_name = "ID", conflicts_with = "workspace")]
    workspace_from: Option<String>,
    /// Fail if no node has room within this time, like 10m [default: 30 days]; 0s fails at once
    #[arg(long, value_parser = duration, value_name = "TIME")]
    queue_timeout: Option<std::time::Duration>,
    /// Priority in the queue, -10 to 10; higher values are placed first [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Label to find the execution by, like pr=42; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Notify this hook of the operator at the end; may be repeated
    #[arg(long = "notify", value_name = "HOOK")]
    notify: Vec<String>,
    /// File in /workspace with the result [default: the last line on stdout, if it is JSON]
    #[arg(long, value_name = "PATH")]
    result_file: Option<String>,
    #[command(flatten)]
    security: Security,
    /// Copy this directory to /workspace, the working directory of the container. Excludes .git, and files named by
    /// .gitignore, .ignore and .aegisignore
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Keep this file or folder of /workspace at the end; may be repeated
    #[arg(long = "artifact", value_name = "PATH")]
    artifacts: Vec<String>,
    /// Unpack the artifacts into this directory
    #[arg(long, value_name = "DIR", requires = "artifacts")]
    artifacts_to: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, requires = "artifacts_to")]
    overwrite: bool,
    /// Program and its arguments [default: the image's own]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Retries of a failed program.
#[derive(Debug, Args)]
struct Retry {
    /// Retry up to this often if it exits with another code than 0 (1-10)
    #[arg(long = "retries", value_name = "N")]
    max: Option<u32>,
    /// Pause before the first retry, like 30s; it doubles with each [default: 10s]
    #[arg(long = "retry-backoff", value_name = "TIME", value_parser = duration, requires = "max")]
    backoff: Option<std::time::Duration>,
    /// Retry this exit code only; may be repeated
    #[arg(long = "retry-exit-code", value_name = "CODE", requires = "max")]
    exit_codes: Vec<i32>,
}

impl Retry {
    fn policy(self) -> Option<RetryPolicy> {
        let backoff = self.backoff.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        self.max.map(|max| RetryPolicy { max, backoff_seconds: backoff, exit_codes: self.exit_codes })
    }
}

/// Relaxations of the sandbox, as far as the node's policy allows them.
#[derive(Debug, Args)]
struct Security {
    /// Let the container write to its root file system
    #[arg(long)]
    writable_root: bool,
    /// Keep a Linux capability, like NET_BIND_SERVICE; may be repeated
    #[arg(long = "cap", value_name = "NAME")]
    capabilities: Vec<String>,
    /// Maximum number of processes [default: 512]
    #[arg(long, value_name = "N")]
    processes: Option<u32>,
    /// Size of /tmp in MiB [default: 64]
    #[arg(long, value_name = "MIB")]
    tmp_mb: Option<u32>,
    /// Allow programs to run from /tmp [default: only with a workspace]
    #[arg(long)]
    tmp_exec: bool,
    /// Size of /dev/shm in MiB [default: 64]
    #[arg(long, value_name = "MIB")]
    shm_mb: Option<u32>,
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Run {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let unpack = self.artifacts_to.clone().map(|into| Unpack { into, overwrite: self.overwrite });
        let request = self.request()?;
        let view: ExecutionView = client.post("/v1/executions", &request).await?;
        if context.output.is_human() {
            let place = view.node_id.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
            let why = view.waiting.as_ref().map(|why| format!(", waiting: {why}")).unwrap_or_default();
            context.output.say(&format!("{}{place}{why}", view.execution_id));
        }
        let id = view.execution_id.to_string();
        let ended = tokio::select! {
            ended = follow(context, &client, &id, 0) => ended?,
            _ = tokio::signal::ctrl_c() => {
                context.output.say("cancelling; press Ctrl-C again to leave it running");
                cancelled(context, &client, &id).await?
            }
        };
        if let Some(unpack) = unpack
            && let Some(artifacts) = &ended.artifacts
        {
            unpack.run(context, &client, &ended.execution_id, artifacts).await?;
        }
        if context.output.is_human() {
            return finish(&ended);
        }
        context.output.show(&ended, String::new)?;
        // stdout has the execution already.
        Ok(finish(&ended).unwrap_or_else(|error| {
            context.output.talk_error(&error);
            crate::codes::of(error.code()).exit
        }))
    }

    fn request(self) -> Result<ExecutionRequest> {
        let input = match self.input {
            Some(dash) if dash == "-" => Some(stdin()?),
            other => other,
        };
        let network = self.network.map(|network| match network {
            Network::None => NetworkMode::None,
            Network::Allow => NetworkMode::Allow,
        });
        let workspace = self.workspace.map(|path| absolute(&path)).transpose()?;
        let resources =
            ResourceRequest { cpu: self.cpu, memory_mb: self.memory, gpus: self.gpu, vram_gb: self.vram_gb };
        let security = Relaxations {
            writable_root: self.security.writable_root,
            capabilities: self.security.capabilities,
            processes: self.security.processes,
            tmp_mb: self.security.tmp_mb,
            tmp_exec: self.security.tmp_exec,
            shm_mb: self.security.shm_mb,
        };
        let condition = self.after_any_end.then_some(AfterCondition::Ended);
        let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs());
        Ok(ExecutionRequest {
            agent: self.agent.map(|agent| agent.parse()).transpose()?,
            image: self.image,
            command: self.command,
            args: Vec::new(),
            env: self.env.into_iter().collect(),
            input,
            target_tags: parsed(self.tags, Tag::parse)?,
            preferred_tags: parsed(self.preferred_tags, Tag::parse)?,
            node_id: self.node.map(NodeId::parse).transpose()?,
            resources,
            network,
            timeout_seconds: seconds(self.timeout),
            max_iterations: self.max_iterations,
            iteration_timeout_seconds: seconds(self.iteration_timeout),
            max_attempts: self.max_attempts,
            retry: self.retry.policy(),
            after: parsed(self.after, ExecutionId::parse)?,
            after_condition: condition,
            workspace_from: self.workspace_from.map(ExecutionId::parse).transpose()?,
            workspace,
            empty_workspace: false,
            artifacts: self.artifacts,
            result_file: self.result_file,
            security,
            queue: self.queue_timeout.is_none_or(|time| !time.is_zero()),
            queue_timeout_seconds: seconds(self.queue_timeout.filter(|time| !time.is_zero())),
            priority: self.priority,
            labels: parsed(self.labels, Tag::parse)?,
            notify: parsed(self.notify, HookName::parse)?,
            idempotency_key: None,
        })
    }
}

/// Parses each text of a repeated option.
fn parsed<T>(texts: Vec<String>, parse: impl Fn(String) -> Result<T>) -> Result<Vec<T>> {
    texts.into_iter().map(parse).collect()
}

/// Makes a path absolute, since the daemon has another working directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|e| Error::invalid(format!("there is no directory {}", path.display())).source(e))
}

fn stdin() -> Result<String> {
    let mut text = String::new();
    let bound = u64::try_from(INPUT_BYTES_MAX).unwrap_or(u64::MAX) + 1;
    std::io::stdin()
        .take(bound)
        .read_to_string(&mut text)
        .map_err(|e| Error::invalid("stdin is not text").source(e))?;
    Ok(text)
}

async fn cancelled(context: &Context, client: &Client, id: &str) -> Result<ExecutionView> {
    let path = format!("/v1/executions/{}/cancel", segment(id));
    let reason = json!({ "reason": "Ctrl-C in aegis run" });
    let _: ExecutionView = client.post(&path, &reason).await?;
    tokio::select! {
        ended = follow_silently(client, id) => ended,
        _ = tokio::signal::ctrl_c() => {
            context.output.say("left to itself");
            Err(Error::new(ErrorCode::Cancelled, "interrupted"))
        }
    }
}

async fn follow_silently(client: &Client, id: &str) -> Result<ExecutionView> {
    loop {
        let path = format!("/v1/executions/{}?wait_seconds=30", segment(id));
        let view: ExecutionView = client.get(&path).await?;
        if view.state.is_settled() {
            return Ok(view);
        }
    }
}

/// Copies the container's stdout and stderr to those of this command, until the container ends.
pub async fn follow(context: &Context, client: &Client, id: &str, after: u64) -> Result<ExecutionView> {
    let mut ended = None;
    let mut failed = None;
    let path = format!("/v1/executions/{}/events?after={after}", segment(id));
    client
        .follow(&path, &format!("aegis executions logs {id} -f"), |name, data| {
            let unread = |e: serde_json::Error| Error::internal("an event is not understood").source(e);
            match name {
                "end" => {
                    ended = Some(serde_json::from_str(data).map_err(unread)?);
                    Ok(false)
                }
                "error" => {
                    failed = Some(
                        serde_json::from_str::<cluster_core::types::error::Failure>(data).map_err(unread)?,
                    );
                    Ok(false)
                }
                _ => {
                    let event: EventView = serde_json::from_str(data).map_err(unread)?;
                    write(context, &event);
                    Ok(true)
                }
            }
        })
        .await?;
    match (ended, failed) {
        (Some(view), _) => Ok(view),
        (None, Some(failure)) => Err(failure.into()),
        (None, None) => Err(Error::internal("the stream ended without an end")),
    }
}

/// Writes an event. With a format for machines, stdout is reserved, so output is written to stderr.
pub fn write(context: &Context, event: &EventView) {
    match &event.kind {
        EventKind::Output { stream: Stream::Stdout, data, .. } if context.output.is_human() => {
            context.output.bytes(data);
        }
        EventKind::Output { data, .. } => context.output.error_bytes(data),
        EventKind::OutputSkipped { bytes, at_least, .. } => {
            let least = if *at_least { "at least " } else { "" };
            context.output.say(&format!("({least}{bytes} bytes of output are left out here)"));
        }
        EventKind::Retried { failure, pause_ms, .. } => {
            let pause = std::time::Duration::from_millis(*pause_ms);
            context.output.say(&format!("({}; retried in {pause:?})", failure.message));
        }
        EventKind::Reassigned { node_id, reason } => {
            context.output.say(&format!("({node_id} was given up: {reason})"));
        }
        EventKind::Gap { first, last } => {
            context.output.say(&format!("(events {first} to {last} are not kept any more)"));
        }
        _ => {}
    }
}

/// Returns the container's exit code. Any other end is an error.
pub fn finish(view: &ExecutionView) -> Result<u8> {
    let code = view.exit_code.map(|code| u8::try_from(code & 0xff).unwrap_or(u8::MAX));
    match (view.state, code, &view.failure) {
        (State::Succeeded, _, _) => Ok(code.unwrap_or(0)),
        // A container that was killed for a reason has a code too (137), but the reason counts.
        (State::Failed, Some(code), Some(failure)) if failure.code == ErrorCode::ContainerFailed => Ok(code),
        (_, _, Some(failure)) => Err(failure.clone().into()),
        (State::Cancelled, _, None) => Err(Error::new(ErrorCode::Cancelled, "the execution was cancelled")),
        (State::Lost, _, None) => {
            Err(Error::new(ErrorCode::Lost, "the node is gone; what became of it is not known")
                .remedy("`aegis node peers` shows the node; it is corrected when the node returns"))
        }
        (_, _, None) => Err(Error::internal("the execution did not end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn ended(state: &str, rest: Value) -> ExecutionView {
        let mut value = json!({
            "execution_id": "exec-1", "state": state, "image": "busybox", "attempt": 1,
            "created_at_ms": 0, "last_sequence": 3
        });
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_containers_exit_code_is_ours() {
        assert_eq!(finish(&ended("succeeded", json!({"exit_code": 0}))).unwrap(), 0);
        let failure = json!({"code": "ContainerFailed", "message": "it exited with code 42"});
        let failed = ended("failed", json!({"exit_code": 42, "failure": failure}));
        assert_eq!(finish(&failed).unwrap(), 42);
    }

    #[test]
    fn an_end_without_an_exit_code_is_an_error() {
        let failure = json!({"failure": {"code": "Timeout", "message": "300 s are over"}, "exit_code": 137});
        assert_eq!(finish(&ended("failed", failure)).unwrap_err().code(), ErrorCode::Timeout);
        assert_eq!(finish(&ended("cancelled", json!({}))).unwrap_err().code(), ErrorCode::Cancelled);
        assert_eq!(finish(&ended("lost", json!({}))).unwrap_err().code(), ErrorCode::Lost);
    }

    #[test]
    fn an_environment_value_may_hold_an_equals_sign() {
        assert_eq!(pair("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert!(pair("A").is_err());
    }
}
