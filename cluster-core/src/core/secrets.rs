//! Verbs on the operator's secrets. No verb returns a value.

use aegis_controller::secrets::SecretView;
use aegis_types::{
    error::Result,
    secret::{Secret, SecretName},
};

use super::Core;

impl Core {
    /// Sets a secret, new or not.
    pub async fn set_secret(&self, name: SecretName, value: &Secret) -> Result<SecretView> {
        self.controller()?.secrets.set(name, value).await
    }

    /// Returns all secrets by name, without their values.
    pub async fn secrets(&self) -> Result<Vec<SecretView>> {
        self.controller()?.secrets.list().await
    }

    pub async fn delete_secret(&self, name: &SecretName) -> Result<()> {
        self.controller()?.secrets.delete(name).await
    }
}
