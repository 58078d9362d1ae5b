//! `cancel_execution`: stops an execution.

use cluster_core::{Error, Result, execution::lifecycle::State, ids::ExecutionId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    catalogue::{Call, Hints, Tool},
    progress::whole,
};

pub const REASON_LENGTH_MAX: usize = 500;
pub const REASON_DEFAULT: &str = "cancelled by its caller";

pub struct CancelExecution;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The id to cancel.
    execution_id: ExecutionId,
    /// Recorded with the execution; at most 500 characters.
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    execution_id: ExecutionId,
    state: State,
    next_step: String,
}

/// A reason that can be stored and shown.
pub fn reason(given: Option<String>) -> Result<String> {
    let reason = given.unwrap_or_else(|| REASON_DEFAULT.to_owned());
    if reason.is_empty() || reason.chars().count() > REASON_LENGTH_MAX {
        return Err(Error::invalid(format!("reason: it must have 1 to {REASON_LENGTH_MAX} characters")));
    }
    Ok(super::text::clean(&reason).into_owned())
}

impl Tool for CancelExecution {
    const NAME: &'static str = "cancel_execution";
    const TITLE: &'static str = "Cancel an execution";
    const DESCRIPTION: &'static str = "Stop a running or queued execution. Its output stays readable. No effect \
on one that has ended.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: false };
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        format!("aegis executions cancel {}", arguments.execution_id)
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let reason = reason(arguments.reason)?;
        let core = call.core.clone();
        let id = arguments.execution_id;
        let view = whole(async move { core.cancel_execution(&id, &reason).await }).await?;
        let next_step = match view.state {
            State::Cancelled => "It is cancelled; get_execution reads what it wrote.".to_owned(),
            state if state.is_final() => {
                format!("It had already ended ({}); nothing was changed.", state.name())
            }
            _ => format!(
                "Its node was told; call get_execution with execution_id {} and wait_seconds to see it end.",
                view.execution_id
            ),
        };
        Ok(Outcome { execution_id: view.execution_id, state: view.state, next_step })
    }
}
