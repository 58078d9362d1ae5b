//! Labels of the containers and volumes that a worker creates.

pub const LABEL_EXECUTION: &str = "aegis.execution_id";

pub const LABEL_ATTEMPT: &str = "aegis.attempt";

pub const LABEL_NODE: &str = "aegis.node_id";

/// Worker data directory whose journal has the container: two nodes may share an engine.
pub const LABEL_OWNER: &str = "aegis.owner";

pub const LABEL_ITERATION: &str = "aegis.iteration";
