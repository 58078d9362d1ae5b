//! The principal of a request: a person or an assistant.

use serde::{Deserialize, Serialize};

/// Principal of a request. Text that a model reads can mislead it, so that an assistant has fewer rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Assistant,
    Person,
}
