//! Agents: the verbs of the handle.

use aegis_controller::agents::{AgentDetail, AgentView, Applied, Deleted};
use aegis_types::{agent::AgentReference, error::Result};

use super::Core;

impl Core {
    /// Registers a manifest, YAML or JSON.
    pub async fn apply_agent(&self, manifest: &str) -> Result<Applied> {
        self.controller()?.agents.apply(manifest).await
    }

    /// The newest version of each, by name.
    pub async fn agents(&self) -> Result<Vec<AgentView>> {
        self.controller()?.agents.list().await
    }

    pub async fn agent(&self, reference: &AgentReference) -> Result<AgentDetail> {
        self.controller()?.agents.get(reference).await
    }

    /// One version, or all of a name.
    pub async fn delete_agent(&self, reference: &AgentReference) -> Result<Deleted> {
        self.controller()?.agents.delete(reference).await
    }
}
