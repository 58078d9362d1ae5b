//! Configuration layers on the controller: kept, merged for each node, and handed out.
//!
//! A layer is stored before any node hears of it. Each node whose merged configuration changed is then assigned the new
//! version and gets a command, which stays until the node has acknowledged it. The body is merged each time it is sent,
//! so that a node never gets an outdated one.

use std::collections::BTreeMap;

use aegis_config::{
    layers::{ConfigSnapshot, MergedConfig, Scope, version_of},
    pushed,
};
use aegis_store::{ConfigWrite, Write};
use aegis_types::{
    clock::rfc3339,
    error::{Error, ErrorCode, Result},
    heartbeat::Command,
    ids::{NodeId, TenantSlug},
    node::Desired,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Controller;

/// Configuration that a node should run, and the one that it runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeConfigView {
    pub node_id: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantSlug>,
    /// Its layers in one; its own file is not known here, and wins.
    pub merged: Value,
    /// The layers that went into it, from the lowest to the highest.
    pub layers: Vec<Scope>,
    /// Version of the merged configuration.
    pub version: String,
    /// RFC 3339; absent for a node that has never registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_at: Option<String>,
    /// The version that the node says it runs; absent until it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_version: Option<String>,
    /// Why the node did not apply the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Controller {
    pub async fn config_layers(&self) -> Result<Vec<ConfigSnapshot>> {
        let mut layers = self.0.store.config_layers().await?;
        layers.sort_by(|a, b| a.scope.cmp(&b.scope));
        Ok(layers)
    }

    pub async fn config_layer(&self, scope: &Scope) -> Result<ConfigSnapshot> {
        let layer = self.0.store.config_layer(scope).await?;
        layer.ok_or_else(|| Error::not_found("configuration layer", &scope.to_string()))
    }

    /// Stores a layer in the place of the one there was; nothing is stored of one that is refused.
    /// `if_version`: only over that version. The nodes are those that must be told.
    pub async fn put_config_layer(
        &self,
        scope: Scope,
        json: &Value,
        if_version: Option<String>,
    ) -> Result<(ConfigSnapshot, Vec<NodeId>)> {
        let json = pushed::check_layer(json)?;
        if let Scope::Node(node_id) = &scope
            && self.record(node_id).await?.is_none()
        {
            return Err(Error::not_found("node", node_id.as_str()));
        }
        let _changing = self.0.config.lock().await;
        let known = self.0.store.config_layer(&scope).await?;
        expect(&scope, known.as_ref(), if_version.as_deref())?;
        let layer = ConfigSnapshot { version: version_of(&json), scope, json };
        self.check_merged(&layer).await?;
        let write = ConfigWrite::PutLayer { layer: layer.clone(), if_version, now_ms: self.now_ms() };
        self.0.store.write(Write::Config(Box::new(write))).await?;
        tracing::info!(scope = %layer.scope, version = %layer.version, "a configuration layer is stored");
        let told = self.roll_out().await?;
        Ok((layer, told))
    }

    /// Checks what each concerned node would get: layers that are good alone may be too much together, and
    /// then no node could apply them.
    async fn check_merged(&self, layer: &ConfigSnapshot) -> Result<()> {
        for record in self.records().await? {
            if record.desired == Desired::Removed {
                continue;
            }
            let tenant = self.tenant_of(&record.node_id).await?;
            let scopes = scopes_of(&record.node_id, tenant);
            if !scopes.contains(&layer.scope) {
                continue;
            }
            let mut layers = Vec::with_capacity(scopes.len());
            for scope in &scopes {
                match *scope == layer.scope {
                    true => layers.push(layer.clone()),
                    false => layers.extend(self.0.store.config_layer(scope).await?),
                }
            }
            let merged = MergedConfig::of(layers.iter().map(|layer| &layer.json));
            pushed::check_layer(&merged.json).map_err(|error| {
                let message = format!(
                    "with the node's other layers {} could not apply it: {}",
                    record.node_id,
                    error.message()
                );
                Error::new(error.code(), message).remedy("make one of the layers smaller")
            })?;
        }
        Ok(())
    }

    pub async fn delete_config_layer(&self, scope: Scope, if_version: Option<String>) -> Result<Vec<NodeId>> {
        let _changing = self.0.config.lock().await;
        let known = self.0.store.config_layer(&scope).await?;
        if known.is_none() {
            return Err(Error::not_found("configuration layer", &scope.to_string()));
        }
        expect(&scope, known.as_ref(), if_version.as_deref())?;
        tracing::info!(%scope, "a configuration layer is removed");
        self.0.store.write(Write::Config(Box::new(ConfigWrite::DeleteLayer { scope, if_version }))).await?;
        self.roll_out().await
    }

    /// Whose layer a node gets besides the global one and its own.
    pub async fn assign_tenant(&self, node_id: &NodeId, tenant: Option<TenantSlug>) -> Result<Vec<NodeId>> {
        if self.record(node_id).await?.is_none() {
            return Err(Error::not_found("node", node_id.as_str()));
        }
        let _changing = self.0.config.lock().await;
        // A node may be assigned before it has registered.
        let none = MergedConfig::none().version;
        self.register_assignment(node_id, none, None).await?;
        let write = ConfigWrite::AssignTenant { node_id: node_id.clone(), tenant, now_ms: self.now_ms() };
        self.0.store.write(Write::Config(Box::new(write))).await?;
        self.roll_out().await
    }

    /// Both assignments of a node, made when it first registers.
    pub(super) async fn assign(&self, node_id: &NodeId, runtimes: Vec<String>) -> Result<()> {
        let version = self.merged_config(node_id).await?.version;
        self.register_assignment(node_id, version, Some(runtimes)).await
    }

    async fn register_assignment(
        &self,
        node_id: &NodeId,
        config_version: String,
        runtimes: Option<Vec<String>>,
    ) -> Result<()> {
        let runtimes = match runtimes {
            Some(runtimes) => runtimes,
            None if self.0.store.assignment(node_id).await?.is_some() => return Ok(()),
            None => Vec::new(),
        };
        let node_id = node_id.clone();
        let write = ConfigWrite::Register { node_id, config_version, runtimes, now_ms: self.now_ms() };
        self.0.store.write(Write::Config(Box::new(write))).await.map(drop)
    }

    pub async fn tenant_of(&self, node_id: &NodeId) -> Result<Option<TenantSlug>> {
        Ok(self.0.store.assignment(node_id).await?.and_then(|(config, _)| config.tenant))
    }

    /// Returns the configuration that a node should run now.
    pub async fn merged_config(&self, node_id: &NodeId) -> Result<MergedConfig> {
        let layers = self.layers_of(node_id).await?;
        Ok(MergedConfig::of(layers.iter().map(|layer| &layer.json)))
    }

    /// From the lowest to the highest.
    async fn layers_of(&self, node_id: &NodeId) -> Result<Vec<ConfigSnapshot>> {
        let scopes = scopes_of(node_id, self.tenant_of(node_id).await?);
        let mut layers = Vec::with_capacity(scopes.len());
        for scope in &scopes {
            layers.extend(self.0.store.config_layer(scope).await?);
        }
        Ok(layers)
    }

    pub async fn node_config(&self, node_id: &NodeId) -> Result<NodeConfigView> {
        let peer = self.view(node_id.clone()).await?;
        let layers = self.layers_of(node_id).await?;
        let merged = MergedConfig::of(layers.iter().map(|layer| &layer.json));
        let assignment = self.0.store.assignment(node_id).await?.map(|(config, _)| config);
        Ok(NodeConfigView {
            node_id: node_id.clone(),
            tenant: assignment.as_ref().and_then(|assignment| assignment.tenant.clone()),
            assigned_at: assignment.map(|assignment| rfc3339(assignment.assigned_at_ms)),
            layers: layers.into_iter().map(|layer| layer.scope).collect(),
            merged: merged.json,
            version: merged.version,
            applied_version: peer.config_version,
            error: peer.config_error,
        })
    }

    /// Commands for every node that does not run, as far as is known, what it should.
    async fn roll_out(&self) -> Result<Vec<NodeId>> {
        let mut wanted = BTreeMap::new();
        for record in self.records().await? {
            if record.desired != Desired::Removed {
                let version = self.merged_config(&record.node_id).await?.version;
                wanted.insert(record.node_id, version);
            }
        }
        let mut told = Vec::new();
        for (node_id, config_version) in wanted {
            let write = ConfigWrite::AssignVersion {
                node_id: node_id.clone(),
                config_version: config_version.clone(),
                now_ms: self.now_ms(),
            };
            let changed = self.0.store.write(Write::Config(Box::new(write))).await? > 0;
            let id = node_id.clone();
            let queued = self
                .decide(move |membership, _| {
                    let changes = membership.push_config(&id, &config_version, changed)?;
                    let queued = !changes.is_empty();
                    Ok((changes, queued))
                })
                .await?;
            if queued {
                told.push(node_id);
            }
        }
        Ok(told)
    }

    /// Commands as they go out: a configuration gets its body now.
    pub async fn with_bodies(
        &self,
        node_id: &NodeId,
        commands: Vec<(aegis_types::ids::CommandId, Command)>,
    ) -> Result<Vec<(aegis_types::ids::CommandId, Command)>> {
        let mut sent = Vec::with_capacity(commands.len());
        for (command_id, command) in commands {
            let command = match command {
                Command::PushConfig { .. } => {
                    let MergedConfig { json, version } = self.merged_config(node_id).await?;
                    Command::PushConfig { version, body: json.to_string().into_bytes() }
                }
                plain => plain,
            };
            sent.push((command_id, command));
        }
        Ok(sent)
    }
}

/// From the lowest to the highest.
fn scopes_of(node_id: &NodeId, tenant: Option<TenantSlug>) -> Vec<Scope> {
    let mut scopes = vec![Scope::Global];
    scopes.extend(tenant.map(Scope::Tenant));
    scopes.push(Scope::Node(node_id.clone()));
    scopes
}

/// The version that a caller has seen must be the one there is.
fn expect(scope: &Scope, known: Option<&ConfigSnapshot>, if_version: Option<&str>) -> Result<()> {
    let known = known.map(|layer| layer.version.as_str());
    match if_version {
        Some(expected) if known != Some(expected) => Err(Error::new(
            ErrorCode::Conflict,
            format!(
                "the layer {scope} is at version {}, not {}",
                known.unwrap_or("none"),
                aegis_types::text::shown(expected)
            ),
        )
        .remedy("read the layer again and change that")),
        _ => Ok(()),
    }
}
