//! How callers reach the daemon: HTTP on the REST port, and two unix sockets in the data directory.
//!
//! Tasks: one accept task a listener, owned by the daemon; one task a connection, owned by its accept
//! task, which ends them when the daemon stops. Every accept task bounds its connections.

pub mod guard;
pub mod handshake;
pub mod http;
pub mod mcp_socket;
pub mod pipe;
pub mod unix;
