//! What a container of an execution gets, and what it never gets.
//!
//! Never the engine's socket, a new privilege or a bind of the host; no capability and no writable root
//! unless its manifest asks and the node's policy allows; always limits on processes, cpu, memory and log
//! size. Where the engine maps users into a namespace of their own, containers are in it: none is taken out.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig};

use super::volume::{self, WORKSPACE, workspace_volume};
use crate::{
    execution::{
        manifest::{Manifest, NetworkMode},
        order::Attempt,
        policy::{OUTPUT_MB_DEFAULT, PROCESSES_DEFAULT, TMP_MB_DEFAULT},
    },
    ids::NodeId,
};

pub const LABEL_EXECUTION: &str = "aegis.execution_id";
pub const LABEL_ATTEMPT: &str = "aegis.attempt";
pub const LABEL_NODE: &str = "aegis.node_id";
/// Which worker's data directory its journal is in: two nodes may share an engine.
pub const LABEL_OWNER: &str = "aegis.owner";
pub const LABEL_ITERATION: &str = "aegis.iteration";

const MIB: i64 = 1024 * 1024;
/// Of the engine's own log, which is read from its beginning: it must not be rotated away before.
const LOG_TO_OUTPUT: u32 = 3;

/// By node, execution, attempt and iteration, so that creating it twice is a conflict and not a duplicate.
pub fn container_name(node_id: &NodeId, attempt: &Attempt, iteration: u32) -> String {
    let Attempt { execution_id, number } = attempt;
    match iteration {
        1 => format!("aegis-{node_id}-{execution_id}-{number}"),
        _ => format!("aegis-{node_id}-{execution_id}-{number}.{iteration}"),
    }
}

#[derive(Debug)]
pub struct ContainerSpec<'a> {
    pub name: String,
    pub node_id: &'a NodeId,
    pub owner: &'a str,
    pub attempt: &'a Attempt,
    pub iteration: u32,
    pub manifest: &'a Manifest,
    /// The manifest's and the node's variables, `NAME=value`.
    pub env: Vec<String>,
    /// The network of executions that may use one.
    pub network: &'a str,
    /// Indices of the node's GPUs that it gets; as many as its manifest asks for.
    pub gpus: &'a [u32],
    /// Output kept of it, in MiB.
    pub output_mb: u32,
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
                (LABEL_EXECUTION.to_owned(), self.attempt.execution_id.to_string()),
                (LABEL_ATTEMPT.to_owned(), self.attempt.number.to_string()),
                (LABEL_ITERATION.to_owned(), self.iteration.to_string()),
                (LABEL_NODE.to_owned(), self.node_id.to_string()),
                (LABEL_OWNER.to_owned(), self.owner.to_owned()),
            ])),
            working_dir: manifest.has_workspace().then(|| WORKSPACE.to_owned()),
            host_config: Some(self.host_config()),
            ..Default::default()
        }
    }

    fn host_config(&self) -> HostConfig {
        let resources = self.manifest.resources;
        let relaxed = &self.manifest.relaxed;
        let memory = i64::from(resources.memory_mb) * MIB;
        let tmp_mb = relaxed.tmp_mb.unwrap_or(TMP_MB_DEFAULT);
        let log_mb = self.output_mb.max(OUTPUT_MB_DEFAULT).saturating_mul(LOG_TO_OUTPUT);
        HostConfig {
            nano_cpus: Some(i64::from(resources.cpu_millicores) * 1_000_000),
            memory: Some(memory),
            // As much as memory: no swap on top.
            memory_swap: Some(memory),
            pids_limit: Some(i64::from(relaxed.processes.unwrap_or(PROCESSES_DEFAULT))),
            cap_drop: Some(vec!["ALL".into()]),
            cap_add: (!relaxed.capabilities.is_empty()).then(|| relaxed.capabilities.clone()),
            security_opt: Some(vec!["no-new-privileges".into()]),
            readonly_rootfs: Some(!relaxed.writable_root),
            tmpfs: Some(HashMap::from([(
                "/tmp".to_owned(),
                format!("rw,noexec,nosuid,nodev,size={tmp_mb}m"),
            )])),
            network_mode: Some(match self.manifest.network {
                NetworkMode::None => "none".to_owned(),
                NetworkMode::Allow => self.network.to_owned(),
            }),
            mounts: self
                .manifest
                .has_workspace()
                .then(|| vec![volume::mount(&workspace_volume(self.node_id, self.attempt))]),
            init: None,
            // Binary-safe and bounded; more than the output budget, so that nothing we want is rotated away.
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".into()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), format!("{log_mb}m")),
                    ("max-file".to_owned(), "1".to_owned()),
                    ("compress".to_owned(), "false".to_owned()),
                ])),
            }),
            device_requests: (!self.gpus.is_empty()).then(|| {
                vec![DeviceRequest {
                    // A count alone would be the first devices, whoever has them.
                    device_ids: Some(self.gpus.iter().map(u32::to_string).collect()),
                    capabilities: Some(vec![vec!["gpu".into()]]),
                    ..Default::default()
                }]
            }),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        execution::request::{ExecutionRequest, Submission},
        ids::ExecutionId,
    };

    fn host_config(gpus: &[u32]) -> HostConfig {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let manifest = Submission::check(request).unwrap().manifest;
        let node_id = NodeId::parse("edge-1").unwrap();
        let attempt = Attempt { execution_id: ExecutionId::mint(), number: 1 };
        let spec = ContainerSpec {
            name: container_name(&node_id, &attempt, 1),
            node_id: &node_id,
            owner: "o",
            attempt: &attempt,
            iteration: 1,
            manifest: &manifest,
            env: Vec::new(),
            network: "aegis-net",
            gpus,
            output_mb: 10,
        };
        spec.to_body().host_config.unwrap()
    }

    #[test]
    fn gpus_are_asked_for_by_name_and_never_unasked() {
        assert_eq!(host_config(&[]).device_requests, None);
        let requests = host_config(&[1, 3]).device_requests.unwrap();
        let [request] = requests.as_slice() else { panic!("{requests:?}") };
        assert_eq!(request.device_ids, Some(vec!["1".to_owned(), "3".to_owned()]));
        assert_eq!(request.count, None);
        assert_eq!(request.capabilities, Some(vec![vec!["gpu".to_owned()]]));
    }
}
