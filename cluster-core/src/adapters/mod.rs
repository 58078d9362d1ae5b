//! Ports of the deployment pipeline, implemented by the controller's parts.

pub mod deploy_settings;
pub mod journal;
pub mod membership;
pub mod removal;
