//! The tools an assistant sees: one file a tool with its arguments, its result and its call.
//!
//! A tool is a type that implements [`Tool`]; [`ToolRegistry`] holds them in their fixed order with
//! their schemas, made once. The name stands once, in the tool's own file. Whatever leaves here has
//! gone through [`crate::text`]: nothing that hides, no secret of the call.

mod arguments;
mod cancel_deployment;
mod cancel_execution;
mod cancel_rollout;
pub mod deploy_edge_node;
pub mod deploy_edge_nodes;
mod deployment;
mod disruption;
pub mod drain_node;
pub mod get_deployment_status;
pub mod get_execution;
mod get_node_logs;
mod get_rollout;
mod list_deployments;
pub mod list_peers;
pub mod output;
mod paging;
mod progress;
mod registry;
pub mod remove_edge_node;
mod resume_node;
pub mod rollback_edge_node;
mod rollout;
mod schema;
mod steps;
mod submit_execution;
#[cfg(test)]
mod tests;
pub mod tool;

pub use arguments::{PAGE_LIMIT_MAX, ResponseFormat, check_range, check_secret, parse, secret};
pub use cancel_execution::reason as cancel_reason;
pub use drain_node::order as drain_order;
pub use get_execution::{EVENTS_DEFAULT, EVENTS_MAX};
pub use progress::{Progress, whole};
pub use registry::ToolRegistry;
pub use tool::{Call, Tool};
