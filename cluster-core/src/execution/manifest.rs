//! What an execution runs: the caller's request, checked into a [`Manifest`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::peer::Amounts,
    error::{Error, Result},
    ids::{NodeId, Tag, shown},
};

/// One MiB: what fits comfortably into one gRPC message beside its envelope.
pub const INPUT_BYTES_MAX: usize = 1024 * 1024;
/// Linux refuses one argument or variable above 128 KiB (MAX_ARG_STRLEN).
pub const ARGUMENT_BYTES_MAX: usize = 128 * 1024 - 1;
/// All arguments and variables together; Linux allows about 2 MiB for both.
pub const ARGUMENTS_BYTES_MAX: usize = 1024 * 1024;
pub const TIMEOUT_SECONDS_DEFAULT: u64 = 300;
pub const TIMEOUT_SECONDS_MAX: u64 = 86_400;
pub const CPU_MAX: f64 = 1024.0;
pub const MEMORY_MB_MIN: u32 = 6;
pub const MEMORY_MB_MAX: u32 = 16 * 1024 * 1024;
pub const CPU_MILLICORES_DEFAULT: u32 = 500;
pub const MEMORY_MB_DEFAULT: u32 = 256;
pub const TARGET_TAGS_MAX: usize = 32;
const IMAGE_LENGTH_MAX: usize = 255;

/// What network the container sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// None at all, not even the node's own addresses.
    #[default]
    None,
    /// A network of the executions' own, with a way out.
    Allow,
}

/// As a caller states them; what is left out gets a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceRequest {
    /// CPU cores, fractions allowed: 0.05 to 1024 (default 0.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Memory in MiB, at least 6 (default 256).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Whole GPUs (default 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// GPU memory in GiB (default 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_gb: Option<u32>,
}

/// A submission as it comes from any surface, unchecked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionRequest {
    /// Container image, present on the node or to be pulled there.
    pub image: String,
    /// Replaces the image's entrypoint when given.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's default arguments when given.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Text for the container's stdin and `AEGIS_INPUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Tags that the node must all have.
    #[serde(default)]
    pub target_tags: Vec<Tag>,
    /// Pins the execution to one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    #[serde(default)]
    pub resources: ResourceRequest,
    #[serde(default)]
    pub network: NetworkMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Wait for a node with room (default), or fail at once.
    #[serde(default = "yes")]
    pub queue: bool,
    /// The same key with the same request gives the same execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

const fn yes() -> bool {
    true
}

/// What a worker is told to run. Checked: a worker does not check it again, but for its own policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub resources: Amounts,
    pub network: NetworkMode,
    pub timeout_seconds: u64,
}

/// Where an execution may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    pub tags: Vec<Tag>,
    pub node_id: Option<NodeId>,
    pub amounts: Amounts,
}

/// A checked submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    pub manifest: Manifest,
    pub demand: Demand,
    pub input: String,
    pub queue: bool,
    pub idempotency_key: Option<String>,
}

impl Submission {
    pub fn check(request: ExecutionRequest) -> Result<Self> {
        check_image(&request.image)?;
        check_words("command", &request.command)?;
        check_words("args", &request.args)?;
        if request.command.first().is_some_and(String::is_empty) {
            return Err(Error::invalid("command: the first word is empty").remedy("name a program"));
        }
        check_env(&request.env)?;
        let words = request.command.iter().chain(&request.args).map(String::len).sum::<usize>();
        let env = request.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if words + env > ARGUMENTS_BYTES_MAX {
            return Err(Error::invalid(format!(
                "command, args and env together have {} bytes; at most {ARGUMENTS_BYTES_MAX} fit",
                words + env
            ))
            .remedy("send large data as input"));
        }
        let input = request.input.unwrap_or_default();
        if input.len() > INPUT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "input has {} bytes; at most {INPUT_BYTES_MAX} are taken",
                input.len()
            )));
        }
        if request.target_tags.len() > TARGET_TAGS_MAX {
            return Err(Error::invalid(format!("target_tags: at most {TARGET_TAGS_MAX} are taken")));
        }
        let timeout_seconds = request.timeout_seconds.unwrap_or(TIMEOUT_SECONDS_DEFAULT);
        if !(1..=TIMEOUT_SECONDS_MAX).contains(&timeout_seconds) {
            return Err(Error::invalid(format!(
                "timeout_seconds {timeout_seconds} is out of range 1 to {TIMEOUT_SECONDS_MAX}"
            )));
        }
        let idempotency_key = request.idempotency_key;
        if let Some(key) = &idempotency_key {
            check_idempotency_key(key)?;
        }
        let resources = amounts(&request.resources)?;
        Ok(Self {
            demand: Demand { tags: request.target_tags, node_id: request.node_id, amounts: resources },
            manifest: Manifest {
                image: request.image,
                command: request.command,
                args: request.args,
                env: request.env,
                resources,
                network: request.network,
                timeout_seconds,
            },
            input,
            queue: request.queue,
            idempotency_key,
        })
    }
}

