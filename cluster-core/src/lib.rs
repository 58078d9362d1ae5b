//! The Aegis cluster, without any surface: identity, membership, deployment over SSH, executions.
//!
//! [`Core`] starts and wires the parts of a node; the crates below implement them. Nothing here names MCP, HTTP routes or a
//! command line.

mod adapters;
pub mod core;
pub mod default_port;
mod local_node;
mod node_events;
mod smoke_test;
#[cfg(test)]
mod tests;

pub use self::core::Core;
pub use aegis_config as config;
pub use aegis_content as content;
pub use aegis_controller as controller;
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
pub use aegis_worker as worker;
