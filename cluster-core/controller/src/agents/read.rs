//! From text to a checked [`Manifest`]: everything that is wrong is said with its path, and what is not used
//! is named.

use std::collections::BTreeMap;

use aegis_config::document::{depth, drop_nulls, from_yaml, marked_keys, unknown_keys};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        manifest::NetworkMode,
        request::{ExecutionRequest, ResourceRequest, Submission},
    },
    ids::AgentName,
    runtimes,
    text::shown,
};
use serde_json::Value;

use super::{
    format::{API_VERSION, Document, KIND, Mode, NOT_USED, Network, Runtime, Volume},
    quantity::{cores, memory_mb, seconds},
};

/// An agent has a few kilobytes, most of them prompts.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
const DEPTH_MAX: usize = 32;
/// Iterations of an iterative agent without a number.
const ITERATIONS_DEFAULT: u32 = 10;
const WORKSPACE: &str = "/workspace";

/// A checked agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub name: AgentName,
    /// Author's name for this version.
    pub author_version: Option<String>,
    pub description: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Paths of fields that change nothing here.
    pub not_used: Vec<String>,
    /// The document as written, without empty keys.
    pub document: Value,
    image: Image,
    /// Request that the agent amounts to, without an image.
    defaults: ExecutionRequest,
}

#[derive(Debug, Clone, PartialEq)]
enum Image {
    Named(String),
    Of { language: String, version: String },
}

impl Manifest {
    /// YAML or JSON. `images` takes the place of the usual ones, as the node's configuration has it.
    pub fn parse(text: &str, images: &BTreeMap<String, String>) -> Result<Self> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the manifest has {} bytes; at most {MANIFEST_BYTES_MAX} are taken",
                text.len()
            )));
        }
        let document = from_yaml(text)
            .map_err(|e| Error::invalid(format!("the manifest is not sound YAML: {}", shown(&e))))?;
        let manifest = Self::of(document)?;
        // Whole: what could never run is not registered.
        Submission::check(manifest.request(images)?)?;
        Ok(manifest)
    }

    /// From its document.
    pub fn of(mut document: Value) -> Result<Self> {
        if !document.is_object() {
            return Err(Error::invalid("the manifest is not a mapping")
                .remedy(format!("begin with apiVersion: {API_VERSION} and kind: {KIND}")));
        }
        if depth(&document) > DEPTH_MAX {
            return Err(Error::invalid(format!("the manifest is nested more than {DEPTH_MAX} deep")));
        }
        drop_nulls(&mut document);
        for (key, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            if document[key] != expected {
                return Err(Error::invalid(format!("{key} is not {expected}"))
                    .remedy(format!("write {key}: {expected}")));
            }
        }
        let unknown = unknown_keys::<Document>(&document);
        if !unknown.is_empty() {
            return Err(Error::invalid(unknown.join("; ")).remedy("correct or remove what is unknown"));
        }
        let typed: Document = serde_path_to_error::deserialize(document.clone())
            .map_err(|e| Error::invalid(format!("{}: {}", e.path(), shown(&e.inner().to_string()))))?;
        let mut not_used = marked_keys::<Document>(&document, NOT_USED);
        let image = image(&typed.spec.runtime)?;
        if let Image::Of { language, .. } = &image
            && language == runtimes::TYPESCRIPT
        {
            not_used.push("spec.runtime.version".to_owned());
        }
        not_used.sort_unstable();
        let metadata = &typed.metadata;
        Ok(Self {
            name: metadata.name.clone(),
            author_version: metadata.version.as_ref().map(text_of),
            description: metadata.description.clone(),
            labels: metadata.labels.iter().map(|(key, value)| (key.clone(), text_of(value))).collect(),
            not_used,
            image,
            defaults: defaults(typed)?,
            document,
        })
    }

    /// Returns the agent as a request, with its image.
    pub fn request(&self, images: &BTreeMap<String, String>) -> Result<ExecutionRequest> {
        Ok(ExecutionRequest { image: Some(self.image(images)?), ..self.defaults.clone() })
    }

    /// A language's image is looked up each time: the operator may name another.
    pub fn image(&self, images: &BTreeMap<String, String>) -> Result<String> {
        match &self.image {
            Image::Named(image) => Ok(image.clone()),
            Image::Of { language, version } => {
                runtimes::image(language, version, images).map_err(|e| at("spec.runtime", e))
            }
        }
    }
}

