//! Renders `aegis-config.yaml` of a deployed node. The file holds no secret: the node makes its own key.

use std::time::Duration;

use aegis_types::{
    error::{Error, Result},
    gpu::{self, GpuDevice},
    link::NodeLink,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use crate::{
    model::{facts::HostFacts, spec::DeploymentSpec},
    settings::HEARTBEAT_INTERVAL_DEFAULT,
};

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
    resources: Resources<'a>,
}

#[derive(Serialize)]
struct Resources<'a> {
    cpu_cores: u32,
    memory_gb: u64,
    disk_gb: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vram_gb: Option<u32>,
    /// GPUs of the host, which the node cannot find from inside its container.
    #[serde(skip_serializing_if = "<[GpuDevice]>::is_empty")]
    gpu_devices: &'a [GpuDevice],
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
    advertise_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key_path: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prove_key: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_interval_secs: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    revoked_keys: &'a [String],
}

#[derive(Serialize)]
struct Controller {
    endpoint: String,
    public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_fingerprint: Option<String>,
}

/// Location of the link's sockets inside the node's container.
const CONTROLLER_ENDPOINT: &str = "unix:///run/aegis/controller.sock";
const NODE_ENDPOINT: &str = "unix:///run/aegis/node.sock";
/// Location of the node's public key, which the deployment reads. The node's socket is in the same directory.
const PUBLIC_KEY_PATH: &str = "/run/aegis/node.pub";
/// Free disk is rounded to steps, so that a redeployment without changes writes the same file.
const DISK_STEP_GB: u64 = 100;

/// Facts about the cluster that a node joins.
#[derive(Debug)]
pub struct Joining<'a> {
    pub controller_key: &'a [u8; 32],
    /// Thumbprints of the node's revoked keys.
    pub revoked_keys: &'a [String],
    pub link: &'a NodeLink,
    /// Interval at which the controller expects heartbeats of the node.
    pub heartbeat_interval: Duration,
}

pub fn render(spec: &DeploymentSpec, facts: &HostFacts, port: u16, joining: &Joining<'_>) -> Result<String> {
    let Joining { controller_key, revoked_keys, link, heartbeat_interval } = *joining;
    let (controller, own, public_key_path) = match link {
        NodeLink::Sockets => (CONTROLLER_ENDPOINT.to_owned(), NODE_ENDPOINT.to_owned(), None),
        NodeLink::Ports(ports) => (loopback(ports.controller), loopback(ports.node), Some(PUBLIC_KEY_PATH)),
        NodeLink::Direct { controller, node, .. } => {
            (controller.clone(), node.clone(), Some(PUBLIC_KEY_PATH))
        }
    };
    let ca_fingerprint = match link {
        NodeLink::Direct { ca, .. } => Some(ca.clone()),
        NodeLink::Sockets | NodeLink::Ports(_) => None,
    };
    // Executions get the GPUs stated here: GPUs that Docker cannot hand out do not count.
    let gpus = facts.usable_gpus();
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
                    vram_gb: has_gpu.then(|| gpu::memory_gb(gpus.iter())),
                    // Above the limit, only the number and the total memory of the GPUs are stated.
                    gpu_devices: if gpus.len() > gpu::DEVICES_MAX { &[] } else { gpus },
                },
            },
            network: Network { bind_address: "127.0.0.1", port },
            cluster: Cluster {
                enabled: true,
                role: "worker",
                controller: Controller {
                    endpoint: controller,
                    public_key: STANDARD.encode(controller_key),
                    ca_fingerprint,
                },
                advertise_address: own,
                public_key_path,
                prove_key: matches!(link, NodeLink::Ports(_)).then_some(true),
                // A node that beats less often than its controller expects would count as silent in between.
                heartbeat_interval_secs: (heartbeat_interval != HEARTBEAT_INTERVAL_DEFAULT)
                    .then_some(heartbeat_interval.as_secs()),
                revoked_keys,
            },
        },
    };
    serde_saphyr::to_string(&file)
        .map_err(|error| Error::internal("the node's configuration cannot be written").source(error))
}

