//! The grammar of each argument of a deployment.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use aegis_ssh::{
    HostAddress,
    target::{AddressKind, address_kind},
};
use aegis_types::{
    error::{Error, Result},
    ids::Tag,
    text::shown,
};

use crate::{
    model::{
        names::{ModelName, ProfileName, ServiceName},
        spec::Service,
    },
    settings::DeploySettings,
};

const TAGS_MAX: usize = 32;
const SERVICES_MAX: usize = 64;
const PROFILES_MAX: usize = 16;
const MODELS_MAX: usize = 16;
const HEALTH_TIMEOUT_SECONDS: std::ops::RangeInclusive<u32> = 10..=3600;
const PATH_LENGTH_MAX: usize = 4096;
const IMAGE_LENGTH_MAX: usize = 255;
const URL_LENGTH_MAX: usize = 2048;

pub fn port(port: Option<u32>) -> Result<Option<u16>> {
    match port {
        None => Ok(None),
        Some(port) => {
            u16::try_from(port).ok().filter(|port| *port > 0).map(Some).ok_or_else(|| {
                Error::invalid(format!("ssh_port {port} is not valid")).remedy("use 1 to 65535")
            })
        }
    }
}

const PLAN_DIGEST_LENGTHS: std::ops::RangeInclusive<usize> = 12..=64;
const IDEMPOTENCY_KEY_LENGTH_MAX: usize = 128;
const LOCK_WAIT_SECONDS_MAX: u64 = 600;

pub fn plan_digest(text: &str) -> Result<String> {
    let sound = PLAN_DIGEST_LENGTHS.contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit());
    match sound {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(Error::invalid(format!("plan_digest \"{}\" is not one", shown(text)))
            .remedy("give the digest that a dry run showed: 12 to 64 hexadecimal digits")),
    }
}

pub fn idempotency_key(key: &str) -> Result<()> {
    match key.len() <= IDEMPOTENCY_KEY_LENGTH_MAX {
        true => Ok(()),
        false => Err(Error::invalid(format!("idempotency_key \"{}\" is too long", shown(key)))
            .remedy("use at most 128 bytes")),
    }
}

/// Seconds.
pub fn lock_wait(given: Option<u64>) -> Result<u64> {
    match given.unwrap_or(0) {
        seconds if seconds <= LOCK_WAIT_SECONDS_MAX => Ok(seconds),
        seconds => {
            Err(Error::invalid(format!("lock_wait_seconds {seconds} is out of range")).remedy("use 0 to 600"))
        }
    }
}

/// Its place is checked when it is read, after links are followed.
pub fn key_path(path: &str, settings: &DeploySettings) -> Result<PathBuf> {
    if path.contains('\0') || path.len() > PATH_LENGTH_MAX {
        return Err(Error::invalid("ssh_key_path is not a path"));
    }
    match (path.strip_prefix("~/"), &settings.home) {
        (Some(rest), Some(home)) => Ok(home.join(rest)),
        _ if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(Error::invalid(format!("ssh_key_path \"{}\" is not absolute", shown(path)))
            .remedy("give an absolute path, or one that begins with ~/")),
    }
}

/// Names of services; whether the operator's stack has them is seen when it is read.
pub fn services(list: &str) -> Result<BTreeSet<ServiceName>> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let services = names.map(ServiceName::parse).collect::<Result<BTreeSet<_>>>()?;
    if services.len() > SERVICES_MAX {
        return Err(Error::invalid(format!("services: {} are too many", services.len()))
            .remedy(format!("name at most {SERVICES_MAX}")));
    }
    Ok(services)
}

/// A deployment that joins ends with a node in the cluster: then it is always part of the stack.
pub fn embedded_services(list: Option<&str>, join: bool) -> Result<BTreeSet<ServiceName>> {
    let mut services = services(list.unwrap_or(if join { "node,ollama" } else { "ollama" }))?;
    if let Some(other) = services.iter().find(|name| !Service::is_embedded(name)) {
        return Err(Error::invalid(format!("there is no service \"{other}\""))
            .remedy("services is a comma-separated list of node, ollama and cloudflared"));
    }
    let node = Service::Node.service_name();
    match join {
        true => {
            services.insert(node);
        }
        false if services.contains(&node) => {
            return Err(Error::invalid("services names node, and join is false: the node is what joins")
                .remedy("leave node out of services, or join out of the request"));
        }
        false if services.is_empty() => {
            return Err(Error::invalid("services is empty, and join is false: nothing would run"));
        }
        false => {}
    }
    Ok(services)
}

pub fn profiles(profiles: &[String]) -> Result<BTreeSet<ProfileName>> {
    if profiles.len() > PROFILES_MAX {
        return Err(Error::invalid(format!("profiles: {} are too many", profiles.len()))
            .remedy(format!("name at most {PROFILES_MAX}")));
    }
    profiles.iter().map(|name| ProfileName::parse(name)).collect()
}

/// In the order they were asked for, each once.
pub fn models(models: &[String]) -> Result<Vec<ModelName>> {
    if models.len() > MODELS_MAX {
        return Err(Error::invalid(format!("models: {} are too many", models.len()))
            .remedy(format!("name at most {MODELS_MAX}")));
    }
    let mut parsed = Vec::with_capacity(models.len());
    for model in models {
        let model = ModelName::parse(model)?;
        if !parsed.contains(&model) {
            parsed.push(model);
        }
    }
    Ok(parsed)
}

