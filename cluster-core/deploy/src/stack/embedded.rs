//! The stack in the binary: its parts as they were asked for.

use super::{NodeService, OllamaService, Published, Stack, node_fragment};
use crate::model::{
    ports::HostPorts,
    project::{CLOUDFLARED_METRICS_PORT, NODE_PORT_DEFAULT, OLLAMA_PORT},
    spec::{DeploymentSpec, Service},
};

const HEAD: &str = include_str!("head.yml");
const OLLAMA: &str = include_str!("ollama.yml");
const GPU: &str = include_str!("gpu.yml");
const CLOUDFLARED: &str = include_str!("cloudflared.yml");
const AITHERNODE: &str = include_str!("aithernode.yml");

pub(super) fn build(spec: &DeploymentSpec, gpu: bool) -> Stack {
    let mut stack = Stack { compose: HEAD.to_owned(), ..Stack::default() };
    let mut volumes = Vec::new();
    if spec.join {
        let node = NodeService { service: Service::Node.name().to_owned(), port: NODE_PORT_DEFAULT };
        stack.compose.push_str(&node_fragment(&node.service, node.port));
        stack.add(&node.service, None, Some(node.port));
        stack.node = Some(node);
        volumes.push("node_data");
    }
    if spec.runs(Service::Ollama) {
        let service = Service::Ollama.name().to_owned();
        stack.compose.push_str(OLLAMA);
        if gpu {
            stack.compose.push_str(GPU);
        }
        stack.add(&service, Some("ollama/ollama:latest"), Some(OLLAMA_PORT));
        stack.ollama = Some(OllamaService { service, port: Some(OLLAMA_PORT) });
        volumes.push("ollama_data");
    }
    if spec.runs(Service::Cloudflared) {
        let port = CLOUDFLARED_METRICS_PORT;
        stack.compose.push_str(&CLOUDFLARED.replace("__METRICS_PORT__", &port.to_string()));
        stack.add(Service::Cloudflared.name(), Some("cloudflare/cloudflared:latest"), Some(port));
        stack.cloudflared = true;
    }
    if let Some(image) = &spec.image {
        stack.compose.push_str(AITHERNODE);
        stack.add("aithernode", Some(image), None);
    }
    if !volumes.is_empty() {
        stack.compose.push_str("\nvolumes:\n");
    }
    for volume in volumes {
        stack.compose.push_str(&format!("  {volume}: {{}}\n"));
    }
    stack
}

impl Stack {
    fn add(&mut self, service: &str, image: Option<&str>, port: Option<u16>) {
        self.services.push(service.to_owned());
        self.images.extend(image.map(str::to_owned));
        self.ports
            .extend(port.map(|port| Published { service: service.to_owned(), ports: HostPorts::tcp(port) }));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::stack::{build, testing::spec};
    use aegis_types::secret::Secret;

    fn services(text: &str) -> Vec<String> {
        let document: Value = serde_saphyr::from_str(text).unwrap();
        document["services"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_embedded_stack_has_what_was_asked_for() {
        let stack = build(&spec(|_| {}), None, false).unwrap();
        assert_eq!(services(&stack.compose), ["node", "ollama"]);
        assert!(!stack.compose.contains("nvidia"));
        let gpu = build(&spec(|_| {}), None, true).unwrap();
        assert!(gpu.compose.contains("driver: nvidia"));
        let all = build(
            &spec(|request| {
                request.services = Some("node".into());
                request.tunnel_token = Some(Secret::new("hunter2"));
                request.image = Some("ghcr.io/x/y:1".into());
            }),
            None,
            false,
        )
        .unwrap();
        assert_eq!(services(&all.compose), ["aithernode", "cloudflared", "node"]);
        assert!(!all.compose.contains("hunter2") && all.compose.contains("TUNNEL_METRICS: 127.0.0.1:20241"));
    }

    #[test]
    fn without_joining_there_is_no_node() {
        let stack = build(&spec(|request| request.join = Some(false)), None, false).unwrap();
        assert_eq!(services(&stack.compose), ["ollama"]);
        assert_eq!((stack.node, stack.services.as_slice()), (None, ["ollama".to_owned()].as_slice()));
        assert!(!stack.compose.contains("node_data"));
    }

    #[test]
    fn the_node_is_hardened() {
        let stack = build(&spec(|_| {}), None, false).unwrap();
        let document: Value = serde_saphyr::from_str(&stack.compose).unwrap();
        let node = &document["services"]["node"];
        assert_eq!(node["read_only"], true);
        assert_eq!(node["cap_drop"][0], "ALL");
        assert_eq!(node["network_mode"], "host");
        assert_eq!(node["environment"]["AEGIS_REMOTE_LLM_URL"], "${AEGIS_REMOTE_LLM_URL}");
    }
}
