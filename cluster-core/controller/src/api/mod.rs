//! gRPC services of a controller.
//!
//! - [`nodes`]: calls of nodes. `config`: their configuration calls.
//! - [`runtime`]: calls of clients, which present a token ([`operator`]). `runtime_events`: the events of executions.

mod config;
pub mod nodes;
pub mod operator;
pub mod runtime;
mod runtime_events;
