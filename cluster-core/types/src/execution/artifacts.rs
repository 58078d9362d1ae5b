//! Artifacts: files that an execution leaves behind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Artifacts that were kept of an execution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artifacts {
    /// Size of the packed file.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
    /// Requested paths that did not exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Why nothing was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Artifacts {
    pub fn none_because(problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()), ..Self::default() }
    }
}

/// Artifacts that a worker has packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    pub artifacts: Artifacts,
    /// SHA-256 of the packed file, in hexadecimal. Empty without a file.
    pub digest: String,
}