pub fn health_timeout(seconds: u32) -> Result<u32> {
    match HEALTH_TIMEOUT_SECONDS.contains(&seconds) {
        true => Ok(seconds),
        false => {
            Err(Error::invalid(format!("health_timeout_seconds {seconds} is not valid"))
                .remedy("use 10 to 3600"))
        }
    }
}

pub fn tags(tags: &[String]) -> Result<Vec<Tag>> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid(format!("{} tags are too many", tags.len())).remedy("use at most 32"));
    }
    let tags = tags.iter().map(|tag| Tag::parse(tag.as_str())).collect::<Result<BTreeSet<_>>>()?;
    Ok(tags.into_iter().collect())
}

pub fn llm_url(text: &str) -> Result<String> {
    let refuse = |why: &str| {
        Error::invalid(format!("remote_llm_url \"{}\" {why}", shown(text)))
            .remedy("give an http or https address such as http://primary-host:8150")
    };
    if text.len() > URL_LENGTH_MAX {
        return Err(refuse("is too long"));
    }
    let url = url::Url::parse(text).map_err(|_| refuse("is not an address"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("is neither http nor https"));
    }
    // The text itself may hold a password here, so it is not shown.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            Error::invalid("remote_llm_url holds a user or password").remedy("leave them out of the address")
        );
    }
    let address = match url.host() {
        None => return Err(refuse("names no host")),
        Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(url::Host::Domain(name)) => {
            HostAddress::parse(name, true)
                .map_err(|error| refuse(&format!("names no usable host: {}", error.message())))?;
            None
        }
    };
    match address.map(address_kind) {
        Some(AddressKind::Forbidden(why)) => Err(refuse(&format!("is {why}"))),
        _ => Ok(url.to_string().trim_end_matches('/').to_owned()),
    }
}

/// `[registry[:port]/]path[:tag][@sha256:digest]` (the reference grammar of container registries).
pub fn image_reference(text: &str) -> Result<String> {
    let refuse = || {
        Error::invalid(format!("image \"{}\" is not an image reference", shown(text)))
            .remedy("give something like ghcr.io/your-org/standalone-agent:latest")
    };
    if text.is_empty() || text.len() > IMAGE_LENGTH_MAX {
        return Err(refuse());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let hex =
        |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digest.is_some_and(|digest| !digest.strip_prefix("sha256:").is_some_and(hex)) {
        return Err(refuse());
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let tag_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let tag_ok = |tag: &str| {
        !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(tag_byte) && !tag.starts_with(['.', '-'])
    };
    if tag.is_some_and(|tag| !tag_ok(tag)) {
        return Err(refuse());
    }
    let component = |part: &str| {
        let edge =
            |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let inner = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        };
        edge(part.bytes().next()) && edge(part.bytes().last()) && part.bytes().all(inner)
    };
    let registry = |part: &str| {
        let (host, port) = part.split_once(':').unwrap_or((part, "1"));
        port.parse::<u16>().is_ok() && component(&host.to_ascii_lowercase())
    };
    let parts: Vec<&str> = name.split('/').collect();
    let ok = parts
        .iter()
        .enumerate()
        .all(|(at, part)| component(part) || (at == 0 && parts.len() > 1 && registry(part)));
    if ok { Ok(text.to_owned()) } else { Err(refuse()) }
}

/// It stands in scripts, socket paths (at most 107 bytes) and in files that Compose reads.
pub fn base_dir(text: &str) -> Result<String> {
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.');
    let ok = text.starts_with('/')
        && text.len() > 1
        && text.len() <= 64
        && text.bytes().all(byte)
        && text[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if ok {
        return Ok(text.to_owned());
    }
    Err(Error::invalid(format!("base directory \"{}\" is not valid", shown(text)))
        .remedy("use an absolute path of at most 64 of a-z, 0-9, '-', '_', '.', such as /opt/aitheros-edge"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llm_addresses() {
        for good in ["http://primary-host:8150", "https://llm.example.com/v1", "http://10.0.0.5:8150"] {
            assert_eq!(llm_url(good).unwrap(), good);
        }
        for bad in [
            "ftp://x",
            "file:///etc/passwd",
            "http://user:pw@x",
            "http://169.254.169.254/",
            "http://2852039166/",
            "http://[fe80::1]/",
            "x",
            "http://metadata.google.internal/",
            "http://0.0.0.0:1",
            "http://[::ffff:a9fe:a9fe]/",
        ] {
            assert!(llm_url(bad).is_err(), "{bad}");
        }
        assert!(!llm_url("http://user:hunter2@x").unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn image_references() {
        let digest = format!("repo/name@sha256:{}", "a".repeat(64));
        for good in [
            "busybox",
            "ghcr.io/your-org/standalone-agent:latest",
            "localhost:5000/a/b:1",
            &digest,
            "a/b_c.d-e:T.1",
        ] {
            assert!(image_reference(good).is_ok(), "{good}");
        }
        for bad in
            ["", "a b", "A/b:", ":x", "a@sha256:zz", "a:b:c", "-a", "a//b", "$(id)", "a\n", "Busybox", "a:-x"]
        {
            assert!(image_reference(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn base_directories() {
        assert!(base_dir("/opt/aitheros-edge").is_ok());
        for bad in ["opt", "/", "/opt/../etc", "/opt//x", "/opt/a b", "/opt/$x", "/opt/x/"] {
            assert!(base_dir(bad).is_err(), "{bad}");
        }
    }
}
