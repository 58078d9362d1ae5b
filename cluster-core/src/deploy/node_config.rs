//! `aegis-config.yaml` of a deployed node. It holds no secret: the node makes its own key.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{checks::HostFacts, spec::DeploymentSpec};
use crate::error::{Error, Result};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Metadata<'a>,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Spec<'a> {
    node: Node<'a>,
    network: Network,
    cluster: Cluster<'a>,
}

#[derive(Serialize)]
struct Node<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    tags: Vec<&'a str>,
    resources: Resources,
}

#[derive(Serialize)]
struct Resources {
    cpu_cores: u32,
    memory_gb: u64,
    disk_gb: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vram_gb: Option<u64>,
}

#[derive(Serialize)]
struct Network {
    bind_address: &'static str,
    port: u16,
}

#[derive(Serialize)]
struct Cluster<'a> {
    enabled: bool,
    role: &'a str,
    controller: Controller,
    advertise_address: &'a str,
}

#[derive(Serialize)]
struct Controller {
    endpoint: &'static str,
    public_key: String,
}

/// Inside the node's container the link's sockets lie here.
const CONTROLLER_ENDPOINT: &str = "unix:///run/aegis/controller.sock";
const NODE_ENDPOINT: &str = "unix:///run/aegis/node.sock";
/// Free disk is reported in steps, so that a redeploy that changes nothing writes the same file.
const DISK_STEP_GB: u64 = 100;

pub fn render(
    spec: &DeploymentSpec,
    facts: &HostFacts,
    port: u16,
    controller_key: &[u8; 32],
) -> Result<String> {
    let gpus = &facts.gpus;
    let has_gpu = !gpus.is_empty();
    let file = File {
        api_version: "100monkeys.ai/v1",
        kind: "NodeConfig",
        metadata: Metadata { name: spec.node.as_str() },
        spec: Spec {
            node: Node {
                id: spec.node.as_str(),
                kind: "edge",
                tags: spec.tags.iter().map(|tag| tag.as_str()).collect(),
                resources: Resources {
                    cpu_cores: facts.cpus,
                    memory_gb: (facts.memory_total_mb / 1024).max(1),
                    disk_gb: facts.disk_total_mb.div_ceil(1024).next_multiple_of(DISK_STEP_GB),
                    gpu: has_gpu.then_some(true),
                    gpu_count: has_gpu.then(|| u32::try_from(gpus.len()).unwrap_or(u32::MAX)),
                    vram_gb: has_gpu.then(|| gpus.iter().map(|gpu| gpu.memory_mb).sum::<u64>() / 1024),
                },
            },
            network: Network { bind_address: "127.0.0.1", port },
            cluster: Cluster {
                enabled: true,
                role: "worker",
                controller: Controller {
                    endpoint: CONTROLLER_ENDPOINT,
                    public_key: STANDARD.encode(controller_key),
                },
                advertise_address: NODE_ENDPOINT,
            },
        },
    };
    serde_saphyr::to_string(&file)
        .map_err(|error| Error::internal("the node's configuration cannot be written").source(error))
}
