//! The one task of the log: writes entries in batches and prunes what is old or too much.

use std::{sync::Arc, time::Duration};

use aegis_config::audit::AuditSettings;
use aegis_metrics::Metrics;
use aegis_store::{AuditRow, AuditWrite, Store, Write};
use aegis_types::{
    clock::{Clock, now_ms},
    error::Result,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::reads::Reads;
use crate::clock_watch::ClockWatch;

/// In one commit.
const BATCH_MAX: usize = 256;
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);
/// Entries that one commit deletes, so that other writes need not wait for long.
const PRUNED_TOGETHER_MAX: i64 = 1000;

#[derive(Debug)]
pub(super) enum Order {
    Append(AuditRow),
    /// Reads that are complete. Other reads may stay open meanwhile.
    AppendReads(AuditRow),
    /// Answered once everything before it is written, or lost.
    Flush(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(super) struct Writer {
    store: Store,
    settings: AuditSettings,
    metrics: Metrics,
    reads: Arc<Reads>,
    /// Number of the next entry. Lost entries leave a gap.
    next: i64,
}

impl Writer {
    pub async fn open(
        store: Store,
        settings: AuditSettings,
        metrics: Metrics,
        reads: Arc<Reads>,
    ) -> Result<Self> {
        let next = store.audit_range().await?.map_or(1, |(_, newest)| newest + 1);
        Ok(Self { store, settings, metrics, reads, next })
    }

    /// Until `stop`; then takes what has been ended, and no more.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(PRUNE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut watch = ClockWatch::new(Clock::default());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = orders.recv_many(&mut batch, BATCH_MAX) => match count {
                    0 => return,
                    _ => self.carry_out(&mut batch).await,
                },
                () = self.reads.complete() => {
                    let rows = self.reads.take_complete();
                    self.append(rows).await;
                }
                _ = ticks.tick() => {
                    if watch.look().is_jump() {
                        tracing::warn!("the wall clock jumped: the audit log is not pruned in this round");
                        continue;
                    }
                    if let Err(error) = self.prune(now_ms()).await {
                        tracing::warn!(error = %error.chain(), "the audit log could not be pruned");
                    }
                }
            }
        }
        orders.close();
        while orders.recv_many(&mut batch, BATCH_MAX).await > 0 {
            self.carry_out(&mut batch).await;
        }
        let rows = self.reads.close();
        self.append(rows).await;
    }

    async fn carry_out(&mut self, batch: &mut Vec<Order>) {
        let (mut rows, mut waiting) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut ends_reads = false;
        for order in batch.drain(..) {
            match order {
                Order::Append(row) => {
                    ends_reads = true;
                    rows.push(row);
                }
                Order::AppendReads(row) => rows.push(row),
                Order::Flush(written) => {
                    ends_reads = true;
                    waiting.push(written);
                }
            }
        }
        if ends_reads {
            // The log tells what a caller looked at before it changed something.
            rows.splice(..0, self.reads.take_all());
            rows.sort_by_key(|row| row.at_ms);
        }
        self.append(rows).await;
        for written in waiting {
            // Who asked may have gone.
            let _ = written.send(());
        }
    }

    async fn append(&mut self, rows: Vec<AuditRow>) {
        let rows: Vec<_> = (self.next..).zip(rows).collect();
        self.next += i64::try_from(rows.len()).unwrap_or(0);
        let entries = rows.len();
        if entries > 0
            && let Err(error) = self.store.write(Write::Audit(AuditWrite::Append(rows))).await
        {
            self.metrics.audit_lost(entries as u64);
            tracing::error!(entries, error = %error.chain(), "entries of the audit log are lost");
        }
    }

    pub(super) async fn prune(&self, now_ms: i64) -> Result<()> {
        let Some(range) = self.store.audit_range().await? else { return Ok(()) };
        let age_ms = i64::try_from(self.settings.age.as_millis()).unwrap_or(i64::MAX);
        let newest_old = self.store.audit_newest_before(now_ms.saturating_sub(age_ms)).await?;
        let Some(last) = last_to_go(range, newest_old, i64::from(self.settings.entries)) else {
            return Ok(());
        };
        let mut upto = range.0;
        while upto <= last {
            upto = last.saturating_add(1).min(upto.saturating_add(PRUNED_TOGETHER_MAX));
            self.store.write(Write::Audit(AuditWrite::Forget { before: upto })).await?;
        }
        tracing::info!(upto = last, "old entries of the audit log go");
        Ok(())
    }
}

/// The newest sequence that neither age nor number keeps. Pure.
fn last_to_go((oldest, newest): (i64, i64), newest_old: Option<i64>, entries_max: i64) -> Option<i64> {
    let by_number = newest.saturating_sub(entries_max);
    let last = newest_old.unwrap_or(i64::MIN).max(by_number);
    (last >= oldest).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_and_number_are_each_a_bound() {
        assert_eq!(last_to_go((1, 10), None, 10), None);
        assert_eq!(last_to_go((1, 10), None, 9), Some(1));
        assert_eq!(last_to_go((1, 10), Some(4), 9), Some(4));
        assert_eq!(last_to_go((1, 10), Some(4), 2), Some(8));
        assert_eq!(last_to_go((5, 10), None, 6), None);
        assert_eq!(last_to_go((5, 10), Some(10), 100), Some(10));
    }
}
