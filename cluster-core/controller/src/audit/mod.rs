//! The audit log: every call of a tool, and every call over REST or gRPC that changes something.
//!
//! A call is begun ([`Audit::begin`]) before it acts and ended with its result. If the caller leaves before the end, the
//! entry says `abandoned`, although the work may go on. Entries are written in batches after the answer. A database that
//! refuses them fails no call, and lost entries are counted and logged. Readers wait for calls that ended before they
//! asked.
//!
//! Tasks: one, which writes entries, and deletes old ones by age and number every ten minutes.
//!
//! Successful reads are counted, not written one by one (see [`reads`]).
//!
//! Absent on purpose: values of secrets (see `redact`), calls that were refused for their token (their caller is not
//! known), and reading over REST.

mod reads;
mod record;
mod redact;
mod writer;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use aegis_config::audit::AuditSettings;
use aegis_metrics::Metrics;
use aegis_store::{AuditRow, Store};
use aegis_types::{
    audit::AuditQuery,
    caller::Actor,
    clock::now_ms,
    error::{ErrorCode, Result},
};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::{
    reads::{Key, Reads},
    writer::Order,
};

pub use self::record::{AuditView, Client};

/// Ended and not yet taken by the writer. Beyond it callers wait for the disk.
const WAITING_MAX: usize = 4096;
const ACTION_CHARS_MAX: usize = 200;

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct Audit {
    store: Store,
    orders: mpsc::Sender<Order>,
    reads: Arc<Reads>,
    metrics: Metrics,
}

/// A call that is about to act.
#[derive(Debug, Clone)]
pub struct Call {
    pub actor: Actor,
    pub client: Option<Client>,
    /// The tool, or the method and path, or the call of gRPC.
    pub action: String,
    pub arguments: Arguments,
    /// It changes nothing: when it succeeds, it is counted with others like it.
    pub is_read: bool,
}

/// Arguments of a call, without secrets. The parser of the arguments sets them once; later values are ignored.
#[derive(Debug, Clone, Default)]
pub struct Arguments(Arc<OnceLock<String>>);

impl Arguments {
    pub fn note(&self, value: &Value) {
        self.0.get_or_init(|| redact::redacted(value));
    }
}

impl Audit {
    /// Opens the log and starts its task, which ends once `stop` is cancelled and all is written.
    pub async fn start(
        store: Store,
        settings: AuditSettings,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (orders, waiting) = mpsc::channel(WAITING_MAX);
        let reads = Arc::<Reads>::default();
        let writer = writer::Writer::open(store.clone(), settings, metrics.clone(), reads.clone()).await?;
        let written = tokio::spawn(writer.run(waiting, stop));
        Ok((Self { store, orders, reads, metrics }, written))
    }

    pub fn begin(&self, call: Call) -> Pending {
        Pending { begun: Some(Begun { call, at_ms: now_ms(), since: Instant::now() }), audit: self.clone() }
    }

    /// The newest that fit, oldest first.
    pub async fn read(&self, query: &AuditQuery) -> Result<Vec<AuditView>> {
        let (written, wait) = oneshot::channel();
        // Fails only while the daemon ends; what is stored is still told.
        if self.orders.send(Order::Flush(written)).await.is_ok() {
            let _ = wait.await;
        }
        Ok(self.store.audit(query).await?.into_iter().map(AuditView::from).collect())
    }

    fn lost(&self) {
        self.metrics.audit_lost(1);
        tracing::error!("an entry of the audit log is lost: the log is full or closed");
    }
}

#[derive(Debug)]
struct Begun {
    call: Call,
    at_ms: i64,
    since: Instant,
}

impl Begun {
    fn key(&self) -> Key {
        let Call { actor, client, action, .. } = &self.call;
        Key { actor: actor.clone(), client: client.clone(), action: action.clone() }
    }

    fn ended(self, result: &'static str) -> AuditRow {
        let Call { actor, client, action, arguments, .. } = self.call;
        AuditRow {
            at_ms: self.at_ms,
            door: actor.door,
            who: actor.identity.to_string(),
            client: client.map(|client| client.to_string()),
            action: redact::line(&action, ACTION_CHARS_MAX),
            arguments: arguments.0.get().cloned(),
            result: result.to_owned(),
            duration_ms: i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX),
            calls: 1,
            last_at_ms: None,
        }
    }
}

/// A call that has begun. Dropped without an end, its caller has left.
#[derive(Debug)]
#[must_use = "a call that is dropped at once is written down as abandoned"]
pub struct Pending {
    begun: Option<Begun>,
    audit: Audit,
}

impl Pending {
    /// `failure` is the code of the error that the caller got.
    pub async fn end(mut self, failure: Option<ErrorCode>) {
        let Some(begun) = self.begun.take() else { return };
        let key = (begun.call.is_read && failure.is_none()).then(|| begun.key());
        let row = begun.ended(failure.map_or(record::OK, ErrorCode::name));
        let order = match key {
            Some(key) => self.audit.reads.count(key, row).map(Order::AppendReads),
            None => Some(Order::Append(row)),
        };
        let Some(order) = order else { return };
        if self.audit.orders.send(order).await.is_err() {
            self.audit.lost();
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        if self.audit.orders.try_send(Order::Append(begun.ended(record::ABANDONED))).is_err() {
            self.audit.lost();
        }
    }
}

#[cfg(test)]
mod tests;
