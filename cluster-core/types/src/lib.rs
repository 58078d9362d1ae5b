//! Vocabulary of the cluster: types that its crates exchange, store and show.
//!
//! - [`error`]: the error type and its closed set of codes. [`ids`]: checked names and ids. [`text`]: text of others
//!   inside messages. [`clock`]: wall-clock time.
//! - [`node`], [`node_event`], [`heartbeat`], [`resources`], [`gpu`], [`link`], [`network`], [`placement`]: nodes, what they have, and
//!   how they are reached and chosen.
//! - [`execution`]: an execution from its request to its stored record. [`agent`], [`runtimes`]: registered agents and
//!   images of languages.
//! - [`caller`], [`scope`], [`principal`]: callers and their rights. [`audit`]: questions to the audit log.
//! - [`secret`], [`registry`]: secret values, and logins at image registries.
//!
//! Absent on purpose: tasks, files and sockets. Functions here decide from their arguments alone, except for the
//! clock and random ids.

pub mod agent;
pub mod audit;
pub mod caller;
pub mod clock;
pub mod error;
pub mod execution;
pub mod fail_point;
pub mod gpu;
pub mod heartbeat;
pub mod ids;
pub mod link;
pub mod network;
pub mod node;
pub mod node_event;
pub mod placement;
pub mod principal;
pub mod registry;
pub mod resources;
pub mod runtimes;
pub mod scope;
pub mod secret;
pub mod text;
