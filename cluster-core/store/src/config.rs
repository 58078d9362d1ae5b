//! Stored configuration layers and the assignments of nodes.

use aegis_config::layers::{ConfigSnapshot, Scope};
use aegis_types::{
    error::Result,
    ids::{NodeId, TenantSlug},
};
use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use super::{Store, from_json, read_failed, to_json};
use crate::changed::done;

/// Configuration that a node should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfigAssignment {
    pub node_id: NodeId,
    /// Tenant whose layer is between the global layer and the node's own.
    pub tenant: Option<TenantSlug>,
    pub config_version: String,
    pub assigned_at_ms: i64,
}

/// Runtimes that a node should offer, as it registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeRegistryAssignment {
    pub node_id: NodeId,
    pub runtimes: Vec<String>,
    pub assigned_at_ms: i64,
}

/// Writes of this module.
#[derive(Debug, Clone)]
pub enum ConfigWrite {
    /// Replaces a layer, only if the expected version matches.
    PutLayer {
        layer: ConfigSnapshot,
        if_version: Option<String>,
        now_ms: i64,
    },
    DeleteLayer {
        scope: Scope,
        if_version: Option<String>,
    },
    /// Creates both assignments at registration. For a known node only the runtimes change.
    Register {
        node_id: NodeId,
        config_version: String,
        runtimes: Vec<String>,
        now_ms: i64,
    },
    AssignTenant {
        node_id: NodeId,
        tenant: Option<TenantSlug>,
        now_ms: i64,
    },
    AssignVersion {
        node_id: NodeId,
        config_version: String,
        now_ms: i64,
    },
}

impl ConfigWrite {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Result<u64, sqlx::Error> {
        match self {
            Self::PutLayer { layer, if_version, now_ms } => {
                let sql = match if_version {
                    Some(_) => {
                        "UPDATE config_layers SET json = $2, version = $3, updated_at_ms = $4
                         WHERE scope = $1 AND version = $5"
                    }
                    None => {
                        "INSERT INTO config_layers (scope, json, version, updated_at_ms)
                         VALUES ($1, $2, $3, $4) ON CONFLICT (scope) DO UPDATE SET
                         json = excluded.json, version = excluded.version,
                         updated_at_ms = excluded.updated_at_ms"
                    }
                };
                let mut query = sqlx::query(sql)
                    .bind(layer.scope.to_string())
                    .bind(layer.json.to_string())
                    .bind(&layer.version)
                    .bind(*now_ms);
                if let Some(version) = if_version {
                    query = query.bind(version);
                }
                done(query, to).await
            }
            Self::DeleteLayer { scope, if_version } => {
                let sql = "DELETE FROM config_layers WHERE scope = $1 AND version = COALESCE($2, version)";
                done(sqlx::query(sql).bind(scope.to_string()).bind(if_version.clone()), to).await
            }
            Self::Register { node_id, config_version, runtimes, now_ms } => {
                let sql = "INSERT INTO node_assignments (node_id, config_version, config_assigned_at_ms,
                         runtimes, runtimes_assigned_at_ms) VALUES ($1, $2, $3, $4, $3)
                     ON CONFLICT (node_id) DO UPDATE SET runtimes = excluded.runtimes,
                         runtimes_assigned_at_ms = excluded.runtimes_assigned_at_ms
                     WHERE node_assignments.runtimes <> excluded.runtimes";
                let query = sqlx::query(sql)
                    .bind(node_id.as_str())
                    .bind(config_version)
                    .bind(*now_ms)
                    .bind(to_json(runtimes));
                done(query, to).await
            }
            Self::AssignTenant { node_id, tenant, now_ms } => {
                let sql = "UPDATE node_assignments SET tenant = $1, config_assigned_at_ms = $2
                     WHERE node_id = $3";
                let tenant = tenant.as_ref().map(|slug| slug.as_str().to_owned());
                done(sqlx::query(sql).bind(tenant).bind(*now_ms).bind(node_id.as_str()), to).await
            }
            Self::AssignVersion { node_id, config_version, now_ms } => {
                let sql = "UPDATE node_assignments SET config_version = $1, config_assigned_at_ms = $2
                     WHERE node_id = $3 AND config_version <> $1";
                done(sqlx::query(sql).bind(config_version).bind(*now_ms).bind(node_id.as_str()), to).await
            }
        }
    }
}

impl Store {
    /// Returns all layers, by scope.
    pub async fn config_layers(&self) -> Result<Vec<ConfigSnapshot>> {
        let rows = sqlx::query("SELECT scope, json, version FROM config_layers ORDER BY scope")
            .fetch_all(&self.read)
            .await
            .map_err(read_failed)?;
        rows.iter().map(layer).collect()
    }

    pub async fn config_layer(&self, scope: &Scope) -> Result<Option<ConfigSnapshot>> {
        let row = sqlx::query("SELECT scope, json, version FROM config_layers WHERE scope = $1")
            .bind(scope.to_string())
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        row.as_ref().map(layer).transpose()
    }

    /// Returns the assignments of a node; `None` for a node that has never registered.
    pub async fn assignment(
        &self,
        node_id: &NodeId,
    ) -> Result<Option<(NodeConfigAssignment, RuntimeRegistryAssignment)>> {
        let row = sqlx::query("SELECT * FROM node_assignments WHERE node_id = $1")
            .bind(node_id.as_str())
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        row.as_ref().map(assignment).transpose()
    }
}

fn layer(row: &AnyRow) -> Result<ConfigSnapshot> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    Ok(ConfigSnapshot {
        scope: text("scope")?.parse()?,
        json: from_json("configuration layer", &text("json")?)?,
        version: text("version")?,
    })
}

fn assignment(row: &AnyRow) -> Result<(NodeConfigAssignment, RuntimeRegistryAssignment)> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    let time = |column| row.try_get::<i64, _>(column).map_err(read_failed);
    let node_id = NodeId::parse(text("node_id")?)?;
    let tenant = row.try_get::<Option<String>, _>("tenant").map_err(read_failed)?;
    let config = NodeConfigAssignment {
        node_id: node_id.clone(),
        tenant: tenant.map(TenantSlug::parse).transpose()?,
        config_version: text("config_version")?,
        assigned_at_ms: time("config_assigned_at_ms")?,
    };
    let runtimes = RuntimeRegistryAssignment {
        node_id,
        runtimes: from_json("runtimes", &text("runtimes")?)?,
        assigned_at_ms: time("runtimes_assigned_at_ms")?,
    };
    Ok((config, runtimes))
}
