//! What is asked for, and what is to be done: only validation makes the second out of the first.

use std::{collections::BTreeSet, fmt, net::IpAddr, path::PathBuf};

use super::{
    Secret,
    settings::DeploySettings,
    tunnel::{self, TunnelSource},
};
use crate::{
    error::{Error, ErrorCode, Result},
    ids::{NodeId, Tag, UserName, shown},
    ssh::{
        HostAddress, SshTarget,
        target::{AddressKind, SSH_PORT_DEFAULT, address_kind},
    },
};

const SSH_USER_DEFAULT: &str = "root";
const TAGS_MAX: usize = 32;
const IMAGE_LENGTH_MAX: usize = 255;
const URL_LENGTH_MAX: usize = 2048;
const TOKEN_LENGTH_MAX: usize = 8192;
const IDEMPOTENCY_KEY_LENGTH_MAX: usize = 128;

/// Who asks. A model can be talked into things by text it reads, so an assistant may say less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Assistant,
    Person,
}

/// The arguments of `deploy_edge_node`, as they came.
#[derive(Debug, Clone, Default)]
pub struct DeploymentRequest {
    pub host: String,
    pub ssh_port: Option<u32>,
    pub ssh_user: Option<String>,
    pub ssh_key_path: Option<String>,
    pub identity: Option<String>,
    pub tags: Vec<String>,
    /// Comma-separated.
    pub services: Option<String>,
    pub tunnel_token: Option<Secret>,
    pub remote_llm_url: Option<String>,
    pub image: Option<String>,
    pub link: Option<String>,
    pub idempotency_key: Option<String>,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Node,
    Ollama,
    Cloudflared,
}

impl Service {
    pub const fn name(self) -> &'static str {
        match self {
            Service::Node => "node",
            Service::Ollama => "ollama",
            Service::Cloudflared => "cloudflared",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "node" => Ok(Service::Node),
            "ollama" => Ok(Service::Ollama),
            "cloudflared" => Ok(Service::Cloudflared),
            other => Err(Error::invalid(format!("there is no service \"{}\"", shown(other)))
                .remedy("services is a comma-separated list of node, ollama and cloudflared")),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A deployment as it is recorded: validated, and without any secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeploymentSpec {
    pub target: SshTarget,
    pub node: NodeId,
    pub tags: Vec<Tag>,
    pub services: BTreeSet<Service>,
    pub tunnel: TunnelSource,
    pub remote_llm_url: Option<String>,
    /// Replaces what a foreign stack would build, or joins the embedded stack as `aithernode`.
    pub image: Option<String>,
    /// A stack of the operator's instead of the embedded one.
    pub compose_file: Option<PathBuf>,
    pub base_dir: String,
    pub minimum_disk_gb: u64,
    pub origin: Origin,
}

/// A validated deployment and the one secret that goes with it.
#[derive(Debug, Clone)]
pub struct Validated {
    pub spec: DeploymentSpec,
    pub tunnel_token: Option<Secret>,
}

impl DeploymentRequest {
    /// Checks every argument by grammar; no socket, no file of the caller's choosing is touched.
    /// An explicit argument wins over the default; `~/.ssh/config` will stand between them here.
    pub fn validate(&self, origin: Origin, settings: &DeploySettings) -> Result<Validated> {
        if self.host.is_empty() {
            return Err(Error::invalid("host is empty").remedy("name the machine: its DNS name or IP address"));
        }
        let host = HostAddress::parse(&self.host, settings.allow_loopback)?;
        let node = match given(&self.identity) {
            Some(identity) => NodeId::parse(identity)?,
            None => NodeId::from_host(host.as_str())?,
        };
        if let Some(link) = given(&self.link).filter(|link| *link != "ssh") {
            return Err(link_not_offered(link));
        }
        if let Some(key) = given(&self.idempotency_key).filter(|key| key.len() > IDEMPOTENCY_KEY_LENGTH_MAX) {
            return Err(Error::invalid(format!("idempotency_key \"{}\" is too long", shown(key))));
        }
        let target = SshTarget {
            host,
            port: port(self.ssh_port)?,
            user: UserName::parse(given(&self.ssh_user).unwrap_or(SSH_USER_DEFAULT))?,
            key_path: given(&self.ssh_key_path).map(|path| key_path(path, settings)).transpose()?,
        };
        let mut services = services(given(&self.services))?;
        let argument = self.tunnel_token.as_ref().map(|token| secret_argument(token, origin)).transpose()?.flatten();
        let (tunnel, tunnel_token) = tunnel::resolve(argument.as_ref(), settings)?;
        match (&tunnel_token, services.contains(&Service::Cloudflared)) {
            (Some(_), _) => {
                services.insert(Service::Cloudflared);
            }
            (None, true) => {
                return Err(Error::invalid("cloudflared needs a tunnel token and none was found")
                    .remedy("give tunnel_token, or set CLOUDFLARE_TUNNEL_TOKEN for the controller"));
            }
            (None, false) => {}
        }
        let image = given(&self.image).or(settings.environment_image.as_deref());
        let spec = DeploymentSpec {
            target,
            node,
            tags: tags(&self.tags)?,
            services,
            tunnel,
            remote_llm_url: given(&self.remote_llm_url).map(llm_url).transpose()?,
            image: image.map(image_reference).transpose()?,
            compose_file: settings.foreign_compose_file(),
            base_dir: base_dir(&settings.base_dir)?,
            minimum_disk_gb: settings.minimum_disk_gb,
            origin,
        };
        Ok(Validated { spec, tunnel_token })
    }
}

impl DeploymentSpec {
    /// What makes two requests the same one; the secret takes part by its digest only.
    pub fn digest(&self, tunnel_token: Option<&Secret>) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        let token = tunnel_token.map(Secret::reveal).unwrap_or_default();
        super::hex_digest(format!("{json}\0{token}").as_bytes())
    }
}

/// Clients send empty strings for what was left out.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|value| !value.is_empty())
}

