//! Resources that an assistant can read without calling a tool: the cluster, deployments, executions, and their output.
//!
//! [`uri`] is the one place that knows how resources are named; [`list`] shows the newest and the templates,
//! [`read`] makes the documents, [`subscriptions`] tells clients of
//! changes, which [`watch`] hears from the core. Documents are those of the tools, and go through
//! [`crate::text::clean`] as these do. Reading changes nothing and costs no connection to a host.
//!
//! Not supported on purpose: `notifications/resources/list_changed`. The list shows the newest deployments and
//! executions, and the core has no event for a new one. A client lists again when needed.

pub mod list;
pub mod read;
pub mod subscriptions;
#[cfg(test)]
mod tests;
pub mod uri;
mod watch;

/// Time to live of documents that are constant until a restart.
pub const FIXED_TTL_MS: u64 = 5 * 60 * 1000;
/// Time to live of documents that may change at any moment: clients read them again.
pub const LIVE_TTL_MS: u64 = 0;
