//! Services of the cluster's ports.
//!
//! - [`controller`]: calls of nodes to a controller. [`worker`]: calls of a controller to its worker; `content`: what
//!   travels in pieces. [`config`]: the configuration calls of both.
//! - [`runtime`]: calls of clients, which bear a token ([`operator`]); `runtime_events`: their events.

mod config;
mod content;
pub mod controller;
pub mod operator;
pub mod runtime;
mod runtime_events;
pub mod worker;
