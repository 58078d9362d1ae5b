//! Agents: manifests of executions that are registered under a name, so that `agent: NAME` takes the place
//! of image, command and the rest.
//!
//! - [`format`]: the published document, `kind: Agent`. [`read`]: text to a checked [`Manifest`], and which of
//!   its fields are not used. [`quantity`]: its amounts and times. [`runtimes`]: a language's image.
//! - [`reference`]: `NAME` and `NAME@3`. [`merge`]: an agent and a request, in one request.
//! - [`registry`]: what is registered, in versions.
//!
//! All but the registry is pure. Executions keep what they were resolved to, so that a later version, or
//! the end of one, changes nothing about them.
//!
//! Tasks: none. Deliberately absent: what the wider platform does with an agent beside running it (prompts,
//! models, tools, judges, schedules, delivery). Such fields are accepted and named as not used.

mod format;
mod merge;
mod quantity;
mod read;
mod registry;

pub use read::{MANIFEST_BYTES_MAX, Manifest};
pub use registry::{AgentDetail, AgentView, Agents, Applied, Deleted, Outcome};
