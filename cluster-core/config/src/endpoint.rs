//! Endpoint of a controller.

use std::path::PathBuf;

use aegis_types::error::{Error, ErrorCode, Result};
use url::{Host, Url};

pub const CLUSTER_PORT: u16 = 50056;

/// Endpoint of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The SSH link's socket.
    Unix(PathBuf),
    /// Plaintext, on loopback or if the configuration allows it.
    Http(Url),
    /// The direct link.
    Https(Url),
}

impl Endpoint {
    /// Parses an endpoint. `key` is the configuration key, for the error.
    pub fn parse(key: &str, text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|e| {
            invalid(format!("{key}: {e}")).remedy("write http://127.0.0.1:50056 or unix:///path")
        })?;
        match url.scheme() {
            "unix" => Ok(Endpoint::Unix(PathBuf::from(url.path()))),
            // Plaintext off loopback is rejected when the worker starts, so that published examples load.
            "http" if url.host().is_some() => Ok(Endpoint::Http(url)),
            "https" if url.host().is_some() => Ok(Endpoint::Https(url)),
            other => Err(invalid(format!("{key}: the scheme {other} is not http, https or unix"))),
        }
    }

    /// Returns whether the endpoint is on another machine.
    pub fn is_remote(&self) -> bool {
        match self {
            Endpoint::Unix(_) => false,
            Endpoint::Http(url) | Endpoint::Https(url) => url.host().is_none_or(|host| !is_loopback(&host)),
        }
    }
}

pub fn is_loopback<S: AsRef<str>>(host: &Host<S>) -> bool {
    match host {
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
        Host::Domain(name) => name.as_ref() == "localhost",
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::ConfigInvalid, message)
}
