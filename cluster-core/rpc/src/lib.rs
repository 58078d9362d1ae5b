//! Wire protocol of the cluster: listeners, clients, the sealed envelope, and the conversion between messages and
//! domain types. The services of controllers and workers are elsewhere.
//!
//! - [`envelope`]: sealing and opening, in the order of the protocol.
//! - [`convert`]: conversion between messages and domain types.
//! - [`status`]: conversion between [`aegis_types::error::ErrorCode`] and gRPC status.
//! - [`listener`]: listening sockets, with explicit limits.
//! - [`limits`]: rate limits for unauthenticated callers and for members. [`places`]: connections before and after
//!   authentication. [`call_limits`]: size and number of earlier calls. [`refusal_log`]: rejections in the log.
//! - [`event_encoding`]: events of executions, on the wire and in both stores.
//! - [`controller_client`], [`worker_client`]: calls of each side. [`controller_line`]: the connection for a worker's
//!   calls. [`paced_channel`]: the connection for the controller's calls, with windows that follow the link's rate
//!   ([`pace`]).
//! - [`plain`]: connections in plaintext. [`node_proof`]: proof of identity of a node at a port.
//! - [`wire`]: definitions for both ends of a connection.
//! - [`known_controller`]: the controller that a node obeys. [`descriptors`]: file descriptors of connections.
//! - [`tls`]: certificates and connections of the direct link. [`via`]: permissions by kind of connection.

pub mod call_limits;
mod content_client;
pub mod controller_client;
pub mod controller_line;
pub mod convert;
pub mod descriptors;
pub mod envelope;
pub mod event_encoding;
pub mod known_controller;
pub mod limits;
pub mod listener;
pub mod node_proof;
pub mod node_worker;
pub mod pace;
pub mod paced_channel;
pub mod places;
pub mod plain;
pub mod refusal_log;
pub mod status;
pub mod tls;
pub mod via;
pub mod wire;
pub mod worker_client;

pub use envelope::{ClusterClock, Sealer};

/// Protocol version of this release, for both sides.
pub const PROTOCOL_VERSION: u32 = 1;
pub const SOFTWARE_VERSION: &str = env!("CARGO_PKG_VERSION");
