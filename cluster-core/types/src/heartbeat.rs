//! Commands of a controller to a node, and what the node reports.

use serde::{Deserialize, Serialize};

use crate::ids::CommandId;

/// A command to a node, which the node obeys once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Drain,
    Resume,
    /// Ends the process once nothing runs there.
    Shutdown,
    /// To run this version of its configuration.
    PushConfig {
        version: String,
        /// Merged when it is sent, and never stored.
        #[serde(skip)]
        body: Vec<u8>,
    },
}

/// Commands that the node has not acknowledged, oldest first.
pub type OpenCommands = Vec<(CommandId, Command)>;

/// The version that a node runs, and why not a newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigReport {
    pub version: String,
    pub error: Option<String>,
}
