//! The controller of an Aegis cluster: its members, the placement of executions, and their records.
//!
//! - [`membership`], [`placement`]: decisions about members and placement, as plain functions.
//! - [`handle`]: the handle on the task that owns the membership, and the admission of nodes.
//! - [`sessions`]: attested sessions, in memory. [`events`]: the events of nodes.
//! - [`nodes`]: connections to nodes.
//! - [`executions`]: executions from submission to the stored end.
//! - [`agents`], [`secrets`], [`access`], [`audit`]: agents, secrets, access tokens and the audit log.
//! - [`api`]: the gRPC services of a controller.
//!
//! The controller does not depend on the worker. A hybrid node gives it a worker of the same process as
//! [`aegis_rpc::node_worker::NodeWorker`].

pub mod access;
pub mod agents;
pub mod api;
pub mod audit;
mod clock_watch;
pub mod events;
pub mod executions;
pub mod handle;
pub mod membership;
pub mod nodes;
pub mod placement;
pub mod secrets;
pub mod sessions;
