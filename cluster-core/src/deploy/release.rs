//! A release: the files of one deployment in one directory on the host, and the note that says whose
//! they are. Equal digests mean that nothing has to be sent or switched.

use std::collections::BTreeMap;

use super::{env_file::EnvFile, hex_digest};
use crate::{
    error::Result,
    ids::{DeploymentId, NodeId},
};

pub const NOTE_FILE: &str = "release.json";
pub const COMPOSE_FILE: &str = "docker-compose.yml";
pub const OVERRIDE_FILE: &str = "docker-compose.override.yml";
pub const ENV_FILE: &str = ".env";
pub const CONFIG_FILE: &str = "aegis-config.yaml";

/// `release.json` of a release directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReleaseNote {
    pub deployment_id: DeploymentId,
    pub node_id: NodeId,
    /// SHA-256 of each file.
    pub files: BTreeMap<String, String>,
    pub services: Vec<String>,
}

/// The files of a release before they are sent; `.env` may hold a secret, so `Debug` shows names only.
#[derive(Clone)]
pub struct ReleaseFiles {
    files: BTreeMap<&'static str, Vec<u8>>,
    services: Vec<String>,
}

impl std::fmt::Debug for ReleaseFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.files.keys()).finish()
    }
}

impl ReleaseFiles {
    pub fn new(
        compose: &str,
        override_file: Option<&str>,
        env: &EnvFile,
        config: &str,
        services: &[String],
    ) -> Self {
        let mut files = BTreeMap::from([
            (COMPOSE_FILE, compose.as_bytes().to_vec()),
            (ENV_FILE, env.render().into_bytes()),
            (CONFIG_FILE, config.as_bytes().to_vec()),
        ]);
        if let Some(text) = override_file {
            files.insert(OVERRIDE_FILE, text.as_bytes().to_vec());
        }
        Self { files, services: services.to_vec() }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, content)| (*name, content.as_slice()))
    }

    pub fn digests(&self) -> BTreeMap<String, String> {
        self.files.iter().map(|(name, content)| ((*name).to_owned(), hex_digest(content))).collect()
    }

    pub fn note(&self, deployment: &DeploymentId, node: &NodeId) -> Result<Vec<u8>> {
        let note = ReleaseNote {
            deployment_id: deployment.clone(),
            node_id: node.clone(),
            files: self.digests(),
            services: self.services.clone(),
        };
        serde_json::to_vec(&note)
            .map_err(|error| crate::Error::internal("a release note cannot be written").source(error))
    }
}