/// Keys are the caller's; they are compared bytewise and shown in errors.
pub fn check_idempotency_key(key: &str) -> Result<()> {
    const KEY_LENGTH_MAX: usize = 128;
    if key.is_empty() || key.len() > KEY_LENGTH_MAX || key.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "idempotency_key must have 1 to {KEY_LENGTH_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

fn amounts(request: &ResourceRequest) -> Result<Amounts> {
    let cpu_millicores = match request.cpu {
        None => CPU_MILLICORES_DEFAULT,
        // NaN is in no range.
        Some(cpu) if (0.05..=CPU_MAX).contains(&cpu) => (cpu * 1000.0).round() as u32,
        Some(cpu) => {
            return Err(Error::invalid(format!("resources.cpu {cpu} is out of range 0.05 to {CPU_MAX}")));
        }
    };
    let memory_mb = request.memory_mb.unwrap_or(MEMORY_MB_DEFAULT);
    if !(MEMORY_MB_MIN..=MEMORY_MB_MAX).contains(&memory_mb) {
        return Err(Error::invalid(format!(
            "resources.memory_mb {memory_mb} is out of range {MEMORY_MB_MIN} to {MEMORY_MB_MAX}"
        )));
    }
    let (gpus, vram_gb) = (request.gpus.unwrap_or(0), request.vram_gb.unwrap_or(0));
    if gpus > 64 || vram_gb > 65_536 {
        return Err(Error::invalid("resources: gpus is at most 64, vram_gb at most 65536"));
    }
    Ok(Amounts { cpu_millicores, memory_mb, gpus, vram_gb })
}

/// The grammar of image references (distribution/reference): `[domain/]path[:tag][@sha256:digest]`.
pub fn check_image(image: &str) -> Result<()> {
    let wrong = |why: &str| {
        Err(Error::invalid(format!("image \"{}\": {why}", shown(image)))
            .remedy("an image looks like busybox:1.36 or registry.example/team/agent@sha256:<64 hex digits>"))
    };
    if image.is_empty() {
        return wrong("it is empty");
    }
    if image.len() > IMAGE_LENGTH_MAX {
        return wrong("it is longer than 255 characters");
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or("");
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return wrong("its digest is not sha256: with 64 hex digits in lower case");
        }
    }
    let (path, tag) = match name.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    if let Some(tag) = tag {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(good) || tag.starts_with(['.', '-']) {
            return wrong("its tag is not valid");
        }
    }
    let mut parts = path.split('/').collect::<Vec<_>>();
    if parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost") {
        let (domain, port) = parts[0].split_once(':').unwrap_or((parts[0], "1"));
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
        if domain.is_empty() || !domain.bytes().all(good) || port.parse::<u16>().is_err() {
            return wrong("its registry is not valid");
        }
        parts.remove(0);
    }
    for part in parts {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        if bytes.is_empty()
            || !bytes.iter().copied().all(good)
            || !edge(bytes[0])
            || !edge(bytes[bytes.len() - 1])
        {
            return wrong("its name must be of a-z, 0-9, '.', '_' and '-' between slashes");
        }
    }
    Ok(())
}

fn check_words(what: &str, words: &[String]) -> Result<()> {
    for (index, word) in words.iter().enumerate() {
        if word.contains('\0') {
            return Err(Error::invalid(format!("{what}[{index}] holds a NUL character")));
        }
        if word.len() > ARGUMENT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{what}[{index}] has {} bytes; at most {ARGUMENT_BYTES_MAX} are possible",
                word.len()
            ))
            .remedy("send large data as input"));
        }
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in env {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Error::invalid(format!("env: \"{}\" is not a variable name", shown(name)))
                .remedy("use letters, digits and '_', not beginning with a digit"));
        }
        if name.starts_with("AEGIS_") {
            return Err(Error::invalid(format!("env: {name} is set by the node"))
                .remedy("names that begin with AEGIS_ are reserved"));
        }
        // The value may be a secret: it is named, never shown.
        if value.contains('\0') || name.len() + value.len() + 1 > ARGUMENT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "env: the value of {name} holds a NUL character or has more than {ARGUMENT_BYTES_MAX} bytes"
            )));
        }
        if value.starts_with("secret:") {
            return Err(Error::new(
                crate::ErrorCode::NotOffered,
                format!("env: {name} refers to a secret, and named secrets are not offered yet"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(image: &str) -> ExecutionRequest {
        ExecutionRequest { image: image.into(), queue: true, ..Default::default() }
    }

    #[test]
    fn images_are_checked_by_the_grammar_of_references() {
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        for good in
            ["busybox", "busybox:1.36", "localhost:5000/a/b:c", "ghcr.io/org/agent:latest", digest.as_str()]
        {
            check_image(good).unwrap();
        }
        for bad in [
            "",
            "Busybox",
            "busybox@sha256:short",
            &"a".repeat(300),
            "-x",
            "a b",
            "a//b",
            "a:",
            "x;rm",
            "a/../b",
        ] {
            assert!(check_image(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_refused_with_the_range() {
        for (change, text) in [
            (ResourceRequest { cpu: Some(f64::NAN), ..Default::default() }, "0.05 to 1024"),
            (ResourceRequest { cpu: Some(0.0), ..Default::default() }, "0.05 to 1024"),
            (ResourceRequest { memory_mb: Some(1), ..Default::default() }, "6 to"),
        ] {
            let error =
                Submission::check(ExecutionRequest { resources: change, ..request("busybox") }).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        for seconds in [0, 100 * 365 * 86_400] {
            let mut bad = request("busybox");
            bad.timeout_seconds = Some(seconds);
            assert!(Submission::check(bad).unwrap_err().to_string().contains("1 to 86400"));
        }
    }

    #[test]
    fn words_and_variables_are_bounded_and_reserved_names_refused() {
        let mut bad = request("busybox");
        bad.command = vec![String::new()];
        assert!(Submission::check(bad).is_err());
        let mut bad = request("busybox");
        bad.args = vec!["a\0b".into()];
        assert!(Submission::check(bad).is_err());
        let mut bad = request("busybox");
        bad.args = vec!["x".repeat(2 * 1024 * 1024)];
        assert!(Submission::check(bad).is_err());
        for name in ["", "1A", "A-B", "AEGIS_INPUT"] {
            let mut bad = request("busybox");
            bad.env.insert(name.into(), "v".into());
            assert!(Submission::check(bad).is_err(), "{name}");
        }
    }
}
