//! Database with one schema, typed write commands, and a single writer.
//!
//! Tasks: one writer task owns all writes. It runs all queued commands in one transaction and answers after the commit.
//! Acknowledged writes are therefore durable, and a burst costs one `fsync`. Reads use a separate small pool. SQL is
//! used only in this crate.
//!
//! Not supported on purpose: PostgreSQL (`postgres://` is rejected by name; schema and SQL already keep to the common
//! subset). A replicated log is not supported either, though typed commands would permit it.

mod access;
mod agents;
mod audit;
mod changed;
mod config;
mod deliveries;
mod deployments;
mod execution_writes;
mod executions;
mod insertion;
mod nodes;
mod rollouts;
mod secrets;
mod write;

use std::{path::Path, sync::Arc};

use aegis_fs::DataDirectory;
use aegis_types::error::{Error, ErrorCode, Result};
use sqlx::{
    AnyConnection, AnyPool, Connection as _, Executor as _, Row as _, SqlStr,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};
use tokio::sync::{mpsc, oneshot};

pub use access::{AccessTokenRow, AccessWrite};
pub use agents::{AgentRow, AgentWrite};
pub use audit::{AuditRow, AuditWrite};
pub use config::{ConfigWrite, NodeConfigAssignment, RuntimeRegistryAssignment};
pub use deliveries::Delivery;
pub use deployments::{DeploymentRow, HostRow};
pub use execution_writes::ExecutionWrite;
pub use nodes::TokenRecord;
pub use rollouts::RolloutRow;
pub use secrets::{SecretRow, SecretWrite};
pub use write::Write;

/// Concurrent readers. SQLite reads a few thousand rows a second on one connection; more connections only cost memory.
const READ_CONNECTIONS_MAX: u32 = 4;
/// Queued writes. A full queue makes callers wait, which is the back-pressure.
const WRITE_QUEUE_MAX: usize = 1024;
/// Writes that share one transaction.
const WRITE_BATCH_MAX: usize = 256;

type Answer = oneshot::Sender<Result<u64>>;

/// Handle on the database, cheap to clone.
#[derive(Clone)]
pub struct Store {
    read: AnyPool,
    writes: mpsc::Sender<(Write, Answer)>,
    // Held so that the data directory stays locked as long as any handle lives.
    _owner: Arc<DataDirectory>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens `aegis.db` in a data directory that the caller owns, and brings its schema up to date.
    pub async fn open(owner: Arc<DataDirectory>) -> Result<Self> {
        sqlx::any::install_default_drivers();
        // Created before SQLite does: SQLite gives its other files the same modes.
        let path = owner.private_file("aegis.db")?;
        let url = url::Url::from_file_path(&path)
            .map_err(|()| Error::new(ErrorCode::Storage, format!("{} is not absolute", path.display())))?;
        let options = format!("sqlite://{}?mode=rwc", url.path())
            .parse::<AnyConnectOptions>()
            .map_err(|e| failed(&path, e))?;
        let pool = |connections: u32| {
            AnyPoolOptions::new()
                .max_connections(connections)
                // The connection is to a file: a test query before each use would only cost a turn of its thread.
                .test_before_acquire(false)
                .after_connect(|connection, _| Box::pin(set_up(connection)))
        };
        // A pool retries a connection that cannot be set up for 30 seconds. One connection fails at once.
        let mut first = AnyConnection::connect_with(&options).await.map_err(|e| open_failed(&path, e))?;
        set_up(&mut first).await.map_err(|e| open_failed(&path, e))?;
        first.close().await.map_err(|e| open_failed(&path, e))?;
        let write_pool = pool(1).connect_with(options.clone()).await.map_err(|e| open_failed(&path, e))?;
        migrations().run(&write_pool).await.map_err(|error| match error {
            MigrateError::Execute(error) if is_damaged(&error) => open_failed(&path, error),
            error => {
                let what = format!("the schema of {} cannot be used: {error}", path.display());
                Error::new(ErrorCode::Storage, what)
                    .remedy("start the version of aegis that wrote it, or a newer one")
            }
        })?;
        let read =
            pool(READ_CONNECTIONS_MAX).connect_with(options).await.map_err(|e| open_failed(&path, e))?;
        let (writes, queue) = mpsc::channel(WRITE_QUEUE_MAX);
        tokio::spawn(write_loop(write_pool, queue));
        Ok(Self { read, writes, _owner: owner })
    }

