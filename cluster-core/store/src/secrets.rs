//! The operator's secrets as they are stored: sealed.

use aegis_types::{error::Result, secret::SecretName};
use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use super::{Store, read_failed, unreadable};
use crate::changed::done;

/// All of a secret but its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    pub name: SecretName,
    pub created_at_ms: i64,
    pub changed_at_ms: i64,
    pub used_at_ms: Option<i64>,
    pub used_for: Option<String>,
}

/// Writes of this file.
#[derive(Debug, Clone)]
pub enum SecretWrite {
    Put {
        name: SecretName,
        sealed: Vec<u8>,
        now_ms: i64,
    },
    Delete {
        name: SecretName,
    },
    /// It was opened, and what for.
    Used {
        name: SecretName,
        purpose: String,
        now_ms: i64,
    },
}

impl SecretWrite {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Result<u64, sqlx::Error> {
        match self {
            Self::Put { name, sealed, now_ms } => {
                let sql = "INSERT INTO secrets (name, sealed, created_at_ms, changed_at_ms)
                     VALUES ($1, $2, $3, $3) ON CONFLICT (name) DO UPDATE SET
                     sealed = excluded.sealed, changed_at_ms = excluded.changed_at_ms";
                done(sqlx::query(sql).bind(name.as_str()).bind(sealed.clone()).bind(*now_ms), to).await
            }
            Self::Delete { name } => {
                done(sqlx::query("DELETE FROM secrets WHERE name = $1").bind(name.as_str()), to).await
            }
            Self::Used { name, purpose, now_ms } => {
                let sql = "UPDATE secrets SET used_at_ms = $1, used_for = $2 WHERE name = $3";
                done(sqlx::query(sql).bind(*now_ms).bind(purpose).bind(name.as_str()), to).await
            }
        }
    }
}

impl Store {
    /// All, by name.
    pub async fn secrets(&self) -> Result<Vec<SecretRow>> {
        let sql =
            "SELECT name, created_at_ms, changed_at_ms, used_at_ms, used_for FROM secrets ORDER BY name";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(row).collect()
    }

    /// With its sealed value.
    pub async fn secret(&self, name: &SecretName) -> Result<Option<(SecretRow, Vec<u8>)>> {
        let found = sqlx::query("SELECT * FROM secrets WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        let Some(found) = found else { return Ok(None) };
        Ok(Some((row(&found)?, found.try_get("sealed").map_err(read_failed)?)))
    }
}

fn row(found: &AnyRow) -> Result<SecretRow> {
    let name: String = found.try_get("name").map_err(read_failed)?;
    Ok(SecretRow {
        name: SecretName::parse(&name).map_err(|error| unreadable("name of a secret", error))?,
        created_at_ms: found.try_get("created_at_ms").map_err(read_failed)?,
        changed_at_ms: found.try_get("changed_at_ms").map_err(read_failed)?,
        used_at_ms: found.try_get("used_at_ms").map_err(read_failed)?,
        used_for: found.try_get("used_for").map_err(read_failed)?,
    })
}
