//! Deliveries of ended executions to hooks, as they are stored.

use aegis_types::{
    error::Result,
    execution::record::ExecutionRecord,
    ids::{ExecutionId, HookName},
};
use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use super::{Store, read_failed};
use crate::changed::{Changed, done};

/// Read at a time.
const DUE_MAX: i64 = 64;

/// An end that a hook has not been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub execution_id: ExecutionId,
    pub hook: HookName,
    pub tries: u32,
    pub created_at_ms: i64,
}

impl Store {
    /// Returns deliveries of a hook that are due, the oldest first.
    pub async fn due_deliveries(&self, hook: &HookName, now_ms: i64) -> Result<Vec<Delivery>> {
        let sql = "SELECT execution_id, hook, tries, created_at_ms FROM hook_deliveries
             WHERE hook = $1 AND due_at_ms <= $2 ORDER BY due_at_ms LIMIT $3";
        let query = sqlx::query(sql).bind(hook.as_str()).bind(now_ms).bind(DUE_MAX);
        let rows = query.fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(delivery).collect()
    }

    /// Returns when the next delivery of a hook is due, in Unix milliseconds.
    pub async fn next_delivery(&self, hook: &HookName) -> Result<Option<i64>> {
        let sql = "SELECT due_at_ms FROM hook_deliveries WHERE hook = $1 ORDER BY due_at_ms LIMIT 1";
        let row =
            sqlx::query(sql).bind(hook.as_str()).fetch_optional(&self.read).await.map_err(read_failed)?;
        row.map(|row| row.try_get("due_at_ms").map_err(read_failed)).transpose()
    }
}

fn delivery(row: &AnyRow) -> Result<Delivery> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    let number = |column| row.try_get::<i64, _>(column).map_err(read_failed);
    Ok(Delivery {
        execution_id: ExecutionId::parse(text("execution_id")?)?,
        hook: HookName::parse(text("hook")?)?,
        tries: u32::try_from(number("tries")?).unwrap_or(u32::MAX),
        created_at_ms: number("created_at_ms")?,
    })
}

/// Stores the deliveries of an execution that has ended.
pub(super) async fn insert(
    record: &ExecutionRecord,
    to: &mut Transaction<'_, Any>,
) -> Result<(), sqlx::Error> {
    let Some(ended_at_ms) = record.ended_at_ms.filter(|_| record.state.is_final()) else { return Ok(()) };
    for hook in &record.notify {
        let sql = "INSERT INTO hook_deliveries (execution_id, hook, tries, due_at_ms, created_at_ms)
             VALUES ($1, $2, 0, $3, $3) ON CONFLICT DO NOTHING";
        let query = sqlx::query(sql).bind(record.execution_id.as_str()).bind(hook.as_str()).bind(ended_at_ms);
        done(query, to).await?;
    }
    Ok(())
}

/// Removes a delivery, or notes that it failed once more and when it is tried again.
pub(super) async fn settle(
    delivery: &Delivery,
    due_ms: Option<i64>,
    to: &mut Transaction<'_, Any>,
) -> Changed {
    let (id, hook) = (delivery.execution_id.as_str(), delivery.hook.as_str());
    match due_ms {
        None => {
            let sql = "DELETE FROM hook_deliveries WHERE execution_id = $1 AND hook = $2";
            done(sqlx::query(sql).bind(id).bind(hook), to).await
        }
        Some(due_ms) => {
            let sql = "UPDATE hook_deliveries SET tries = tries + 1, due_at_ms = $1
                 WHERE execution_id = $2 AND hook = $3";
            done(sqlx::query(sql).bind(due_ms).bind(id).bind(hook), to).await
        }
    }
}
