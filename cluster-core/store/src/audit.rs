//! The audit log: entries are appended and forgotten, and never changed.

use std::sync::LazyLock;

use aegis_types::{audit::AuditQuery, caller::Door, error::Result, text::to_name};
use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use super::{Store, from_name, insertion::Insertion, read_failed};
use crate::changed::{Changed, Query, done};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    pub at_ms: i64,
    pub door: Door,
    pub who: String,
    pub client: Option<String>,
    pub action: String,
    pub arguments: Option<String>,
    pub result: String,
    pub duration_ms: i64,
    /// Reads that the entry stands for.
    pub calls: i64,
    /// When the last of several began.
    pub last_at_ms: Option<i64>,
}

static INSERTION: LazyLock<Insertion> = LazyLock::new(|| {
    let columns = [
        "sequence",
        "at_ms",
        "door",
        "who",
        "client",
        "action",
        "arguments",
        "result",
        "duration_ms",
        "calls",
        "last_at_ms",
    ];
    Insertion::new("audit", &columns, 64, "")
});

/// Writes of this file.
#[derive(Debug, Clone)]
pub enum AuditWrite {
    /// Each with its sequence.
    Append(Vec<(i64, AuditRow)>),
    /// Entries of a smaller sequence.
    Forget { before: i64 },
}

impl AuditWrite {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Changed {
        match self {
            Self::Append(rows) => append(rows, to).await,
            Self::Forget { before } => {
                done(sqlx::query("DELETE FROM audit WHERE sequence < $1").bind(*before), to).await
            }
        }
    }
}

async fn append(rows: &[(i64, AuditRow)], to: &mut Transaction<'_, Any>) -> Changed {
    let bind = |query: Query<'static>, (sequence, row): &(i64, AuditRow)| {
        query
            .bind(*sequence)
            .bind(row.at_ms)
            .bind(to_name(&row.door))
            .bind(row.who.clone())
            .bind(row.client.clone())
            .bind(row.action.clone())
            .bind(row.arguments.clone())
            .bind(row.result.clone())
            .bind(row.duration_ms)
            .bind(row.calls)
            .bind(row.last_at_ms)
    };
    INSERTION.run(rows, bind, to).await
}

impl Store {
    /// The newest that fit, oldest first.
    pub async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditRow>> {
        let sql = "SELECT * FROM audit WHERE at_ms >= $1 AND ($2 IS NULL OR action = $2)
             ORDER BY sequence DESC LIMIT $3";
        let rows = sqlx::query(sql)
            .bind(query.since_ms.unwrap_or(0))
            .bind(query.action.clone())
            .bind(i64::from(query.limit))
            .fetch_all(&self.read)
            .await
            .map_err(read_failed)?;
        rows.iter().rev().map(row).collect()
    }

    /// The oldest sequence and the newest.
    pub async fn audit_range(&self) -> Result<Option<(i64, i64)>> {
        let row = sqlx::query("SELECT MIN(sequence) AS oldest, MAX(sequence) AS newest FROM audit")
            .fetch_one(&self.read)
            .await
            .map_err(read_failed)?;
        let oldest: Option<i64> = row.try_get("oldest").map_err(read_failed)?;
        let newest: Option<i64> = row.try_get("newest").map_err(read_failed)?;
        Ok(oldest.zip(newest))
    }

    /// The newest sequence of those begun before.
    pub async fn audit_newest_before(&self, at_ms: i64) -> Result<Option<i64>> {
        let row = sqlx::query("SELECT MAX(sequence) AS newest FROM audit WHERE at_ms < $1")
            .bind(at_ms)
            .fetch_one(&self.read)
            .await
            .map_err(read_failed)?;
        row.try_get("newest").map_err(read_failed)
    }
}

fn row(found: &AnyRow) -> Result<AuditRow> {
    Ok(AuditRow {
        at_ms: found.try_get("at_ms").map_err(read_failed)?,
        door: from_name("door", found.try_get("door").map_err(read_failed)?)?,
        who: found.try_get("who").map_err(read_failed)?,
        client: found.try_get("client").map_err(read_failed)?,
        action: found.try_get("action").map_err(read_failed)?,
        arguments: found.try_get("arguments").map_err(read_failed)?,
        result: found.try_get("result").map_err(read_failed)?,
        duration_ms: found.try_get("duration_ms").map_err(read_failed)?,
        calls: found.try_get("calls").map_err(read_failed)?,
        last_at_ms: found.try_get("last_at_ms").map_err(read_failed)?,
    })
}
