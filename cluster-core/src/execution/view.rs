//! Executions and their events as every surface shows them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lifecycle::State;
use crate::{
    error::Failure,
    ids::{ExecutionId, NodeId},
};

/// An execution as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionView {
    pub execution_id: ExecutionId,
    pub state: State,
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Which assignment this is; 0 before the first.
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Why it waits, node by node, while it is pending.
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

/// What happened. `bytes` of output are text where they are UTF-8; what is not is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    Started {
        node_id: NodeId,
    },
    ImageProgress {
        message: String,
    },
    IterationStarted {
        iteration: u32,
    },
    Output {
        stream: Stream,
        text: String,
        /// The last piece that the output budget lets through.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    Completed {
        exit_code: i32,
    },
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
    /// Events that are not kept any more.
    Gap {
        first: u64,
        last: u64,
    },
}

impl EventKind {
    /// The state that this event shows, if it shows one.
    pub fn state(&self) -> Option<State> {
        match self {
            EventKind::Started { .. } => Some(State::Starting),
            EventKind::IterationStarted { .. } => Some(State::Running),
            EventKind::Completed { exit_code: 0 } => Some(State::Succeeded),
            EventKind::Completed { .. } | EventKind::Failed { .. } | EventKind::TimedOut { .. } => {
                Some(State::Failed)
            }
            EventKind::Cancelled { .. } => Some(State::Cancelled),
            EventKind::ImageProgress { .. } | EventKind::Output { .. } | EventKind::Gap { .. } => None,
        }
    }
}
