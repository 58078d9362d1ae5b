//! State shared by the controller's execution tasks. Open executions are keyed by id, and each has a watch channel for
//! readers.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aegis_config::{executions::ExecutionSettings, hooks::Hooks, registries::Logins};
use aegis_metrics::Metrics;
use aegis_rpc::event_encoding;
use aegis_store::{ExecutionWrite, Store, Write};
use aegis_types::{
    clock::now_ms,
    error::{Error, Result},
    execution::{
        lifecycle::{Input, State, Step},
        record::ExecutionRecord,
        view::{EventKind, EventView, ExecutionView},
    },
    ids::{ExecutionId, NodeId},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    callers::{CallerPlace, OpenByCaller},
    exclusion::Exclusion,
    order_cache::OrderCache,
    projection,
};
use crate::{
    agents::Agents, executions::transfer::ContentTransfer, handle::Controller, nodes::NodeConnections,
    secrets::Secrets,
};

/// Message to the placement queue.
#[derive(Debug)]
pub(super) enum QueueMessage {
    Place(Box<ExecutionRecord>),
    /// A caller asked for the end of an execution, which may be waiting.
    Cancelled(ExecutionId),
}

/// An open execution: its view for readers, and the request for its end.
#[derive(Debug)]
pub(super) struct Live {
    pub view: watch::Sender<ExecutionView>,
    pub cancel: watch::Sender<Option<String>>,
    exclusion: Mutex<Exclusion>,
    order_bytes: u64,
    /// Taken out when the execution ends.
    caller: Mutex<Option<CallerPlace>>,
}

