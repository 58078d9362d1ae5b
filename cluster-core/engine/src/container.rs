//! Restrictions of an execution's container.
//!
//! A container never gets the engine's socket, new privileges or a bind mount of the host. It gets capabilities or a
//! writable root only if its manifest asks and the node's policy allows. Processes, cpu, memory and log size are always
//! limited. If the engine uses user namespaces, every container is in one.

use std::collections::HashMap;

use aegis_types::{
    execution::{
        limits::{OUTPUT_MB_DEFAULT, PROCESSES_DEFAULT, TMP_MB_DEFAULT},
        manifest::{Manifest, NetworkMode},
        order::Attempt,
    },
    gpu::{GpuId, NVIDIA_DEVICES},
    ids::NodeId,
};
use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountTmpfsOptions, MountType, ResourcesUlimits,
};

use super::{
    ImageConfig, home,
    volume::{self, HOME, WORKSPACE},
};
use crate::{LABEL_ATTEMPT, LABEL_EXECUTION, LABEL_NODE, LABEL_OWNER, labels::LABEL_ITERATION};

const MIB: i64 = 1024 * 1024;
const TMP: &str = "/tmp";
/// Writable by any user, as `/tmp` is: the image may run as its own user.
const TMPFS_MODE: i64 = 0o1777;
/// Size of one file of the engine's own log, as a multiple of the output that is kept.
///
/// The beginning of the output is read from the first file alone. An open file stays complete when it is rotated, so no
/// reader is too slow. The engine's frames take 26 to 30 bytes a line. Lines of 4 bytes fill a file and the output
/// budget together; shorter lines end the beginning earlier, with a mark.
const LOG_TO_OUTPUT: u32 = 8;
/// Files of the engine's own log: with one file, all output would be dropped when it is full.
const LOG_FILES: &str = "2";

/// Returns the size of one file of the engine's own log of a container, in MiB.
pub fn log_file_mb(output_mb: u32) -> u32 {
    output_mb.max(OUTPUT_MB_DEFAULT).saturating_mul(LOG_TO_OUTPUT)
}

/// Returns the name by node, execution, attempt and iteration. Creating a container twice is therefore a conflict.
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
    /// Variables of the manifest and the node, `NAME=value`.
    pub env: Vec<String>,
    /// Network of executions that may use one.
    pub network: &'a str,
    /// GPUs granted to the container: the number that its manifest requests.
    pub gpus: &'a [GpuId],
    /// Limit of the kept output, in MiB.
    pub output_mb: u32,
    pub image: ImageConfig,
    /// The container reads input on stdin; otherwise nothing is attached.
    pub has_input: bool,
}