fn loopback(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeploySettings, DeploymentRequest};
    use aegis_config::{self, Overrides, Settings, cluster_port::Listen, endpoint::Endpoint};
    use aegis_identity::NodeKey;
    use aegis_types::{ids::GpuUuid, link::LinkPorts, principal::Origin};

    fn started_with(link: &NodeLink) -> (String, Settings) {
        started_on(&HostFacts::default(), link)
    }

    fn started_on(facts: &HostFacts, link: &NodeLink) -> (String, Settings) {
        started_beating(facts, link, HEARTBEAT_INTERVAL_DEFAULT)
    }

    fn started_beating(facts: &HostFacts, link: &NodeLink, heartbeat: Duration) -> (String, Settings) {
        let request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        let spec = request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec;
        let key = NodeKey::generate().unwrap().public();
        let joining = Joining {
            controller_key: key.as_bytes(),
            revoked_keys: &[],
            link,
            heartbeat_interval: heartbeat,
        };
        let text = render(&spec, facts, 8090, &joining).unwrap();
        let overrides = Overrides { data_dir: Some("/data".into()), ..Default::default() };
        let settings = Settings::of(&aegis_config::parse(&text).unwrap(), &overrides);
        let settings = settings.unwrap_or_else(|error| panic!("{text}: {error}"));
        (text, settings)
    }

    fn listens(settings: &Settings) -> String {
        match &settings.cluster_port.listen {
            Listen::Unix(path) => path.display().to_string(),
            Listen::Tcp { address, .. } => address.to_string(),
        }
    }

    #[test]
    fn node_beats_as_its_controller_expects() {
        for (seconds, written) in [(30, false), (5, true), (300, true)] {
            let interval = Duration::from_secs(seconds);
            let (text, settings) = started_beating(&HostFacts::default(), &NodeLink::Sockets, interval);
            assert_eq!(settings.heartbeat_interval, interval);
            assert_eq!(text.contains("heartbeat"), written, "a usual configuration stays as it was: {text}");
        }
    }

    #[test]
    fn gpus_count_where_docker_can_hand_them_out() {
        let gpu = |uuid: &str| GpuDevice {
            uuid: GpuUuid::parse(uuid).unwrap(),
            name: "NVIDIA A10".into(),
            memory_mb: 23_028,
        };
        let gpus = vec![gpu("GPU-1"), gpu("GPU-2")];
        let mut facts = HostFacts { gpus: gpus.clone(), nvidia_runtime: true, ..Default::default() };
        let (_, settings) = started_on(&facts, &NodeLink::Sockets);
        assert_eq!((settings.resources.gpu_count, settings.resources.vram_gb), (Some(2), Some(44)));
        assert_eq!(settings.resources.gpu_devices, gpus);
        facts.nvidia_runtime = false;
        let (text, settings) = started_on(&facts, &NodeLink::Sockets);
        assert!(settings.resources.gpu_count.is_none() && !text.contains("gpu"), "{text}");
    }

    #[test]
    fn a_node_starts_with_each_link() {
        let (text, settings) = started_with(&NodeLink::Sockets);
        assert_eq!(listens(&settings), "/run/aegis/node.sock");
        assert!(!text.contains("prove_key") && !text.contains("public_key_path"), "as it always was: {text}");

        let ports = NodeLink::Ports(LinkPorts { controller: 29_050, node: 29_051 });
        let (_, settings) = started_with(&ports);
        assert_eq!(listens(&settings), "127.0.0.1:29051");
        assert!(settings.prove_key && settings.public_key_path.is_some());

        let ca = "ab".repeat(32);
        let direct = NodeLink::Direct {
            controller: "https://10.0.0.1:50056".into(),
            ca: ca.clone(),
            node: "https://10.0.0.2:50056".into(),
        };
        let (text, settings) = started_with(&direct);
        assert_eq!(listens(&settings), "0.0.0.0:50056");
        assert!(settings.bind_address.is_loopback(), "HTTP stays at home");
        let controller = settings.controller.unwrap();
        assert!(matches!(controller.endpoint, Endpoint::Https(_)));
        assert_eq!(controller.ca.map(|ca| ca.to_string()), Some(ca));
        assert!(controller.token.is_none() && !text.contains("token"));
    }
}
