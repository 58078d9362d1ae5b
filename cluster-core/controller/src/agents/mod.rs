//! Agents: manifests of executions that are registered under a name, so that a request can say `agent: NAME` instead of
//! an image and a command.
//!
//! - `format`: the published document, `kind: Agent`. [`read`]: text to a checked [`Manifest`], and its unused fields.
//!   [`quantity`]: amounts and times.
//! - [`merge`]: combines an agent and a request into one request.
//! - [`registry`]: registered agents and their versions.
//!
//! All but the registry is pure. An execution keeps the version that it was resolved to: later versions and deletions do
//! not change it.
//!
//! No tasks. Absent on purpose: the other uses of an agent in the wider platform (prompts, models, tools, judges,
//! schedules, delivery). Such fields are accepted and reported as not used.

mod format;
mod merge;
mod quantity;
mod read;
mod registry;

pub use read::{MANIFEST_BYTES_MAX, Manifest};
pub use registry::{AgentDetail, AgentView, Agents, Applied, Deleted, Outcome};