impl ContainerSpec<'_> {
    /// Builds the request. With `has_init`, signals reach a program that does not handle them, and orphaned processes
    /// are reaped.
    pub(super) fn to_body(&self, has_init: bool) -> ContainerCreateBody {
        let manifest = self.manifest;
        let words = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
        ContainerCreateBody {
            image: Some(manifest.image.clone()),
            entrypoint: words(&manifest.command),
            // A custom entrypoint does not get the image's default arguments.
            cmd: words(&manifest.args).or_else(|| (!manifest.command.is_empty()).then(Vec::new)),
            env: Some(self.env()),
            // The image's own health check would run for as long as the container does.
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
            open_stdin: Some(self.has_input),
            stdin_once: Some(self.has_input),
            attach_stdin: Some(self.has_input),
            labels: Some(HashMap::from([
                (LABEL_EXECUTION.to_owned(), self.attempt.execution_id.to_string()),
                (LABEL_ATTEMPT.to_owned(), self.attempt.number.to_string()),
                (LABEL_ITERATION.to_owned(), self.iteration.to_string()),
                (LABEL_NODE.to_owned(), self.node_id.to_string()),
                (LABEL_OWNER.to_owned(), self.owner.to_owned()),
            ])),
            working_dir: manifest.has_workspace().then(|| WORKSPACE.to_owned()),
            host_config: Some(HostConfig { init: Some(has_init), ..self.host_config() }),
            ..Default::default()
        }
    }

    /// Returns the variables. They name the granted GPUs, or state that there are no GPUs. If the NVIDIA runtime is the
    /// engine's default, it obeys this variable, and most CUDA images set it to `all`.
    fn env(&self) -> Vec<String> {
        let granted = match self.gpus.is_empty() {
            true => "void".to_owned(),
            false => self.gpu_names().join(","),
        };
        let gpus = format!("{NVIDIA_DEVICES}={granted}");
        let homes = match self.manifest.relaxed.writable_root {
            true => Vec::new(),
            false => home::variables(self.manifest.has_workspace(), &self.env, &self.image.env),
        };
        self.env.iter().cloned().chain(homes).chain([gpus]).collect()
    }

    fn gpu_names(&self) -> Vec<String> {
        self.gpus.iter().map(GpuId::to_string).collect()
    }

    /// Returns the volumes of the workspace, and bounded memory for each volume that the image declares. The engine
    /// would make an unbounded volume on disk for it, in spite of a read-only root.
    fn mounts(&self, tmp_mb: u32) -> Vec<Mount> {
        let has_workspace = self.manifest.has_workspace();
        let volumes = match has_workspace {
            true => volume::mounts(self.node_id, self.attempt),
            false => Vec::new(),
        };
        let is_free =
            |path: &&String| !(has_workspace && [WORKSPACE, HOME].contains(&path.trim_end_matches('/')));
        let memory = self.image.volumes.iter().filter(is_free).map(|path| Mount {
            target: Some(path.clone()),
            typ: Some(MountType::TMPFS),
            tmpfs_options: Some(MountTmpfsOptions {
                size_bytes: Some(i64::from(tmp_mb) * MIB),
                mode: Some(TMPFS_MODE),
                ..Default::default()
            }),
            ..Default::default()
        });
        volumes.into_iter().chain(memory).collect()
    }

    fn host_config(&self) -> HostConfig {
        let resources = self.manifest.resources;
        let relaxed = &self.manifest.relaxed;
        let memory = i64::from(resources.memory_mb) * MIB;
        let tmp_mb = relaxed.tmp_mb.unwrap_or(TMP_MB_DEFAULT);
        let log_mb = log_file_mb(self.output_mb);
        // Builds run programs that they have just made, like the tests of Go. A workspace is executable too.
        let exec = if relaxed.tmp_exec || self.manifest.has_workspace() { "exec" } else { "noexec" };
        HostConfig {
            nano_cpus: Some(i64::from(resources.cpu_millicores) * 1_000_000),
            memory: Some(memory),
            // Equal to the memory limit, so that there is no swap.
            memory_swap: Some(memory),
            pids_limit: Some(i64::from(relaxed.processes.unwrap_or(PROCESSES_DEFAULT))),
            cap_drop: Some(vec!["ALL".into()]),
            cap_add: (!relaxed.capabilities.is_empty()).then(|| relaxed.capabilities.clone()),
            security_opt: Some(vec!["no-new-privileges".into()]),
            readonly_rootfs: Some(!relaxed.writable_root),
            tmpfs: (!self.image.volumes.iter().any(|path| path.trim_end_matches('/') == TMP))
                .then(|| HashMap::from([(TMP.to_owned(), format!("rw,{exec},nosuid,nodev,size={tmp_mb}m"))])),
            shm_size: relaxed.shm_mb.map(|shm_mb| i64::from(shm_mb) * MIB),
            // A crash would run the host's core handler as root, and could fill its disk.
            ulimits: Some(vec![ResourcesUlimits { name: Some("core".into()), soft: Some(0), hard: Some(0) }]),
            network_mode: Some(match self.manifest.network {
                NetworkMode::None => "none".to_owned(),
                NetworkMode::Allow => self.network.to_owned(),
            }),
            mounts: Some(self.mounts(tmp_mb)),
            // Binary-safe and bounded.
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".into()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), format!("{log_mb}m")),
                    ("max-file".to_owned(), LOG_FILES.to_owned()),
                    ("compress".to_owned(), "false".to_owned()),
                ])),
            }),
            device_requests: (!self.gpus.is_empty()).then(|| {
                vec![DeviceRequest {
                    // A count alone would always select the first devices.
                    device_ids: Some(self.gpu_names()),
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
    use aegis_types::{
        execution::request::{ExecutionRequest, Submission},
        ids::{ExecutionId, GpuUuid},
    };

    fn body(gpus: &[GpuId], volumes: &[&str], has_workspace: bool) -> ContainerCreateBody {
        let request = ExecutionRequest {
            image: Some("busybox".into()),
            empty_workspace: has_workspace,
            ..Default::default()
        };
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
            image: ImageConfig {
                volumes: volumes.iter().map(|path| (*path).to_owned()).collect(),
                ..Default::default()
            },
            has_input: true,
        };
        spec.to_body(true)
    }

    fn host_config(gpus: &[GpuId]) -> HostConfig {
        body(gpus, &[], false).host_config.unwrap()
    }

    #[test]
    fn image_volumes_become_bounded_memory() {
        let given = body(&[], &["/data", "/tmp", "/workspace/"], true).host_config.unwrap();
        let mounts = given.mounts.unwrap();
        let kinds = mounts.iter().map(|mount| (mount.target.as_deref().unwrap(), mount.typ.unwrap()));
        assert_eq!(
            kinds.collect::<Vec<_>>(),
            [
                (WORKSPACE, MountType::VOLUME),
                (HOME, MountType::VOLUME),
                ("/data", MountType::TMPFS),
                ("/tmp", MountType::TMPFS)
            ]
        );
        let sizes = mounts.iter().filter_map(|mount| mount.tmpfs_options.as_ref()?.size_bytes);
        assert_eq!(sizes.collect::<Vec<_>>(), [i64::from(TMP_MB_DEFAULT) * MIB; 2]);
        assert_eq!(given.tmpfs, None, "/tmp is mounted once");
    }

    #[test]
    fn container_gets_no_core_check_or_gpu_of_the_image() {
        let body = body(&[], &[], false);
        assert_eq!(body.healthcheck.unwrap().test, Some(vec!["NONE".to_owned()]));
        assert_eq!(body.env.unwrap(), ["HOME=/tmp", "NVIDIA_VISIBLE_DEVICES=void"]);
        let ulimits = body.host_config.unwrap().ulimits.unwrap();
        assert_eq!(
            (ulimits[0].name.as_deref(), ulimits[0].soft, ulimits[0].hard),
            (Some("core"), Some(0), Some(0))
        );
        // The image's own `all` is overridden where a GPU is granted, too.
        let granted = super::tests::body(&[GpuId::Index(0), GpuId::Index(2)], &[], false).env.unwrap();
        assert_eq!(granted, ["HOME=/tmp", "NVIDIA_VISIBLE_DEVICES=0,2"]);
    }

    #[test]
    fn gpus_are_asked_for_by_name_and_never_unasked() {
        assert_eq!(host_config(&[]).device_requests, None);
        let uuid = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f";
        let gpus = [GpuId::Index(1), GpuId::Uuid(GpuUuid::parse(uuid).unwrap())];
        let requests = host_config(&gpus).device_requests.unwrap();
        let [request] = requests.as_slice() else { panic!("{requests:?}") };
        assert_eq!(request.device_ids, Some(vec!["1".to_owned(), uuid.to_owned()]));
        assert_eq!(request.count, None);
        assert_eq!(request.capabilities, Some(vec![vec!["gpu".to_owned()]]));
    }
}