fn link_not_offered(link: &str) -> Error {
    match link {
        "direct" => Error::new(ErrorCode::NotOffered, "link \"direct\" is not offered by this version")
            .remedy("leave link out: the SSH link needs nothing but the host's SSH port"),
        other => Error::invalid(format!("there is no link \"{}\"", shown(other))).remedy("link is ssh"),
    }
}

fn port(port: Option<u32>) -> Result<u16> {
    match port {
        None => Ok(SSH_PORT_DEFAULT),
        Some(port) => u16::try_from(port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| Error::invalid(format!("ssh_port {port} is not valid")).remedy("use 1 to 65535")),
    }
}

/// Its place is checked when it is read, after links are followed.
fn key_path(path: &str, settings: &DeploySettings) -> Result<PathBuf> {
    if path.contains('\0') || path.len() > 4096 {
        return Err(Error::invalid("ssh_key_path is not a path"));
    }
    match (path.strip_prefix("~/"), &settings.home) {
        (Some(rest), Some(home)) => Ok(home.join(rest)),
        _ if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(Error::invalid(format!("ssh_key_path \"{}\" is not absolute", shown(path)))
            .remedy("give an absolute path, or one that begins with ~/")),
    }
}

fn services(list: Option<&str>) -> Result<BTreeSet<Service>> {
    let names = list.unwrap_or("node,ollama").split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut services = names.map(Service::parse).collect::<Result<BTreeSet<_>>>()?;
    // A deployment ends with a node in the cluster: it is always part of the stack.
    services.insert(Service::Node);
    Ok(services)
}

fn tags(tags: &[String]) -> Result<Vec<Tag>> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid(format!("{} tags are too many", tags.len())).remedy("use at most 32"));
    }
    let tags = tags.iter().map(|tag| Tag::parse(tag.as_str())).collect::<Result<BTreeSet<_>>>()?;
    Ok(tags.into_iter().collect())
}

