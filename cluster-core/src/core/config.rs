//! Configuration and token keys: the verbs of the handle.

use std::sync::Arc;

use aegis_config::{
    Settings,
    applied::EffectiveConfig,
    layers::{ConfigSnapshot, Scope},
};
use aegis_controller::handle::NodeConfigView;
use aegis_identity::TokenKeysView;
use aegis_types::{
    error::Result,
    ids::{NodeId, TenantSlug},
};
use serde_json::Value;
use tokio::sync::watch;

use super::Core;

impl Core {
    /// The settings of this moment: they change with a configuration that is pushed.
    pub fn settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.0.applied.watch()
    }

    /// Returns the configuration that this node runs with.
    pub fn effective_config(&self) -> EffectiveConfig {
        self.0.applied.view()
    }

    /// From the lowest to the highest.
    pub async fn config_layers(&self) -> Result<Vec<ConfigSnapshot>> {
        self.controller()?.controller.config_layers().await
    }

    pub async fn config_layer(&self, scope: &Scope) -> Result<ConfigSnapshot> {
        self.controller()?.controller.config_layer(scope).await
    }

    /// Stores a layer and tells the nodes; those that are away get it when they come back.
    pub async fn put_config_layer(
        &self,
        scope: Scope,
        json: &Value,
        if_version: Option<String>,
    ) -> Result<ConfigSnapshot> {
        let (layer, nodes) = self.controller()?.controller.put_config_layer(scope, json, if_version).await?;
        self.tell(nodes).await?;
        Ok(layer)
    }

    pub async fn delete_config_layer(&self, scope: Scope, if_version: Option<String>) -> Result<()> {
        let nodes = self.controller()?.controller.delete_config_layer(scope, if_version).await?;
        self.tell(nodes).await
    }

    pub async fn assign_tenant(
        &self,
        node_id: &NodeId,
        tenant: Option<TenantSlug>,
    ) -> Result<NodeConfigView> {
        let nodes = self.controller()?.controller.assign_tenant(node_id, tenant).await?;
        self.tell(nodes).await?;
        self.node_config(node_id).await
    }

    pub async fn node_config(&self, node_id: &NodeId) -> Result<NodeConfigView> {
        self.controller()?.controller.node_config(node_id).await
    }

    async fn tell(&self, nodes: Vec<NodeId>) -> Result<()> {
        let part = self.controller()?;
        for node_id in nodes {
            let config = part.controller.merged_config(&node_id).await?;
            part.nodes.push_config(&node_id, config);
        }
        Ok(())
    }

    /// The keys that node security tokens are checked with.
    pub fn token_keys(&self) -> Result<TokenKeysView> {
        Ok(self.controller()?.controller.token_keys_view())
    }

    /// A new key signs at once; tokens that are out stay valid.
    pub async fn rotate_token_key(&self) -> Result<TokenKeysView> {
        self.controller()?.controller.rotate_token_key().await
    }
}
