//! How callers reach the daemon: HTTP on the REST port, and two unix sockets in the data directory.
//!
//! Tasks: one accept task a listener, owned by the daemon; one task a connection, owned by its accept
//! task, which ends them when the daemon stops. Every accept task bounds its connections.

mod end_of_input;
mod first_bytes;
pub mod guard;
mod handshake;
pub mod http;
mod http_sessions;
mod lines;
pub(crate) mod mcp_socket;
mod message;
pub(crate) mod pipe;
mod places;
mod session;
mod streams;
mod unique_keys;
pub(crate) mod unix;
