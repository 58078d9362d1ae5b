//! Private registries: which one an image lies in, the login of one pull there, and what a refusal means.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    error::{Error, ErrorCode, Result},
    secret::Secret,
    text::shown,
};

const DOCKER_HUB: &str = "docker.io";
/// Key of Docker Hub in Docker's own configuration.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";

/// `HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registry(String);

impl Registry {
    /// A key of `spec.deploy.registries`.
    pub fn parse(text: &str) -> Result<Self> {
        let (host, port) = text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let sound = !host.is_empty()
            && !host.starts_with(['-', '.'])
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if !sound {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!("spec.deploy.registries: \"{}\" is no registry", shown(text)),
            )
            .remedy("write HOST or HOST:PORT, without https:// and without a path, like ghcr.io"));
        }
        Ok(match text.to_ascii_lowercase().as_str() {
            "index.docker.io" | "registry-1.docker.io" => Self(DOCKER_HUB.to_owned()),
            other => Self(other.to_owned()),
        })
    }

    /// Returns the registry of an image, by Docker's rule: the first part of a reference is a registry if it has a dot
    /// or a colon, or is `localhost`.
    pub fn of(reference: &str) -> Self {
        let first = reference.split_once('/').map(|(first, _)| first);
        let registry = first.filter(|first| first.contains(['.', ':']) || *first == "localhost");
        let registry = registry.unwrap_or(DOCKER_HUB).to_ascii_lowercase();
        Self(if registry == "index.docker.io" { DOCKER_HUB.to_owned() } else { registry })
    }

    /// Returns its key in the configuration.
    pub fn key(&self) -> String {
        format!("spec.deploy.registries.\"{self}\"")
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A login with its password, for one pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullLogin {
    pub registry: Registry,
    pub username: String,
    pub password: Secret,
}

impl PullLogin {
    /// Returns the registry under the name that Docker has for it.
    pub fn server(&self) -> &str {
        if self.registry.0 == DOCKER_HUB { DOCKER_HUB_LOGIN } else { &self.registry.0 }
    }

    /// Returns the content of Docker's `config.json`.
    pub fn docker_config(&self) -> Secret {
        let pair = Secret::new(format!("{}:{}", self.username, self.password.reveal()));
        let auth = Secret::new(STANDARD.encode(pair.reveal()));
        Secret::new(json!({ "auths": { self.server(): { "auth": auth.reveal() } } }).to_string())
    }
}

/// Returns why a machine cannot pull: `why` is what its Docker said, `logged_in` whether it was given a login.
pub fn cannot_pull(reference: &str, machine: &str, logged_in: bool, why: &str) -> Error {
    const REFUSALS: [&str; 5] =
        ["unauthorized", "denied", "no basic auth credentials", "authentication required", "forbidden"];
    let registry = Registry::of(reference);
    let refused = REFUSALS.iter().any(|text| why.to_ascii_lowercase().contains(text));
    let (message, remedy) = match (refused, logged_in) {
        (true, true) => (
            format!("{registry} refuses {reference} to the configured login: {why}"),
            format!("check username and password in {}, and that they may read this image", registry.key()),
        ),
        (true, false) => (
            format!("{registry} refuses {reference} without a login: {why}"),
            format!(
                "check the image's name; if it is private, configure {}: {{username, password: secret:NAME}}",
                registry.key()
            ),
        ),
        (false, _) => (
            format!("the {machine} cannot pull {reference}: {why}"),
            format!(
                "check the image's name and that the {machine} reaches its registry, or have the image in the \
                 controller's own Docker, which sends it"
            ),
        ),
    };
    Error::new(ErrorCode::ImageNotFound, message).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_lies_where_docker_says() {
        for (reference, registry) in [
            ("busybox", "docker.io"),
            ("cloudflare/cloudflared:latest", "docker.io"),
            ("index.docker.io/x/y", "docker.io"),
            ("ghcr.io/x/y:1", "ghcr.io"),
            ("GHCR.io/x/y:1", "ghcr.io"),
            ("127.0.0.1:5000/x/agent:1", "127.0.0.1:5000"),
            ("localhost/x", "localhost"),
            ("localhost:5000/x@sha256:00", "localhost:5000"),
        ] {
            assert_eq!(Registry::of(reference).to_string(), registry, "{reference}");
            assert_eq!(Registry::parse(registry).unwrap(), Registry::of(reference));
        }
        for bad in ["", "https://ghcr.io", "ghcr.io/x", "ghcr.io:0", "ghcr.io:x", "-x", "a b"] {
            assert_eq!(Registry::parse(bad).unwrap_err().code(), ErrorCode::ConfigInvalid, "{bad}");
        }
    }

    #[test]
    fn docker_reads_the_login_back() {
        let read = |registry: &str| {
            let login = PullLogin {
                registry: Registry::parse(registry).unwrap(),
                username: "me".to_owned(),
                password: Secret::new("p:w\"d"),
            };
            serde_json::from_str::<serde_json::Value>(login.docker_config().reveal()).unwrap()
        };
        let auth = STANDARD.encode("me:p:w\"d");
        assert_eq!(read("ghcr.io")["auths"]["ghcr.io"]["auth"], auth);
        assert_eq!(read("docker.io")["auths"][DOCKER_HUB_LOGIN]["auth"], auth);
    }

    #[test]
    fn a_refusal_names_the_registry_and_the_key_to_set() {
        for why in ["no basic auth credentials", "unauthorized: authentication required"] {
            for logged_in in [true, false] {
                let error = cannot_pull("127.0.0.1:5000/x/agent:1", "host", logged_in, why);
                assert_eq!(error.code(), ErrorCode::ImageNotFound);
                assert!(error.message().starts_with("127.0.0.1:5000 refuses"), "{error}");
                assert!(error.to_string().contains("spec.deploy.registries.\"127.0.0.1:5000\""), "{error}");
            }
        }
        let error = cannot_pull("ghcr.io/x", "host", true, "dial tcp: no such host");
        assert!(!error.to_string().contains("spec.deploy.registries"), "{error}");
    }
}
