//! Insertions of many rows: the way to the database's thread and back costs more than a row.

use sqlx::{Any, AssertSqlSafe, Transaction};

use crate::changed::{Changed, Query, done};

/// Rows of one statement. There are few lengths, so that each statement is prepared once.
const LENGTHS: [usize; 4] = [64, 32, 8, 1];

/// Statements that insert rows into one table, in groups.
#[derive(Debug)]
pub(super) struct Insertion {
    statements: Vec<(usize, String)>,
}

impl Insertion {
    /// `rows_max`: rows of one statement at most. `conflict`: what follows the values.
    pub fn new(
        table: &'static str,
        columns: &[&'static str],
        rows_max: usize,
        conflict: &'static str,
    ) -> Self {
        let lengths = LENGTHS.into_iter().filter(|length| *length <= rows_max);
        Self { statements: lengths.map(|rows| (rows, statement(table, columns, rows, conflict))).collect() }
    }

    /// Inserts the rows in their order. `bind` binds the columns of one row. Returns the number of inserted rows.
    pub async fn run<R>(
        &'static self,
        rows: &[R],
        bind: impl Fn(Query<'static>, &R) -> Query<'static>,
        to: &mut Transaction<'_, Any>,
    ) -> Changed {
        let (mut rest, mut inserted) = (rows, 0);
        for (length, sql) in &self.statements {
            let groups = rest.chunks_exact(*length);
            rest = groups.remainder();
            for group in groups {
                // Made of names and numbers of this program alone.
                let query = sqlx::query(AssertSqlSafe(sql.as_str()));
                inserted += done(group.iter().fold(query, &bind), to).await?;
            }
        }
        Ok(inserted)
    }
}

/// Returns the statement that inserts `rows` rows.
fn statement(table: &str, columns: &[&str], rows: usize, conflict: &str) -> String {
    let row = |row: usize| {
        let places: Vec<_> =
            (1..=columns.len()).map(|column| format!("${}", row * columns.len() + column)).collect();
        format!("({})", places.join(", "))
    };
    let rows: Vec<_> = (0..rows).map(row).collect();
    format!("INSERT INTO {table} ({}) VALUES {} {conflict}", columns.join(", "), rows.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbered_through_all_rows() {
        let sql = statement("t", &["a", "b"], 2, "ON CONFLICT DO NOTHING");
        assert_eq!(sql, "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4) ON CONFLICT DO NOTHING");
        let lengths =
            |max| Insertion::new("t", &["a"], max, "").statements.iter().map(|s| s.0).collect::<Vec<_>>();
        assert_eq!((lengths(32), lengths(64)), (vec![32, 8, 1], vec![64, 32, 8, 1]));
    }
}
