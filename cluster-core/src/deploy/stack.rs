//! The compose files of a deployment: the embedded stack from fragments in the binary, or the
//! operator's own with our node added by an override.

use std::{fmt::Write as _, path::Path};

use serde_json::Value;

use super::spec::{DeploymentSpec, Service};
use crate::error::{Error, ErrorCode, Result};

pub const PROJECT: &str = "aitheros-edge";
pub const NODE_PORT_DEFAULT: u16 = 8090;
/// Where a foreign stack has the usual port for itself.
const NODE_PORT_BESIDE: u16 = 8091;
pub const OLLAMA_PORT: u16 = 11434;
const FOREIGN_BYTES_MAX: u64 = 1024 * 1024;

const HEAD: &str = include_str!("stack/head.yml");
const NODE: &str = include_str!("stack/node.yml");
const OLLAMA: &str = include_str!("stack/ollama.yml");
const GPU: &str = include_str!("stack/gpu.yml");
const CLOUDFLARED: &str = include_str!("stack/cloudflared.yml");
const AITHERNODE: &str = include_str!("stack/aithernode.yml");

/// What is written to the host, and what must be there to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    pub compose: String,
    pub override_file: Option<String>,
    /// Images other than the node's own.
    pub images: Vec<String>,
    /// The service that is our node.
    pub node_service: String,
    pub node_port: u16,
    pub services: Vec<String>,
}

/// The operator's stack as it lies on this machine; `None` for the embedded one.
pub fn read_foreign(path: Option<&Path>) -> Result<Option<String>> {
    let Some(path) = path else { return Ok(None) };
    let refuse =
        |why: &str| Error::new(ErrorCode::ConfigInvalid, format!("compose file {}: {why}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| refuse("it cannot be read").source(error))?;
    if !metadata.is_file() || metadata.len() > FOREIGN_BYTES_MAX {
        return Err(refuse("it is not a file of sensible size"));
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| refuse("it cannot be read").source(error))
}

pub fn build(spec: &DeploymentSpec, foreign: Option<&str>, gpu: bool) -> Result<Stack> {
    match foreign {
        Some(text) => beside_foreign(spec, text),
        None => Ok(embedded(spec, gpu)),
    }
}

fn embedded(spec: &DeploymentSpec, gpu: bool) -> Stack {
    let mut compose = HEAD.to_owned();
    let mut images = Vec::new();
    let mut services = vec!["node".to_owned()];
    compose.push_str(&node_fragment("node", NODE_PORT_DEFAULT));
    if spec.services.contains(&Service::Ollama) {
        compose.push_str(OLLAMA);
        if gpu {
            compose.push_str(GPU);
        }
        images.push("ollama/ollama:latest".to_owned());
        services.push("ollama".to_owned());
    }
    if spec.services.contains(&Service::Cloudflared) {
        compose.push_str(CLOUDFLARED);
        images.push("cloudflare/cloudflared:latest".to_owned());
        services.push("cloudflared".to_owned());
    }
    if let Some(image) = &spec.image {
        compose.push_str(AITHERNODE);
        images.push(image.clone());
        services.push("aithernode".to_owned());
    }
    compose.push_str("\nvolumes:\n  node_data: {}\n");
    if spec.services.contains(&Service::Ollama) {
        compose.push_str("  ollama_data: {}\n");
    }
    Stack {
        compose,
        override_file: None,
        images,
        node_service: "node".to_owned(),
        node_port: NODE_PORT_DEFAULT,
        services,
    }
}

fn node_fragment(service: &str, port: u16) -> String {
    NODE.replace("__NODE__", service).replace("__PORT__", &port.to_string())
}

fn beside_foreign(spec: &DeploymentSpec, text: &str) -> Result<Stack> {
    let refuse =
        |why: String| Error::new(ErrorCode::ConfigInvalid, format!("the compose file cannot be used: {why}"));
    let document: Value =
        serde_saphyr::from_str(text).map_err(|error| refuse("it is not YAML".into()).source(error))?;
    if document.get("include").is_some() {
        return Err(refuse("`include` names files that are not sent along".into()));
    }
    let Some(foreign) = document.get("services").and_then(Value::as_object) else {
        return Err(refuse("it has no services".into()));
    };
    let node_service = if foreign.contains_key("node") { "aegis-node" } else { "node" };
    let node_port =
        if text.contains(&NODE_PORT_DEFAULT.to_string()) { NODE_PORT_BESIDE } else { NODE_PORT_DEFAULT };
    let mut override_file = String::from("# Added by aegis to the operator's stack.\nservices:\n");
    override_file.push_str(&node_fragment(node_service, node_port));
    let mut images = Vec::new();
    for (name, service) in foreign {
        if service.pointer("/extends/file").is_some() || service.get("env_file").is_some() {
            return Err(refuse(format!(
                "service {name}: `extends` and `env_file` name files that are not sent along"
            )));
        }
        match (service.get("build"), &spec.image) {
            (Some(_), Some(image)) => {
                let _ = write!(
                    override_file,
                    "  {name}:\n    image: ${{AITHER_EDGE_IMAGE}}\n    build: !reset null\n"
                );
                images.push(image.clone());
            }
            (Some(_), None) => {
                return Err(refuse(format!(
                    "service {name} is built from sources that the host does not have"
                ))
                .remedy("name a built image: `image`, or AITHER_EDGE_IMAGE for the controller"));
            }
            (None, _) => images.extend(
                service.get("image").and_then(Value::as_str).filter(|i| !i.contains('$')).map(str::to_owned),
            ),
        }
    }
    override_file.push_str("\nvolumes:\n  node_data: {}\n");
    // A service with profiles is not started unasked.
    let started = foreign.iter().filter(|(_, service)| service.get("profiles").is_none());
    let mut services: Vec<String> = started.map(|(name, _)| name.clone()).collect();
    services.push(node_service.to_owned());
    images.sort();
    images.dedup();
    Ok(Stack {
        compose: text.to_owned(),
        override_file: Some(override_file),
        images,
        node_service: node_service.to_owned(),
        node_port,
        services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::{DeploySettings, DeploymentRequest, Origin, Secret};

    fn spec(change: impl FnOnce(&mut DeploymentRequest)) -> DeploymentSpec {
        let mut request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        change(&mut request);
        request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec
    }

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
        assert!(!all.compose.contains("hunter2"));
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

    #[test]
    fn a_foreign_stack_gets_our_node_and_no_build() {
        let foreign = "services:\n  aithernode:\n    build: ../..\n    ports: ['8090:8090']\n  ollama:\n    image: ollama/ollama\n";
        let error = build(&spec(|_| {}), Some(foreign), false).unwrap_err();
        assert!(error.to_string().contains("AITHER_EDGE_IMAGE"), "{error}");
        let with_image = spec(|request| request.image = Some("ghcr.io/x/y:1".into()));
        let stack = build(&with_image, Some(foreign), false).unwrap();
        assert_eq!(stack.compose, foreign);
        let added = stack.override_file.unwrap();
        assert!(added.contains("build: !reset null") && added.contains("127.0.0.1:8091/health"), "{added}");
        assert_eq!(stack.node_port, 8091);
        assert_eq!(stack.images, ["ghcr.io/x/y:1", "ollama/ollama"]);
        for bad in [
            "include: [x.yml]\nservices: {a: {image: b}}",
            "services: {a: {image: b, env_file: ../x}}",
            "x",
            "a: [",
            "services: {a: {extends: {file: ../x.yml, service: y}}}",
        ] {
            assert!(build(&spec(|_| {}), Some(bad), false).is_err(), "{bad}");
        }
    }
}
