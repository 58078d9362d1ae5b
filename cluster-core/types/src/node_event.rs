//! Kinds of events of nodes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NodeEventKind {
    /// Registered for the first time, or again after its removal.
    NodeJoined,
    /// Its heartbeats are missing.
    NodeUnhealthy,
    /// Heard again after it was unhealthy or offline.
    NodeRecovered,
    /// Deregistered by itself.
    NodeOffline,
    /// Gets no new work.
    NodeDraining,
    /// Takes work again.
    NodeResumed,
    NodeRemoved,
    /// Two sessions of its key alternate: the key may have been copied.
    NodeContended,
    /// A machine attested in its name and was refused: with another key, or after its removal.
    NodeRefused,
    /// The controller's wall clock jumped; the node is the controller.
    ClockJumped,
}

impl NodeEventKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodeJoined => "NodeJoined",
            Self::NodeUnhealthy => "NodeUnhealthy",
            Self::NodeRecovered => "NodeRecovered",
            Self::NodeOffline => "NodeOffline",
            Self::NodeDraining => "NodeDraining",
            Self::NodeResumed => "NodeResumed",
            Self::NodeRemoved => "NodeRemoved",
            Self::NodeContended => "NodeContended",
            Self::NodeRefused => "NodeRefused",
            Self::ClockJumped => "ClockJumped",
        }
    }
}
