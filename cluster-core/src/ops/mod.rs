//! Uses that touch two areas: what a deployment asks of the cluster and of the store, the controller's own
//! node, and what follows from a node's removal.

pub mod departures;
pub mod deploy_settings;
pub mod journal;
pub mod local_node;
pub mod membership;
mod removal;
pub mod trial;
