//! Stored agents.

use aegis_types::{error::Result, ids::AgentName};
use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use super::{Store, read_failed, unreadable};
use crate::changed::done;

/// One version of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    pub name: AgentName,
    pub version: u32,
    /// Digest of the manifest.
    pub digest: String,
    /// JSON.
    pub manifest: String,
    pub created_at_ms: i64,
}

/// Writes of this module.
#[derive(Debug, Clone)]
pub enum AgentWrite {
    /// Adds a version, unless the newest has this digest or a limit is reached.
    Apply {
        name: AgentName,
        digest: String,
        manifest: String,
        now_ms: i64,
        agents_max: u32,
        versions_max: u32,
    },
    /// Deletes one version, or all.
    Delete { name: AgentName, version: Option<u32> },
}

impl AgentWrite {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Result<u64, sqlx::Error> {
        match self {
            Self::Apply { name, digest, manifest, now_ms, agents_max, versions_max } => {
                let sql = "INSERT INTO agents (name, last_version) VALUES ($1, 0) ON CONFLICT DO NOTHING";
                done(sqlx::query(sql).bind(name.as_str()), to).await?;
                let sql = "INSERT INTO agent_versions (name, version, digest, manifest, created_at_ms)
                     SELECT name, last_version + 1, $2, $3, $4 FROM agents WHERE name = $1
                     AND NOT EXISTS (SELECT 1 FROM agent_versions newest WHERE newest.name = $1
                         AND newest.digest = $2 AND newest.version =
                         (SELECT MAX(version) FROM agent_versions WHERE name = $1))
                     AND (SELECT COUNT(*) FROM agent_versions WHERE name = $1) < $5
                     AND (SELECT COUNT(DISTINCT name) FROM agent_versions WHERE name <> $1) < $6";
                let query = sqlx::query(sql)
                    .bind(name.as_str())
                    .bind(digest)
                    .bind(manifest)
                    .bind(*now_ms)
                    .bind(i64::from(*versions_max))
                    .bind(i64::from(*agents_max));
                let created = done(query, to).await?;
                if created > 0 {
                    let sql = "UPDATE agents SET last_version = last_version + 1 WHERE name = $1";
                    done(sqlx::query(sql).bind(name.as_str()), to).await?;
                }
                Ok(created)
            }
            Self::Delete { name, version } => {
                let sql = "DELETE FROM agent_versions WHERE name = $1 AND version = COALESCE($2, version)";
                done(sqlx::query(sql).bind(name.as_str()).bind(version.map(i64::from)), to).await
            }
        }
    }
}

impl Store {
    /// Returns the newest version of each agent, by name.
    pub async fn agents(&self) -> Result<Vec<AgentRow>> {
        let sql = "SELECT * FROM agent_versions one WHERE version =
             (SELECT MAX(version) FROM agent_versions WHERE name = one.name) ORDER BY name";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(row).collect()
    }

    /// Returns a version of an agent, or the newest if `version` is `None`.
    pub async fn agent(&self, name: &AgentName, version: Option<u32>) -> Result<Option<AgentRow>> {
        let sql = "SELECT * FROM agent_versions WHERE name = $1 AND version = COALESCE($2, version)
             ORDER BY version DESC LIMIT 1";
        let found = sqlx::query(sql)
            .bind(name.as_str())
            .bind(version.map(i64::from))
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        found.as_ref().map(row).transpose()
    }

    /// Returns agent names in alphabetical order.
    pub async fn agent_names(&self, limit: u32) -> Result<Vec<AgentName>> {
        let sql = "SELECT DISTINCT name FROM agent_versions ORDER BY name LIMIT $1";
        let rows =
            sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter()
            .map(|row| AgentName::parse(row.try_get::<String, _>("name").map_err(read_failed)?))
            .collect()
    }
}

fn row(row: &AnyRow) -> Result<AgentRow> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    let number = |column| row.try_get::<i64, _>(column).map_err(read_failed);
    Ok(AgentRow {
        name: AgentName::parse(text("name")?)?,
        version: u32::try_from(number("version")?).map_err(|e| unreadable("version", e))?,
        digest: text("digest")?,
        manifest: text("manifest")?,
        created_at_ms: number("created_at_ms")?,
    })
}