/// From an assistant a secret is a literal value or empty; references to files and variables of this
/// machine are a person's.
fn secret_argument(secret: &Secret, origin: Origin) -> Result<Option<Secret>> {
    let text = secret.reveal();
    let refuse = |why: &str| Err(Error::invalid(format!("tunnel_token {why}")));
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > TOKEN_LENGTH_MAX || text.chars().any(char::is_control) {
        return refuse("is too long or holds control characters");
    }
    if text.starts_with("secret:") {
        return Err(Error::new(ErrorCode::NotOffered, "tunnel_token: named secrets are not offered by this version"));
    }
    let reference = text.strip_prefix("env:").map(Reference::Env).or(text.strip_prefix("file:").map(Reference::File));
    match (reference, origin) {
        (None, _) => Ok(Some(secret.clone())),
        (Some(_), Origin::Assistant) => Err(Error::new(
            ErrorCode::Forbidden,
            "tunnel_token: env: and file: are for the configuration and the command line only",
        )
        .remedy("leave it empty (it is found by itself where the operator set it), or give the value")),
        (Some(Reference::Env(name)), Origin::Person) => match std::env::var(name) {
            Ok(value) if !value.is_empty() => Ok(Some(Secret::new(value))),
            _ => refuse("names an environment variable that is not set"),
        },
        (Some(Reference::File(path)), Origin::Person) => match std::fs::read_to_string(path) {
            Ok(value) => Ok(Some(Secret::new(value.trim()))),
            Err(error) => Err(Error::invalid("tunnel_token names a file that cannot be read").source(error)),
        },
    }
}

