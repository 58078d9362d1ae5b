//! Uses that touch two areas: what a deployment asks of the cluster and of the store, and the
//! controller's own node.

pub mod deploy_settings;
pub mod journal;
pub mod local_node;
pub mod membership;
pub mod trial;
