//! Stack of a deployment: the input of Compose, and the facts needed to start it, to wait for it and to judge the host.
//!
//! The embedded stack is made from fragments in the binary (`embedded`). An operator's stack is read in three steps:
//!
//! 1. `project` reads the compose files and the files that Compose opens with them (`references`) from this machine.
//! 2. Compose on the host interprets them with `docker compose config` (`config`).
//! 3. `operator` reads the files that the services use (`bundle`), and `foreign` adds the node in an override.
//!
//! Reading accesses this machine's disk and the host; [`build`] decides and accesses neither.
//!
//! Not supported on purpose: compose files that the host would fetch from a URL.

mod bundle;
mod config;
mod embedded;
mod foreign;
mod operator;
mod project;
mod references;
mod source;

pub use self::{
    bundle::{Bundle, Root},
    config::Published,
    operator::CustomStack,
};
pub(super) use self::{
    bundle::{COMPLETE, PROJECT_DIRECTORY},
    config::ComposeOutput,
    project::{CustomProject, VARIABLES_FILE},
};
use std::collections::{BTreeMap, BTreeSet};

use aegis_types::error::Result;

use crate::model::spec::DeploymentSpec;

const NODE_FRAGMENT: &str = include_str!("node.yml");

/// Files to write to the host, and the requirements to run them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stack {
    pub compose: String,
    /// The operator's own override, from the directory of their compose file.
    pub operator_override: Option<String>,
    /// The generated override, which comes last.
    pub override_file: Option<String>,
    /// Images other than the node's own.
    pub images: Vec<String>,
    /// Images that are pulled even if the host has an image of that name.
    pub always_pulled: BTreeSet<String>,
    /// Variables of the compose file that have no value and no default.
    pub unset: BTreeSet<String>,
    /// Started services with images that a variable without a value leaves incomplete.
    pub incomplete_images: BTreeMap<String, String>,
    /// The service that runs the node; `None` for a stack without a node.
    pub node: Option<NodeService>,
    pub ollama: Option<OllamaService>,
    /// The embedded cloudflared, whose readiness is probed.
    pub cloudflared: bool,
    /// Services to start: the requested ones and their dependencies.
    pub services: Vec<String>,
    pub profiles: Vec<String>,
    /// Ports of the host that the started services take.
    pub ports: Vec<Published>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeService {
    pub service: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OllamaService {
    pub service: String,
    /// API port on the host; `None` if the stack does not publish it.
    pub port: Option<u16>,
}

pub fn build(spec: &DeploymentSpec, operator: Option<&CustomStack>, gpu: bool) -> Result<Stack> {
    match operator {
        Some(operator) => foreign::build(spec, operator),
        None => Ok(embedded::build(spec, gpu)),
    }
}

fn node_fragment(service: &str, port: u16) -> String {
    NODE_FRAGMENT.replace("__NODE__", service).replace("__PORT__", &port.to_string())
}

#[cfg(test)]
pub(super) mod testing {
    use crate::{DeploySettings, DeploymentRequest, DeploymentSpec};
    use aegis_types::principal::Origin;

    /// Makes a specification of the embedded stack.
    pub fn spec(change: impl FnOnce(&mut DeploymentRequest)) -> DeploymentSpec {
        of(change, DeploySettings::default())
    }

    /// Makes a specification of an operator's compose file, which need not exist.
    pub fn foreign_spec(change: impl FnOnce(&mut DeploymentRequest)) -> DeploymentSpec {
        let settings =
            DeploySettings { compose_file: Some("/project/docker-compose.yml".into()), ..Default::default() };
        of(change, settings)
    }

    fn of(change: impl FnOnce(&mut DeploymentRequest), settings: DeploySettings) -> DeploymentSpec {
        let mut request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        change(&mut request);
        request.validate(Origin::Person, &settings).unwrap().spec
    }
}