enum Reference<'a> {
    Env(&'a str),
    File(&'a str),
}

fn llm_url(text: &str) -> Result<String> {
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
        return Err(Error::invalid("remote_llm_url holds a user or password").remedy("leave them out of the address"));
    }
    let address = match url.host() {
        None => return Err(refuse("names no host")),
        Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(url::Host::Domain(name)) => {
            HostAddress::parse(name, true).map_err(|error| refuse(&format!("names no usable host: {}", error.message())))?;
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
    let hex = |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
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
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
        edge(part.bytes().next()) && edge(part.bytes().last()) && part.bytes().all(inner)
    };
    let registry = |part: &str| {
        let (host, port) = part.split_once(':').unwrap_or((part, "1"));
        port.parse::<u16>().is_ok() && component(&host.to_ascii_lowercase())
    };
    let parts: Vec<&str> = name.split('/').collect();
    let ok = parts.iter().enumerate().all(|(at, part)| component(part) || (at == 0 && parts.len() > 1 && registry(part)));
    if ok { Ok(text.to_owned()) } else { Err(refuse()) }
}

/// It stands in scripts, socket paths (at most 107 bytes) and in files that Compose reads.
fn base_dir(text: &str) -> Result<String> {
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

    fn request(host: &str) -> DeploymentRequest {
        DeploymentRequest { host: host.into(), ..Default::default() }
    }

    fn validate(request: &DeploymentRequest) -> Result<Validated> {
        request.validate(Origin::Assistant, &DeploySettings::default())
    }

    #[test]
    fn defaults_are_the_published_ones() {
        let spec = validate(&request("192.168.1.50")).unwrap().spec;
        assert_eq!((spec.target.port, spec.target.user.as_str()), (22, "root"));
        assert_eq!(spec.node.as_str(), "192-168-1-50");
        assert_eq!(spec.services, BTreeSet::from([Service::Node, Service::Ollama]));
        assert_eq!(spec.target.host.as_str(), "192.168.1.50", "a host is a direct target");
        assert_eq!(spec.tunnel, TunnelSource::None);
    }

    #[test]
    fn arguments_out_of_their_grammar_are_refused() {
        let cases: [(&str, DeploymentRequest); 12] = [
            ("host", request("")),
            ("host", request("-x")),
            ("this machine", request("localhost")),
            ("ssh_port", DeploymentRequest { ssh_port: Some(0), ..request("edge1") }),
            ("ssh_port", DeploymentRequest { ssh_port: Some(70_000), ..request("edge1") }),
            ("ssh user", DeploymentRequest { ssh_user: Some("root;id".into()), ..request("edge1") }),
            ("node id", DeploymentRequest { identity: Some("Bad Id".into()), ..request("edge1") }),
            ("tag", DeploymentRequest { tags: vec!["A B".into()], ..request("edge1") }),
            ("service", DeploymentRequest { services: Some("node,redis".into()), ..request("edge1") }),
            ("tunnel token", DeploymentRequest { services: Some("cloudflared".into()), ..request("edge1") }),
            ("ssh_key_path", DeploymentRequest { ssh_key_path: Some("../../etc/shadow".into()), ..request("edge1") }),
            ("image", DeploymentRequest { image: Some("a b".into()), ..request("edge1") }),
        ];
        for (what, request) in cases {
            let error = validate(&request).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{what}");
            assert!(error.to_string().contains(what), "{what}: {error}");
        }
        let direct = DeploymentRequest { link: Some("direct".into()), ..request("edge1") };
        assert_eq!(validate(&direct).unwrap_err().code(), ErrorCode::NotOffered);
    }

    #[test]
    fn a_given_token_brings_cloudflared_and_is_neither_stored_nor_shown() {
        let request = DeploymentRequest { tunnel_token: Some(Secret::new("ey-hunter2")), ..request("edge1") };
        let validated = validate(&request).unwrap();
        assert!(validated.spec.services.contains(&Service::Cloudflared));
        let stored = serde_json::to_string(&validated.spec).unwrap();
        assert!(!stored.contains("hunter2") && !format!("{request:?} {validated:?}").contains("hunter2"));
    }

    #[test]
    fn an_assistant_may_not_point_at_files_and_variables() {
        for reference in ["env:HOME", "file:/etc/shadow"] {
            let request = DeploymentRequest { tunnel_token: Some(Secret::new(reference)), ..request("edge1") };
            assert_eq!(validate(&request).unwrap_err().code(), ErrorCode::Forbidden);
        }
        let request = DeploymentRequest { tunnel_token: Some(Secret::new("env:HOME")), ..request("edge1") };
        assert!(request.validate(Origin::Person, &DeploySettings::default()).is_ok());
    }

    #[test]
    fn llm_addresses() {
        for good in ["http://primary-host:8150", "https://llm.example.com/v1", "http://10.0.0.5:8150"] {
            assert_eq!(llm_url(good).unwrap(), good);
        }
        for bad in [
            "ftp://x", "file:///etc/passwd", "http://user:pw@x", "http://169.254.169.254/", "http://2852039166/",
            "http://[fe80::1]/", "x", "http://metadata.google.internal/", "http://0.0.0.0:1", "http://[::ffff:a9fe:a9fe]/",
        ] {
            assert!(llm_url(bad).is_err(), "{bad}");
        }
        assert!(!llm_url("http://user:hunter2@x").unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn image_references() {
        let digest = format!("repo/name@sha256:{}", "a".repeat(64));
        for good in ["busybox", "ghcr.io/your-org/standalone-agent:latest", "localhost:5000/a/b:1", &digest, "a/b_c.d-e:T.1"] {
            assert!(image_reference(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "A/b:", ":x", "a@sha256:zz", "a:b:c", "-a", "a//b", "$(id)", "a\n", "Busybox", "a:-x"] {
            assert!(image_reference(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_digest_tells_requests_apart() {
        let spec = validate(&request("edge1")).unwrap().spec;
        let other = validate(&request("edge2")).unwrap().spec;
        assert_eq!(spec.digest(None), spec.digest(None));
        assert_ne!(spec.digest(None), other.digest(None));
        assert_ne!(spec.digest(None), spec.digest(Some(&Secret::new("x"))));
    }

    #[test]
    fn base_directories() {
        assert!(base_dir("/opt/aitheros-edge").is_ok());
        for bad in ["opt", "/", "/opt/../etc", "/opt//x", "/opt/a b", "/opt/$x", "/opt/x/"] {
            assert!(base_dir(bad).is_err(), "{bad}");
        }
    }
}
