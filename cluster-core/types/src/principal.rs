//! Who asks: a person, or an assistant.

use serde::{Deserialize, Serialize};

/// Who asks. A model can be talked into things by text it reads, so an assistant may say less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Assistant,
    Person,
}
