//! What an assistant can read without calling a tool: the cluster, deployments, executions, their output.
//!
//! [`uri`] is the one place that knows how resources are named; [`list`] shows the newest and the templates,
//! [`read`] makes the documents, [`subscriptions`] tells clients of
//! changes, which [`watch`] hears from the core. Documents are those of the tools, and go through
//! [`crate::text::clean`] as these do. Reading changes nothing and costs no connection to a host.
//!
//! Absent on purpose: `notifications/resources/list_changed`. The list shows the newest deployments and
//! executions, and nothing in the core tells that there is another one; a client lists again when it
//! wants to know.

pub mod list;
pub mod read;
pub mod subscriptions;
#[cfg(test)]
mod tests;
pub mod uri;
mod watch;

/// Of what stays as it is until a restart.
pub const FIXED_TTL_MS: u64 = 5 * 60 * 1000;
/// Of what may be another a moment later: a client asks again.
pub const LIVE_TTL_MS: u64 = 0;
