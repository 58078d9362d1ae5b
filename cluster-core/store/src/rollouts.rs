//! Rollouts: rows whose content belongs to `deploy/rollout`.

use aegis_types::{error::Result, ids::RolloutId};
use sqlx::{Row as _, any::AnyRow};

use super::{Store, read_failed};

/// A rollout: what is searched for as columns, the rest as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRow {
    pub rollout_id: RolloutId,
    pub state: String,
    pub record: String,
    pub created_at_ms: i64,
    pub idempotency_key: Option<String>,
}

impl Store {
    pub async fn rollout(&self, rollout_id: &RolloutId) -> Result<Option<RolloutRow>> {
        let sql = "SELECT * FROM rollouts WHERE rollout_id = $1";
        let row = sqlx::query(sql).bind(rollout_id.as_str()).fetch_optional(&self.read).await;
        row.map_err(read_failed)?.as_ref().map(rollout).transpose()
    }

    pub async fn rollout_by_key(&self, idempotency_key: &str) -> Result<Option<RolloutRow>> {
        let sql = "SELECT * FROM rollouts WHERE idempotency_key = $1";
        let row = sqlx::query(sql).bind(idempotency_key).fetch_optional(&self.read).await;
        row.map_err(read_failed)?.as_ref().map(rollout).transpose()
    }

    /// Newest first.
    pub async fn list_rollouts(&self, limit: u32) -> Result<Vec<RolloutRow>> {
        let sql = "SELECT * FROM rollouts ORDER BY created_at_ms DESC, rollout_id DESC LIMIT $1";
        let rows = sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.read).await;
        rows.map_err(read_failed)?.iter().map(rollout).collect()
    }

    pub async fn rollouts_in_state(&self, state: &str) -> Result<Vec<RolloutRow>> {
        let sql = "SELECT * FROM rollouts WHERE state = $1 ORDER BY created_at_ms, rollout_id";
        let rows = sqlx::query(sql).bind(state).fetch_all(&self.read).await;
        rows.map_err(read_failed)?.iter().map(rollout).collect()
    }
}

fn rollout(row: &AnyRow) -> Result<RolloutRow> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    Ok(RolloutRow {
        rollout_id: RolloutId::parse(text("rollout_id")?)?,
        state: text("state")?,
        record: text("record")?,
        created_at_ms: row.try_get("created_at_ms").map_err(read_failed)?,
        idempotency_key: row.try_get("idempotency_key").map_err(read_failed)?,
    })
}
