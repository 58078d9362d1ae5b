//! Validation of requests: from what a caller asked to a [`crate::DeploymentSpec`].

pub mod grammar;
pub mod tunnel_token;
pub mod validate;
