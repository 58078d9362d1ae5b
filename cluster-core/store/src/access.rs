//! Access tokens as they are stored: by the hash of their value.

use aegis_types::{error::Result, ids::AccessTokenName, scope::Scope, text::to_name};
use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use super::{Store, from_name, read_failed, unreadable};
use crate::changed::done;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessTokenRow {
    pub name: AccessTokenName,
    /// SHA-256.
    pub value_hash: [u8; 32],
    pub scope: Scope,
    pub created_at_ms: i64,
    pub expires_at_ms: i64,
    pub used_at_ms: Option<i64>,
}

/// Writes of this file.
#[derive(Debug, Clone)]
pub enum AccessWrite {
    Create(AccessTokenRow),
    Revoke { name: AccessTokenName },
    Used { name: AccessTokenName, at_ms: i64 },
}

impl AccessWrite {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Result<u64, sqlx::Error> {
        match self {
            Self::Create(row) => {
                let sql = "INSERT INTO access_tokens (name, value_hash, scope, created_at_ms, expires_at_ms)
                     VALUES ($1, $2, $3, $4, $5)";
                let query = sqlx::query(sql)
                    .bind(row.name.as_str())
                    .bind(row.value_hash.to_vec())
                    .bind(to_name(&row.scope))
                    .bind(row.created_at_ms)
                    .bind(row.expires_at_ms);
                done(query, to).await
            }
            Self::Revoke { name } => {
                done(sqlx::query("DELETE FROM access_tokens WHERE name = $1").bind(name.as_str()), to).await
            }
            Self::Used { name, at_ms } => {
                let sql = "UPDATE access_tokens SET used_at_ms = $1 WHERE name = $2";
                done(sqlx::query(sql).bind(*at_ms).bind(name.as_str()), to).await
            }
        }
    }
}

impl Store {
    pub async fn access_tokens(&self) -> Result<Vec<AccessTokenRow>> {
        let rows = sqlx::query("SELECT * FROM access_tokens").fetch_all(&self.read).await;
        rows.map_err(read_failed)?.iter().map(row).collect()
    }
}

fn row(found: &AnyRow) -> Result<AccessTokenRow> {
    let name: String = found.try_get("name").map_err(read_failed)?;
    let value_hash: Vec<u8> = found.try_get("value_hash").map_err(read_failed)?;
    Ok(AccessTokenRow {
        name: AccessTokenName::parse(name).map_err(|error| unreadable("name of a token", error))?,
        value_hash: value_hash
            .try_into()
            .map_err(|_| unreadable("hash of a token", "it has not 32 bytes"))?,
        scope: from_name("scope", found.try_get("scope").map_err(read_failed)?)?,
        created_at_ms: found.try_get("created_at_ms").map_err(read_failed)?,
        expires_at_ms: found.try_get("expires_at_ms").map_err(read_failed)?,
        used_at_ms: found.try_get("used_at_ms").map_err(read_failed)?,
    })
}
