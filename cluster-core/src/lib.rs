//! The Aegis cluster, without any surface: identity, membership, deployment over SSH, executions.
//! The binary above names no wire type, and nothing here names MCP, HTTP routes or a command line.

pub mod access;
pub mod agents;
pub mod api;
pub mod audit;
pub mod capacity;
mod clock_watch;
pub mod cluster;
pub mod core;
pub mod default_port;
pub mod execution;
mod ops;
pub mod secrets;

pub use self::core::Core;
pub use aegis_config as config;
pub use aegis_content as content;
pub use aegis_deploy as deploy;
pub use aegis_engine as engine;
pub use aegis_fs as fs;
pub use aegis_identity as identity;
pub use aegis_metrics as metrics;
pub use aegis_rpc as rpc;
pub use aegis_ssh as ssh;
pub use aegis_store as store;
pub use aegis_types as types;
pub use aegis_types::error::{Error, ErrorCode, Failure, Result};
