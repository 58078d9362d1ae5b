//! Row counts of statements, by which a write says whether its condition held.

use sqlx::{Any, Transaction};

pub(super) type Changed = Result<u64, sqlx::Error>;

pub(super) type Query<'q> = sqlx::query::Query<'q, Any, sqlx::any::AnyArguments>;

pub(super) async fn done(query: Query<'_>, to: &mut Transaction<'_, Any>) -> Changed {
    query.execute(&mut **to).await.map(|result| result.rows_affected())
}

/// Converts a counter. The database has only signed numbers, and no counter comes near the limit.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