/// The same error with the path before it.
fn at(path: &str, error: Error) -> Error {
    let located = Error::new(error.code(), format!("{path}: {}", error.message()));
    match error.remedy_text() {
        Some(remedy) => located.remedy(remedy),
        None => located,
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn image(runtime: &Runtime) -> Result<Image> {
    match (&runtime.image, &runtime.language, &runtime.version) {
        (Some(image), None, None) => Ok(Image::Named(image.clone())),
        (None, Some(language), Some(version)) => {
            let version = match version {
                Value::String(version) => version.clone(),
                Value::Number(number) if number.is_u64() => number.to_string(),
                _ => {
                    return Err(Error::invalid("spec.runtime.version: it is not text")
                        .remedy("put it in quotes: without them 3.10 is the number 3.1"));
                }
            };
            Ok(Image::Of { language: language.to_ascii_lowercase(), version })
        }
        (Some(_), _, _) => Err(Error::invalid("spec.runtime: image and language are both given")
            .remedy("keep image, or language with version")),
        (None, Some(_), None) => Err(Error::invalid("spec.runtime.version: it is missing")
            .remedy("write the language's version, like \"3.12\"")),
        (None, None, _) => Err(Error::invalid("spec.runtime: neither image nor language is given")
            .remedy("write image: busybox:1.36, or language: python with version: \"3.12\"")),
    }
}

fn defaults(document: Document) -> Result<ExecutionRequest> {
    let Document { spec, .. } = document;
    check_isolation(spec.runtime.isolation.as_deref())?;
    let execution = spec.execution;
    let max_iterations = execution.max_iterations.or(execution.max_retries);
    let max_iterations = match execution.mode {
        // Their limit is one of iterations, and one-shot has one.
        Mode::OneShot => None,
        Mode::Iterative => Some(max_iterations.unwrap_or(ITERATIONS_DEFAULT)),
    };
    let resources = &spec.security.resources;
    let path = |key: &str| format!("spec.security.resources.{key}");
    let cpu = resources.cpu.as_ref().map(|value| cores(&path("cpu"), value)).transpose()?;
    let memory = resources.memory.as_ref().map(|value| memory_mb(&path("memory"), value)).transpose()?;
    let timeout = resources.timeout.as_ref().map(|value| seconds(&path("timeout"), value)).transpose()?;
    let iteration_timeout = execution.iteration_timeout.as_ref();
    let iteration_timeout =
        iteration_timeout.map(|value| seconds("spec.execution.iteration_timeout", value)).transpose()?;
    let empty_workspace = volumes(&spec.volumes)?;
    Ok(ExecutionRequest {
        command: one_of("command", spec.command, spec.runtime.command)?,
        args: one_of("args", spec.args, spec.runtime.args)?,
        env: env(spec.runtime.env, spec.env)?,
        target_tags: execution.target_tags,
        preferred_tags: execution.preferred_tags,
        resources: ResourceRequest {
            cpu,
            memory_mb: memory,
            gpus: resources.gpus,
            vram_gb: resources.vram_gb,
        },
        network: network(&spec.security.network)?,
        timeout_seconds: timeout,
        max_iterations,
        iteration_timeout_seconds: iteration_timeout,
        max_attempts: execution.max_attempts,
        retry: execution.retry,
        artifacts: execution.artifacts,
        result_file: execution.result_file,
        empty_workspace,
        security: spec.security.relax,
        queue: true,
        ..ExecutionRequest::default()
    })
}

/// Some write it below `spec`, some below `spec.runtime`.
fn one_of(key: &str, spec: Option<Vec<String>>, runtime: Option<Vec<String>>) -> Result<Vec<String>> {
    match (spec, runtime) {
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("spec.{key} and spec.runtime.{key} are both given"))
                .remedy("keep one of them"))
        }
        (spec, runtime) => Ok(spec.or(runtime).unwrap_or_default()),
    }
}

fn env(mut all: BTreeMap<String, Value>, more: BTreeMap<String, Value>) -> Result<BTreeMap<String, String>> {
    all.extend(more);
    let text = |(name, value): (String, Value)| match value {
        Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok((name, text_of(&value))),
        // It may be a secret: the name says enough.
        _ => Err(Error::invalid(format!("spec.env.{}: it is not text", shown(&name)))),
    };
    all.into_iter().map(text).collect()
}

fn check_isolation(isolation: Option<&str>) -> Result<()> {
    match isolation {
        None | Some("inherit" | "docker") => Ok(()),
        Some(other) => Err(Error::new(
            ErrorCode::NotOffered,
            format!("spec.runtime.isolation: \"{}\" is not offered", shown(other)),
        )
        .remedy("write docker, or leave it out")),
    }
}

/// Reads the network mode. Returns `None` if the agent does not state one.
fn network(network: &Network) -> Result<Option<NetworkMode>> {
    let not_offered = || {
        Error::new(
            ErrorCode::NotOffered,
            "spec.security.network: a list of allowed domains cannot be held here, since what is allowed is a \
             whole network",
        )
        .remedy("write mode: none, or mode: allow without an allowlist")
    };
    match network.mode.as_deref() {
        Some("allowlist") => Err(not_offered()),
        // What may reach nothing needs no list.
        Some("none" | "deny") => Ok(Some(NetworkMode::None)),
        _ if !network.allowlist.is_empty() => Err(not_offered()),
        Some("allow") => Ok(Some(NetworkMode::Allow)),
        None | Some("") => Ok(None),
        Some(other) => {
            Err(Error::invalid(format!("spec.security.network.mode: \"{}\" is none", shown(other)))
                .remedy("write none or allow"))
        }
    }
}

/// Whether it has an empty volume at `/workspace`, the only one there is.
fn volumes(volumes: &[Volume]) -> Result<bool> {
    for (index, volume) in volumes.iter().enumerate() {
        let refused = |key: &str, why: String| {
            Error::new(ErrorCode::NotOffered, format!("spec.volumes[{index}].{key}: {why}")).remedy(
                "an execution has one volume, at /workspace, which goes with it: write mount_path: /workspace \
                 and storage_class: ephemeral, and keep files of it with spec.execution.artifacts",
            )
        };
        if volume.mount_path.trim_end_matches('/') != WORKSPACE {
            return Err(refused(
                "mount_path",
                format!("\"{}\" is not {WORKSPACE}", shown(&volume.mount_path)),
            ));
        }
        if let Some(class) = volume.storage_class.as_deref().filter(|class| *class != "ephemeral") {
            return Err(refused("storage_class", format!("\"{}\" is not offered", shown(class))));
        }
        if index > 0 {
            return Err(refused("mount_path", format!("{WORKSPACE} is there already")));
        }
    }
    Ok(!volumes.is_empty())
}

#[cfg(test)]
mod tests;
