//! What a container of an execution gets, and what it never gets.
//!
//! Never the engine's socket, a capability, a new privilege, a bind of the host, or a writable root;
//! always limits on processes, cpu, memory and log size.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig};

use crate::{
    execution::manifest::{Manifest, NetworkMode},
    ids::{ExecutionId, NodeId},
};

pub const LABEL_EXECUTION: &str = "aegis.execution_id";
pub const LABEL_ATTEMPT: &str = "aegis.attempt";
pub const LABEL_NODE: &str = "aegis.node_id";

const PROCESSES_MAX: i64 = 512;
const TMP_OPTIONS: &str = "rw,noexec,nosuid,nodev,size=64m";

/// By node, execution and attempt, so that creating it twice is a conflict and not a duplicate.
pub fn container_name(node_id: &NodeId, execution_id: &ExecutionId, attempt: u32) -> String {
    format!("aegis-{node_id}-{execution_id}-{attempt}")
}

#[derive(Debug)]
pub struct ContainerSpec<'a> {
    pub name: String,
    pub node_id: &'a NodeId,
    pub execution_id: &'a ExecutionId,
    pub attempt: u32,
    pub manifest: &'a Manifest,
    /// The manifest's and the node's variables, `NAME=value`.
    pub env: Vec<String>,
    /// The network of executions that may use one.
    pub network: &'a str,
    pub writable_root: bool,
}

impl ContainerSpec<'_> {
    pub(super) fn to_body(&self) -> ContainerCreateBody {
        let manifest = self.manifest;
        let words = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
        ContainerCreateBody {
            image: Some(manifest.image.clone()),
            entrypoint: words(&manifest.command),
            // An entrypoint of the caller's takes no default arguments of the image's.
            cmd: words(&manifest.args).or_else(|| (!manifest.command.is_empty()).then(Vec::new)),
            env: Some(self.env.clone()),
            open_stdin: Some(true),
            stdin_once: Some(true),
            attach_stdin: Some(true),
            labels: Some(HashMap::from([
                (LABEL_EXECUTION.to_owned(), self.execution_id.to_string()),
                (LABEL_ATTEMPT.to_owned(), self.attempt.to_string()),
                (LABEL_NODE.to_owned(), self.node_id.to_string()),
            ])),
            host_config: Some(self.host_config()),
            ..Default::default()
        }
    }

    fn host_config(&self) -> HostConfig {
        let resources = self.manifest.resources;
        let memory = i64::from(resources.memory_mb) * 1024 * 1024;
        HostConfig {
            nano_cpus: Some(i64::from(resources.cpu_millicores) * 1_000_000),
            memory: Some(memory),
            // As much as memory: no swap on top.
            memory_swap: Some(memory),
            pids_limit: Some(PROCESSES_MAX),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            readonly_rootfs: Some(!self.writable_root),
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), TMP_OPTIONS.to_owned())])),
            network_mode: Some(match self.manifest.network {
                NetworkMode::None => "none".to_owned(),
                NetworkMode::Allow => self.network.to_owned(),
            }),
            init: None,
            // Binary-safe and bounded; more than the output budget, so that nothing we want is rotated away.
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".into()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), "32m".to_owned()),
                    ("max-file".to_owned(), "1".to_owned()),
                    ("compress".to_owned(), "false".to_owned()),
                ])),
            }),
            device_requests: (resources.gpus > 0).then(|| {
                vec![DeviceRequest {
                    count: Some(i64::from(resources.gpus)),
                    capabilities: Some(vec![vec!["gpu".into()]]),
                    ..Default::default()
                }]
            }),
            ..Default::default()
        }
    }
}
