//! `spec.secrets.backend`: OpenBao, checked and complete.

use aegis_identity::{TransitAuth, TransitSettings};
use aegis_types::error::{Error, ErrorCode, Result};

use super::schema::{Secrets, SecretsAuth};

const MOUNT: &str = "transit";
const KEY_NAME: &str = "aegis-node-tokens";

fn invalid(key: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::ConfigInvalid, format!("spec.secrets.backend.{key}: {what}"))
}

pub(super) fn transit(secrets: Option<&Secrets>) -> Result<Option<TransitSettings>> {
    let Some(backend) = secrets.and_then(|secrets| secrets.backend.clone()) else { return Ok(None) };
    let address = backend.address.ok_or_else(|| {
        invalid("address", "it is missing").remedy("name it, for example https://openbao.internal:8200")
    })?;
    let url = url::Url::parse(&address).map_err(|e| invalid("address", e))?;
    let local = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => return Err(invalid("address", "it names no host")),
    };
    match url.scheme() {
        "https" => {}
        "http" if local => {}
        _ => {
            return Err(invalid("address", "only https, and http on loopback, carry a login")
                .remedy("use https, with tls.ca_cert where its CA is your own"));
        }
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("address", "it holds credentials").remedy("write them as approle or token"));
    }
    let approle = backend.approle.unwrap_or_default();
    let method = backend.auth_method.unwrap_or(match backend.token {
        Some(_) => SecretsAuth::Token,
        None => SecretsAuth::AppRole,
    });
    let auth = match method {
        SecretsAuth::AppRole => TransitAuth::AppRole {
            role_id: approle.role_id.ok_or_else(|| invalid("approle.role_id", "it is missing"))?,
            secret_id: approle.secret_id.ok_or_else(|| {
                invalid("approle.secret_id", "it is missing").remedy("write env:NAME or file:PATH")
            })?,
        },
        SecretsAuth::Token => TransitAuth::Token(
            backend
                .token
                .ok_or_else(|| invalid("token", "it is missing").remedy("write env:NAME or file:PATH"))?,
        ),
    };
    let tls = backend.tls.unwrap_or_default();
    if tls.cert_path.is_some() || tls.key_path.is_some() {
        return Err(invalid("tls", "client certificates are not offered; log in with approle or token"));
    }
    if tls.enabled == Some(false) && url.scheme() == "https" {
        return Err(invalid("tls.enabled", "it is false and the address is https"));
    }
    Ok(Some(TransitSettings {
        address: url,
        auth,
        namespace: backend.namespace,
        mount: name("mount", backend.mount, MOUNT, true)?,
        key_name: name("key_name", backend.key_name, KEY_NAME, false)?,
        ca_cert: tls.ca_cert,
    }))
}

/// A part of a path at OpenBao; a mount may have several.
fn name(key: &str, given: Option<String>, default: &str, nested: bool) -> Result<String> {
    let name = given.unwrap_or_else(|| default.to_owned());
    let sound = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let parts: Vec<&str> = name.trim_matches('/').split('/').collect();
    if parts.iter().all(|part| sound(part)) && (nested || parts.len() == 1) {
        return Ok(parts.join("/"));
    }
    Err(invalid(key, format!("\"{}\" is no name", aegis_types::text::shown(&name))))
}
