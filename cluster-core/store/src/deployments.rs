//! Deployments and approved hosts: rows whose content belongs to `deploy/`.

use aegis_types::{error::Result, ids::DeploymentId};
use sqlx::{Row as _, any::AnyRow};

use super::{Store, read_failed};

/// A deployment: what is searched for as columns, the rest as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentRow {
    pub deployment_id: DeploymentId,
    pub host: String,
    pub state: String,
    pub record: String,
    pub created_at_ms: i64,
    pub idempotency_key: Option<String>,
}

/// A host that a person admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    pub host: String,
    pub port: u16,
    pub record: String,
}

impl Store {
    pub async fn deployment(&self, deployment_id: &DeploymentId) -> Result<Option<DeploymentRow>> {
        let sql = "SELECT * FROM deployments WHERE deployment_id = $1";
        let row = sqlx::query(sql).bind(deployment_id.as_str()).fetch_optional(&self.read).await;
        row.map_err(read_failed)?.as_ref().map(deployment).transpose()
    }

    pub async fn deployment_by_key(&self, idempotency_key: &str) -> Result<Option<DeploymentRow>> {
        let sql = "SELECT * FROM deployments WHERE idempotency_key = $1";
        let row = sqlx::query(sql).bind(idempotency_key).fetch_optional(&self.read).await;
        row.map_err(read_failed)?.as_ref().map(deployment).transpose()
    }

    /// The newest deployments, newest first, and how many there are in all.
    pub async fn list_deployments(
        &self,
        state: Option<&str>,
        host: Option<&str>,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<DeploymentRow>, u64)> {
        let sql = "SELECT * FROM deployments WHERE ($1 IS NULL OR state = $1) AND ($2 IS NULL OR host = $2)
             ORDER BY created_at_ms DESC, deployment_id DESC LIMIT $3 OFFSET $4";
        let rows = sqlx::query(sql)
            .bind(state)
            .bind(host)
            .bind(i64::from(limit))
            .bind(i64::from(offset))
            .fetch_all(&self.read)
            .await
            .map_err(read_failed)?;
        let sql = "SELECT COUNT(*) AS total FROM deployments
             WHERE ($1 IS NULL OR state = $1) AND ($2 IS NULL OR host = $2)";
        let total =
            sqlx::query(sql).bind(state).bind(host).fetch_one(&self.read).await.map_err(read_failed)?;
        let total = total.try_get::<i64, _>("total").map_err(read_failed)?;
        let rows = rows.iter().map(deployment).collect::<Result<_>>()?;
        Ok((rows, u64::try_from(total).unwrap_or(0)))
    }

    pub async fn deployments_in_state(&self, state: &str) -> Result<Vec<DeploymentRow>> {
        let sql = "SELECT * FROM deployments WHERE state = $1 ORDER BY created_at_ms, deployment_id";
        let rows = sqlx::query(sql).bind(state).fetch_all(&self.read).await;
        rows.map_err(read_failed)?.iter().map(deployment).collect()
    }

    pub async fn approved_host(&self, host: &str, port: u16) -> Result<Option<HostRow>> {
        let sql = "SELECT * FROM approved_hosts WHERE host = $1 AND port = $2";
        let row = sqlx::query(sql).bind(host).bind(i64::from(port)).fetch_optional(&self.read).await;
        row.map_err(read_failed)?.as_ref().map(approved).transpose()
    }

    pub async fn approved_hosts(&self) -> Result<Vec<HostRow>> {
        let rows =
            sqlx::query("SELECT * FROM approved_hosts ORDER BY host, port").fetch_all(&self.read).await;
        rows.map_err(read_failed)?.iter().map(approved).collect()
    }
}

fn deployment(row: &AnyRow) -> Result<DeploymentRow> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    Ok(DeploymentRow {
        deployment_id: DeploymentId::parse(text("deployment_id")?)?,
        host: text("host")?,
        state: text("state")?,
        record: text("record")?,
        created_at_ms: row.try_get("created_at_ms").map_err(read_failed)?,
        idempotency_key: row.try_get("idempotency_key").map_err(read_failed)?,
    })
}

fn approved(row: &AnyRow) -> Result<HostRow> {
    let port = row.try_get::<i64, _>("port").map_err(read_failed)?;
    Ok(HostRow {
        host: row.try_get("host").map_err(read_failed)?,
        port: u16::try_from(port).map_err(|e| super::unreadable("port", e))?,
        record: row.try_get("record").map_err(read_failed)?,
    })
}
