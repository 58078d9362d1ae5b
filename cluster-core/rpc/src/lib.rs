//! The cluster's wire: listeners and clients over sockets that are ours, the sealed envelope, and the
//! translation between messages and domain types. What a controller and a worker serve lies with them.
//!
//! - [`envelope`]: sealing and opening, in the stated order.
//! - [`convert`]: messages to domain types and back.
//! - [`status`]: [`aegis_types::error::ErrorCode`] to gRPC status and back.
//! - [`listener`]: what is listened on, with every limit set on purpose.
//! - [`limits`]: how much strangers may ask, and each member. [`places`]: connections before and after they
//!   are proven. [`call_limits`]: size and number of calls before that. [`refusal_log`]: refusals in the log.
//! - [`event_encoding`]: events of executions, on the wire and in both stores.
//! - [`controller_client`], [`worker_client`]: what each side calls. [`controller_line`]: the connection
//!   under a worker's calls. [`paced_channel`]: the connection under the controller's, whose windows follow the
//!   link's rate ([`pace`]).
//! - [`plain`]: connections in plaintext. [`node_proof`]: what a node at a port shows first.
//! - [`wire`]: what both ends of a connection have in common.
//! - [`known_controller`]: the one controller that a node obeys. [`descriptors`]: file descriptors of connections.
//! - [`tls`]: the direct link's certificates and connections. [`via`]: who may speak on what.

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

/// What both sides of this version speak.
pub const PROTOCOL_VERSION: u32 = 1;
pub const SOFTWARE_VERSION: &str = env!("CARGO_PKG_VERSION");
