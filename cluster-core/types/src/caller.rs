//! How a caller is told from another: the door it came through, and what it showed there.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::AccessTokenName;

/// The ways in. Those of the data directory are its owner's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Door {
    /// REST over the data directory's socket: the command line.
    #[serde(rename = "api.sock")]
    ApiSocket,
    /// MCP over the data directory's socket: `aegis mcp`.
    #[serde(rename = "mcp.sock")]
    McpSocket,
    #[serde(rename = "http")]
    Http,
    #[serde(rename = "grpc")]
    Grpc,
}

/// Identity that a caller has shown at the door.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A process of this user of the machine.
    LocalUser(u32),
    /// The token in the data directory.
    LocalToken,
    Token(AccessTokenName),
    /// Nothing, where nothing is asked for.
    Anybody,
}

/// Writes an identity as the audit log has it: `uid 1000`, `http.token`, `token NAME`, `anybody`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalUser(uid) => write!(f, "uid {uid}"),
            Self::LocalToken => f.write_str("http.token"),
            Self::Token(name) => write!(f, "token {name}"),
            Self::Anybody => f.write_str("anybody"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor {
    pub door: Door,
    pub identity: Identity,
}
