//! The core's verbs on the operator's secrets. None of them gives a value back.

use aegis_types::{
    error::Result,
    secret::{Secret, SecretName},
};

use super::Core;
use crate::secrets::SecretView;

impl Core {
    /// Sets a secret, new or not.
    pub async fn set_secret(&self, name: SecretName, value: &Secret) -> Result<SecretView> {
        self.controller()?.secrets.set(name, value).await
    }

    /// By name.
    pub async fn secrets(&self) -> Result<Vec<SecretView>> {
        self.controller()?.secrets.list().await
    }

    pub async fn delete_secret(&self, name: &SecretName) -> Result<()> {
        self.controller()?.secrets.delete(name).await
    }
}
