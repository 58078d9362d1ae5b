//! Condition on the executions that another one runs after.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition on an execution that others run after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AfterCondition {
    /// It succeeded.
    #[default]
    Succeeded,
    /// It ended, with whatever outcome.
    Ended,
}
