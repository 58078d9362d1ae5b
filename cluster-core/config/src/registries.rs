//! Private registries: the registry of an image, and the login for one pull.

use std::collections::BTreeMap;

use aegis_fs::SecretReference;
use aegis_types::{
    error::{Error, Result},
    registry::{PullLogin, Registry},
    secret::{Secret, SecretName},
};

/// Login of a registry as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    pub username: String,
    pub password: SecretReference,
}

pub type Logins = BTreeMap<Registry, RegistryLogin>;

/// Returns the login for an image; `None` if its registry is public or not configured. `use_secret` returns a named
/// secret, given its purpose.
pub async fn login_for(
    reference: &str,
    logins: &Logins,
    use_secret: impl AsyncFnOnce(&SecretName, &str) -> Result<Secret>,
) -> Result<Option<PullLogin>> {
    let registry = Registry::of(reference);
    let Some(login) = logins.get(&registry) else { return Ok(None) };
    let located = |error: Error| {
        let text = format!("{}.password: {}", registry.key(), error.message());
        let remedy = error.remedy_text().unwrap_or("set what it refers to").to_owned();
        Error::new(error.code(), text).remedy(remedy).source(error)
    };
    let password = match &login.password {
        SecretReference::Named(name) => {
            use_secret(name, &format!("registry {registry}")).await.map_err(located)?
        }
        SecretReference::Place(place) => place.read().map_err(located)?,
    };
    Ok(Some(PullLogin { registry, username: login.username.clone(), password }))
}