    /// Runs one command and returns the number of changed rows, once the change is durable. Returns 0 if the command's
    /// condition does not hold.
    pub async fn write(&self, write: Write) -> Result<u64> {
        let stopped = || Error::new(ErrorCode::Storage, "the database is closed");
        let (answer, answered) = oneshot::channel();
        self.writes.send((write, answer)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    pub async fn meta(&self, name: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT value FROM meta WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        row.map(|row| row.try_get("value").map_err(read_failed)).transpose()
    }

    /// Checks that the database answers.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.read).await.map(drop).map_err(read_failed)
    }
}

fn migrations() -> Migrator {
    let simple = |version, name: &'static str, sql| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    };
    Migrator::with_migrations(vec![
        simple(1, "init", include_str!("migrations/0001_init.sql")),
        simple(2, "config", include_str!("migrations/0002_config.sql")),
        simple(3, "enrolment", include_str!("migrations/0003_enrolment.sql")),
        simple(4, "secrets", include_str!("migrations/0004_secrets.sql")),
        simple(5, "rollouts", include_str!("migrations/0005_rollouts.sql")),
        simple(6, "attempts", include_str!("migrations/0006_attempts.sql")),
        simple(7, "agents", include_str!("migrations/0007_agents.sql")),
        simple(8, "access", include_str!("migrations/0008_access.sql")),
        simple(20, "acknowledged", include_str!("migrations/0020_acknowledged.sql")),
        simple(21, "bound_tags", include_str!("migrations/0021_bound_tags.sql")),
        simple(22, "execution_columns", include_str!("migrations/0022_execution_columns.sql")),
        simple(23, "revoked_keys", include_str!("migrations/0023_revoked_keys.sql")),
        simple(24, "bound_size", include_str!("migrations/0024_bound_size.sql")),
        simple(25, "labels", include_str!("migrations/0025_labels.sql")),
        simple(26, "retries", include_str!("migrations/0026_retries.sql")),
        simple(27, "dependencies", include_str!("migrations/0027_dependencies.sql")),
        simple(28, "callers", include_str!("migrations/0028_callers.sql")),
        simple(29, "folded_reads", include_str!("migrations/0029_folded_reads.sql")),
        simple(31, "usage", include_str!("migrations/0031_usage.sql")),
        simple(32, "hooks", include_str!("migrations/0032_hooks.sql")),
    ])
}

/// Runs writes until the last handle is dropped.
async fn write_loop(pool: AnyPool, mut queue: mpsc::Receiver<(Write, Answer)>) {
    let mut batch = Vec::with_capacity(WRITE_BATCH_MAX);
    while queue.recv_many(&mut batch, WRITE_BATCH_MAX).await > 0 {
        let (writes, answers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let results = match commit(&pool, &writes).await {
            Ok(changed) => changed.into_iter().map(Ok).collect(),
            // Retries each write by itself, so that only the bad write fails.
            Err(_) if writes.len() > 1 => {
                let mut results = Vec::with_capacity(writes.len());
                for write in &writes {
                    results.push(commit(&pool, std::slice::from_ref(write)).await.map(|rows| rows[0]));
                }
                results
            }
            Err(error) => vec![Err(error)],
        };
        for (answer, result) in answers.into_iter().zip(results) {
            if let Err(error) = &result {
                tracing::error!(error = %error.chain(), "a write failed");
            }
            // The caller may be gone; the write stands anyway.
            let _ = answer.send(result);
        }
    }
}

/// Runs writes in one transaction, which is atomic.
///
/// After a failure the state of the connection is unknown. A full disk ends SQLite's transaction in some places and
/// leaves it open in others. A later "commit" inside an open transaction would be acknowledged and lost. The connection
/// is therefore never used again.
async fn commit(pool: &AnyPool, writes: &[Write]) -> Result<Vec<u64>> {
    let failed = |e: sqlx::Error| {
        Error::new(ErrorCode::Storage, "the database did not take a write")
            .remedy("look for a full disk or a missing permission on the data directory")
            .source(e)
    };
    let mut connection = pool.acquire().await.map_err(failed)?;
    match transact(&mut connection, writes).await {
        Ok(changed) => Ok(changed),
        Err(error) => {
            if let Err(error) = connection.close().await {
                tracing::debug!(%error, "the failed connection did not close in order");
            }
            Err(failed(error))
        }
    }
}

async fn transact(connection: &mut AnyConnection, writes: &[Write]) -> Result<Vec<u64>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let mut changed = Vec::with_capacity(writes.len());
    for write in writes {
        changed.push(write.run(&mut transaction).await?);
    }
    transaction.commit().await?;
    Ok(changed)
}

fn failed(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorCode::Storage, format!("the database {} cannot be opened", path.display()))
        .remedy("check the directory's permissions and free space")
        .source(error)
}

/// Returns the reason why the database cannot be opened.
fn open_failed(path: &Path, error: sqlx::Error) -> Error {
    if !is_damaged(&error) {
        return failed(path, error);
    }
    let what = format!("{} is damaged or no database of aegis", path.display());
    Error::new(ErrorCode::Storage, what)
        .remedy("put a backup of the data directory there, or start with another one (--data-dir)")
        .source(error)
}

/// Returns `true` for SQLITE_CORRUPT and SQLITE_NOTADB (<https://www.sqlite.org/rescode.html>).
fn is_damaged(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "11" || code == "26")
}

async fn set_up(connection: &mut AnyConnection) -> sqlx::Result<()> {
    for pragma in [
        "PRAGMA busy_timeout = 5000",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA cache_size = -2000",
    ] {
        connection.execute(pragma).await?;
    }
    Ok(())
}

fn read_failed(error: sqlx::Error) -> Error {
    Error::new(ErrorCode::Storage, "the database did not answer a read").source(error)
}

/// Returns the error for a stored value that this version cannot read.
fn unreadable(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Storage, format!("the database holds an unreadable {what}: {error}"))
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn from_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| unreadable(what, e))
}

fn from_name<T: serde::de::DeserializeOwned>(what: &str, name: String) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(name)).map_err(|e| unreadable(what, e))
}

#[cfg(test)]
mod tests;
