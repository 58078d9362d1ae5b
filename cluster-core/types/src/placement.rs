//! How a node is chosen among those that fit an execution.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Order of the nodes that fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlacementStrategy {
    /// Whose turn it is.
    #[default]
    RoundRobin,
    /// The one with the smallest part of its scarcest resource taken.
    LeastLoaded,
    /// The one with the largest part taken: others stay free for what is large.
    BinPack,
    /// The one with the fewest executions.
    Spread,
}
