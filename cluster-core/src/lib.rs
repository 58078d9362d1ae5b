//! The Aegis cluster, without any surface: identity, membership, deployment over SSH, executions.
//! The binary above names no wire type, and nothing here names MCP, HTTP routes or a command line.

pub mod access;
pub mod agents;
pub mod audit;
pub mod capacity;
mod clock_watch;
pub mod cluster;
pub mod config;
pub mod core;
pub mod default_port;
pub mod deploy;
mod descriptors;
pub mod engine;
pub mod engine_facts;
pub mod execution;
pub mod identity;
pub mod metrics;
pub mod network_guard;
pub mod nvidia_smi;
mod ops;
pub mod registries;
pub mod rpc;
pub mod secrets;
pub mod ssh;
pub mod store;
pub mod workspace;

pub use self::core::Core;
pub use aegis_types as types;
pub use aegis_types::error::{Error, ErrorCode, Failure, Result};