impl Live {
    /// Gives the caller's place back, also while others still look at this execution.
    fn leave(&self) {
        self.caller.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Shows readers why an execution waits.
    pub fn tell_waiting(&self, reason: &str) {
        self.view.send_if_modified(|view| {
            let changed = view.waiting.as_deref() != Some(reason);
            view.waiting = Some(reason.to_owned());
            changed
        });
    }

    pub fn exclusion(&self) -> MutexGuard<'_, Exclusion> {
        self.exclusion.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parts of the controller that executions use.
#[derive(Debug)]
pub struct ExecutionContext {
    pub store: Store,
    pub agents: Agents,
    pub controller: Controller,
    pub nodes: NodeConnections,
    pub secrets: Secrets,
    /// Logins at private registries.
    pub logins: Logins,
    pub settings: ExecutionSettings,
    pub hooks: Hooks,
    pub metrics: Metrics,
    pub stop: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Shared {
    context: ExecutionContext,
    pub sending: ContentTransfer,
    open: Mutex<HashMap<ExecutionId, Arc<Live>>>,
    /// Nodes that failed an execution through their own fault and have not started another since.
    faulty: Mutex<HashSet<NodeId>>,
    open_bytes: AtomicU64,
    pub orders: OrderCache,
    pub callers: OpenByCaller,
    /// Counts executions that ended, for those that run after them.
    pub ends: watch::Sender<u64>,
    pub queue: mpsc::Sender<QueueMessage>,
}

impl std::ops::Deref for Shared {
    type Target = ExecutionContext;

    fn deref(&self) -> &ExecutionContext {
        &self.context
    }
}

impl Shared {
    pub fn new(
        context: ExecutionContext,
        sending: ContentTransfer,
        queue: mpsc::Sender<QueueMessage>,
    ) -> Self {
        Self {
            context,
            sending,
            open: Mutex::default(),
            faulty: Mutex::default(),
            open_bytes: AtomicU64::new(0),
            orders: OrderCache::default(),
            callers: OpenByCaller::default(),
            ends: watch::channel(0).0,
            queue,
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ExecutionId, Arc<Live>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn faulty(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        self.faulty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an open execution, and `None` once it has ended.
    pub fn live(&self, id: &ExecutionId) -> Option<Arc<Live>> {
        self.open().get(id).cloned()
    }

    pub fn live_count(&self) -> usize {
        self.open().len()
    }

    /// Returns what manifests and inputs of open executions take in the database.
    pub fn open_bytes(&self) -> u64 {
        self.open_bytes.load(Ordering::Relaxed)
    }

    pub fn go_live(&self, record: &ExecutionRecord, caller: CallerPlace) -> Arc<Live> {
        let live = Arc::new(Live {
            view: watch::channel(record.view()).0,
            cancel: watch::channel(record.cancel_reason.clone()).0,
            exclusion: Mutex::default(),
            order_bytes: record.order_bytes,
            caller: Mutex::new(Some(caller)),
        });
        if self.open().insert(record.execution_id.clone(), live.clone()).is_none() {
            self.open_bytes.fetch_add(record.order_bytes, Ordering::Relaxed);
        }
        live
    }

    /// The execution has ended and its end is stored.
    pub async fn retire(&self, record: &ExecutionRecord) {
        self.orders.take(&record.execution_id);
        if let Some(live) = self.open().remove(&record.execution_id) {
            self.open_bytes.fetch_sub(live.order_bytes, Ordering::Relaxed);
            live.leave();
            self.count_end(record);
            self.ends.send_modify(|ends| *ends += 1);
        }
        self.sending.let_go(record.workspace.as_ref(), &record.execution_id);
        let id = record.execution_id.clone();
        if let Err(error) = self.controller.release(id).await {
            tracing::debug!(error = %error.chain(), "nothing to release any more");
        }
    }

    fn count_end(&self, record: &ExecutionRecord) {
        if !record.state.is_final() {
            return;
        }
        let ran_ms =
            record.ended_at_ms.zip(record.started_at_ms).map(|(end, start)| end.saturating_sub(start));
        let ran = ran_ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
        let failure = record.failure.as_ref().map(|failure| failure.code);
        self.metrics.execution_ended(record.state, failure, ran);
    }

    /// Returns the states of all executions that have not ended.
    pub fn open_states(&self) -> Vec<State> {
        self.open().values().map(|live| live.view.borrow().state).collect()
    }

    pub async fn enqueue(&self, record: ExecutionRecord) {
        // Fails only when the controller is stopping; the record is stored.
        let _ = self.queue.send(QueueMessage::Place(Box::new(record))).await;
    }

    /// Ends an execution by the controller's own word, with an event that says so.
    pub async fn end(&self, record: &mut ExecutionRecord, live: &Live, kind: EventKind) -> Result<()> {
        let Some(state) = kind.state() else { return Err(Error::internal("an end that is none")) };
        let mut ended = record.clone();
        if let Step::Become(state) = ended.life().next(Input::Ended(state)) {
            ended.state = state;
        }
        self.tell(&mut ended, live, kind).await?;
        *record = ended;
        self.retire(record).await;
        Ok(())
    }

    /// Stores an event of the controller's own with what it shows of the execution, then shows both.
    pub async fn tell(&self, record: &mut ExecutionRecord, live: &Live, kind: EventKind) -> Result<()> {
        let sequence = record.last_sequence + 1;
        let event = EventView { sequence, attempt: record.attempt, time_ms: now_ms(), kind };
        let events = vec![(sequence, event_encoding::encode(&record.execution_id, &event))];
        projection::note(record, &event, event.time_ms);
        let write = ExecutionWrite::Record { record: Box::new(record.clone()), events };
        self.store.write(Write::Execution(write)).await?;
        live.view.send_replace(record.view());
        Ok(())
    }

    /// How an execution stands, whether it is open or has ended.
    pub async fn known(&self, id: &ExecutionId) -> Result<Option<ExecutionView>> {
        match self.live(id) {
            Some(live) => Ok(Some(live.view.borrow().clone())),
            None => Ok(self.store.execution(id).await?.map(|record| record.view())),
        }
    }
}
