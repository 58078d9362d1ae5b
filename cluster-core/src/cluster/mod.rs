//! Members of the cluster, and the placement of executions on them.
//!
//! - [`membership`], [`placement`]: the decisions, pure.
//! - [`controller`]: the task that owns the membership; admission of nodes.
//! - [`sessions`]: attested sessions, in memory.
//! - [`nodes`]: how the controller reaches its nodes.
//! - [`direct`]: the link of a node that it dials itself.
//! - [`worker`]: the task by which a worker belongs to its controller.

pub mod controller;
pub mod direct;
pub mod events;
pub mod membership;
pub mod nodes;
pub mod placement;
pub mod sessions;
pub mod worker;
