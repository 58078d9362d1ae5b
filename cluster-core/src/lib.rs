//! The Aegis cluster, without any surface: identity, membership, deployment over SSH, executions.
//! The binary above names no wire type, and nothing here names MCP, HTTP routes or a command line.

pub mod deploy;
pub mod error;
pub mod ids;
pub mod ssh;

pub use error::{Error, ErrorCode, Failure, Result};
