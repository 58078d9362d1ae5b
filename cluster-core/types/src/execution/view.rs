//! Executions and their events as every surface shows them.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    artifacts::Artifacts, lifecycle::State, manifest::NetworkMode, request::ResourceRequest,
    retry::RetryPolicy, usage::Usage,
};
use crate::{
    agent::AgentReference,
    error::Failure,
    ids::{ExecutionId, NodeId, Tag},
};

/// An execution as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionView {
    pub execution_id: ExecutionId,
    /// The registered agent that it runs, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentReference>,
    pub state: State,
    pub image: String,
    /// The caller's own words for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Tag>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Which assignment this is; 0 before the first.
    pub attempt: u32,
    /// Retries of its program so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// How often it was tried on its node; 0 before the first.
    #[serde(default)]
    pub iteration: u32,
    /// Result that the container wrote: JSON from the last line of its stdout, or a file's text.
    /// Untrusted, like all output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Artifacts that were kept; absent if it named no paths or had no container yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Artifacts>,
    /// Resources that its latest attempt used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Why it waits, node by node, while it is pending; the problem of its node while it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Unix time in milliseconds.
    pub created_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<i64>,
    /// The highest event number that is stored.
    pub last_sequence: u64,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Request of an execution as it was checked, with the names of its variables alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpecView {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Names of its environment variables. Their values are not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<String>,
    pub resources: ResourceRequest,
    pub network: NetworkMode,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_tags: Vec<Tag>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferred_tags: Vec<Tag>,
    /// The node that it is pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// From the start of its container.
    pub timeout_seconds: u64,
    pub max_iterations: u32,
    pub max_attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// Executions that it still waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ExecutionId>,
    pub priority: i32,
    /// Size of the packed directory at /workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_bytes: Option<u64>,
    /// Paths that are kept when it has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
}

/// One event of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    pub sequence: u64,
    pub attempt: u32,
    pub time_ms: i64,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Kind of an event, with its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The node has taken it.
    Started,
    ImageProgress {
        message: String,
    },
    /// The container runs.
    IterationStarted {
        iteration: u32,
    },
    /// Bytes as the container wrote them; shown as text, with what is not UTF-8 replaced.
    Output {
        stream: Stream,
        #[serde(rename = "text", with = "text")]
        #[schemars(with = "String")]
        data: Bytes,
        /// The last piece that the output budget lets through while the container runs. The end of the output
        /// follows once the container has ended.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    /// Output between its beginning and its end that is not kept.
    OutputSkipped {
        stream: Stream,
        bytes: u64,
        /// More may be missing: the engine had dropped some before it was read.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        at_least: bool,
    },
    /// The container exited with 0.
    IterationCompleted {
        iteration: u32,
    },
    /// Any other end of one container; another iteration follows, or the end.
    IterationFailed {
        iteration: u32,
        failure: Failure,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// The end of what it wrote to stderr: the next iteration is told.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stderr_tail: String,
    },
    Completed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<String>,
    },
    /// Any end but success, cancel and timeout.
    Failed {
        failure: Failure,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    Cancelled {
        reason: String,
    },
    TimedOut {
        timeout_ms: u64,
    },
    /// This event's attempt was given up, and another may begin elsewhere.
    Reassigned {
        node_id: NodeId,
        reason: String,
    },
    /// The program of this event's attempt failed, and it runs again after a pause.
    Retried {
        failure: Failure,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        pause_ms: u64,
    },
    /// Resources that the containers of this event's attempt used, as last sampled.
    Usage {
        cpu_ms: u64,
        memory_peak_bytes: u64,
    },
    /// Events that are not kept any more.
    Gap {
        first: u64,
        last: u64,
    },
    /// An event of a newer version, of a kind that this one does not know. It keeps its number.
    Unknown,
}

mod text {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(data: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&String::from_utf8_lossy(data))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        Ok(Bytes::from(String::deserialize(from)?))
    }
}

impl EventKind {
    /// The state that this event shows, if it shows one.
    pub fn state(&self) -> Option<State> {
        match self {
            EventKind::Started => Some(State::Starting),
            EventKind::IterationStarted { .. } => Some(State::Running),
            EventKind::Completed { .. } => Some(State::Succeeded),
            EventKind::Failed { .. } | EventKind::TimedOut { .. } => Some(State::Failed),
            EventKind::Cancelled { .. } => Some(State::Cancelled),
            EventKind::ImageProgress { .. }
            | EventKind::IterationCompleted { .. }
            | EventKind::IterationFailed { .. }
            | EventKind::Output { .. }
            | EventKind::OutputSkipped { .. }
            | EventKind::Reassigned { .. }
            | EventKind::Retried { .. }
            | EventKind::Usage { .. }
            | EventKind::Gap { .. }
            | EventKind::Unknown => None,
        }
    }
}
