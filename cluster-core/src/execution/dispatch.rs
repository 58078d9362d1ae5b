//! Executions on the controller: accepted, queued, placed, followed to their end.
//!
//! Tasks: one queue task places what waits, in order, whenever the membership changes; one driver task
//! an assigned execution owns its record (see [`super::drive`]). What is open is rebuilt from the store
//! after a restart.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    drive, encoding,
    lifecycle::State,
    request::{ExecutionRequest, Submission},
    supervisor::Held,
    view::{EventKind, EventView, ExecutionView},
};
use crate::{
    clock::now_ms,
    cluster::{controller::Controller, nodes::Nodes, placement::NoFit},
    error::{Error, ErrorCode, Failure, Result},
    identity::sha256,
    ids::{ExecutionId, NodeId},
    store::{ExecutionRecord, Store, Write},
};

/// Executions that wait for a node.
const QUEUE_MAX: usize = 10_000;
const ORDERS_MAX: usize = 1024;
/// After the store refused a placement (a full disk, say).
const PLACE_RETRY: Duration = Duration::from_secs(5);
/// Events read at a time on behalf of a reader.
const EVENTS_READ_MAX: u32 = 1000;

/// What the surface follows of a live execution.
#[derive(Debug)]
pub(super) struct Live {
    pub view: watch::Sender<ExecutionView>,
    pub cancel: watch::Sender<Option<String>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub store: Store,
    pub controller: Controller,
    pub nodes: Nodes,
    live: Mutex<HashMap<ExecutionId, Arc<Live>>>,
    queue: mpsc::Sender<Box<ExecutionRecord>>,
    pub stop: CancellationToken,
}

/// A cheap handle on all executions.
#[derive(Debug, Clone)]
pub struct Executions(Arc<Shared>);

impl Executions {
    /// Takes up what the store says is open.
    pub async fn start(
        store: Store,
        controller: Controller,
        nodes: Nodes,
        reports: mpsc::Receiver<(NodeId, Vec<Held>)>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let (queue, incoming) = mpsc::channel(ORDERS_MAX);
        let open = store.open_executions().await?;
        let shared = Arc::new(Shared { store, controller, nodes, live: Mutex::default(), queue, stop });
        let executions = Self(shared.clone());
        let mut waiting = VecDeque::new();
        for record in open {
            let live = executions.go_live(&record);
            match &record.node_id {
                Some(node_id) if record.state != State::Pending => {
                    let (node_id, id, amounts) =
                        (node_id.clone(), record.execution_id.clone(), record.demand.amounts);
                    shared.controller.with_placement(move |m| m.reserve(&node_id, &id, amounts)).await?;
                    drive::spawn(shared.clone(), record, live);
                }
                _ => waiting.push_back(Box::new(record)),
            }
        }
        let queue = Queue { shared: shared.clone(), waiting };
        tokio::spawn(queue.run(incoming));
        tokio::spawn(end_overdue(executions.clone()));
        tokio::spawn(reconcile(shared, reports));
        Ok(executions)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<ExecutionId, Arc<Live>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_live(&self, record: &ExecutionRecord) -> Arc<Live> {
        let live = Arc::new(Live {
            view: watch::channel(record.view()).0,
            cancel: watch::channel(record.cancel_reason.clone()).0,
        });
        self.live().insert(record.execution_id.clone(), live.clone());
        live
    }

    /// Durable before it is answered. What no node could ever take is refused here.
    pub async fn submit(&self, request: ExecutionRequest) -> Result<ExecutionView> {
        let digest = hex::encode(sha256(&serde_json::to_vec(&request).unwrap_or_default()));
        let submission = Submission::check(request, None)?;
        if let Some(key) = &submission.idempotency_key
            && let Some(known) = self.0.store.execution_by_key(key).await?
        {
            return self.same(known, &digest);
        }
        let demand = submission.demand.clone();
        let fit =
            self.0.controller.with_placement(move |membership| membership.fit(&demand).map(drop)).await?;
        if let Err(no_fit) = fit {
            if let Some(pin) = &submission.demand.node_id
                && self.0.controller.record(pin).await?.is_none()
            {
                return Err(
                    Error::not_found("node", pin.as_str()).remedy("see list_peers for the nodes there are")
                );
            }
            if !submission.queue || !no_fit.may_change() {
                return Err(no_fit.into_error());
            }
        }
        if self.live().len() >= QUEUE_MAX {
            return Err(Error::new(ErrorCode::ResourceExhausted, format!("{QUEUE_MAX} executions are open"))
                .remedy("wait until some have ended"));
        }
        let record = ExecutionRecord::pending(submission, digest, now_ms());
        if self.0.store.write(Write::CreateExecution(Box::new(record.clone()))).await? == 0 {
            // The same key came twice at once.
            let key = record.idempotency_key.as_deref().unwrap_or_default();
            let known = self.0.store.execution_by_key(key).await?;
            let known = known.ok_or_else(|| Error::internal("an execution was neither created nor found"))?;
            return self.same(known, &record.request_digest);
        }
        let view = self.go_live(&record).view.borrow().clone();
        let stopping = |_| Error::new(ErrorCode::Unavailable, "the controller is stopping");
        self.0.queue.send(Box::new(record)).await.map_err(stopping)?;
        Ok(view)
    }

    fn same(&self, known: ExecutionRecord, digest: &str) -> Result<ExecutionView> {
        if known.request_digest == digest {
            return Ok(self.current(&known));
        }
        Err(Error::new(
            ErrorCode::Conflict,
            format!("this idempotency_key was used for another request, {}", known.execution_id),
        )
        .remedy("use a new key, or repeat the request unchanged"))
    }

    fn current(&self, stored: &ExecutionRecord) -> ExecutionView {
        let live = self.live().get(&stored.execution_id).cloned();
        live.map_or_else(|| stored.view(), |live| live.view.borrow().clone())
    }

    async fn stored(&self, id: &ExecutionId) -> Result<ExecutionRecord> {
        let unknown =
            || Error::not_found("execution", id.as_str()).remedy("use the id that submit_execution returned");
        self.0.store.execution(id).await?.ok_or_else(unknown)
    }

    pub async fn get(&self, id: &ExecutionId) -> Result<ExecutionView> {
        let live = self.live().get(id).cloned();
        match live {
            Some(live) => Ok(live.view.borrow().clone()),
            None => Ok(self.stored(id).await?.view()),
        }
    }

    pub async fn recent(&self, limit: u32) -> Result<Vec<ExecutionView>> {
        let records = self.0.store.recent_executions(limit).await?;
        Ok(records.iter().map(|record| self.current(record)).collect())
    }

    pub async fn events(&self, id: &ExecutionId, after_sequence: u64, limit: u32) -> Result<Vec<EventView>> {
        let events = self.0.store.execution_events(id, after_sequence, limit.min(EVENTS_READ_MAX)).await?;
        if events.is_empty() {
            self.stored(id).await?;
        }
        events.iter().map(|bytes| encoding::decode(bytes)).collect()
    }

    /// Waits until `done` holds of the view, or time is over; answers with how it stands then.
    pub async fn wait(
        &self,
        id: &ExecutionId,
        limit: Duration,
        mut done: impl FnMut(&ExecutionView) -> bool,
    ) -> Result<ExecutionView> {
        let live = self.live().get(id).cloned();
        let Some(live) = live else { return self.get(id).await };
        let mut view = live.view.subscribe();
        // The sender lives in `live`, so that only the time limit ends this early.
        let _ = tokio::time::timeout(limit, view.wait_for(|view| done(view))).await;
        let now = view.borrow().clone();
        Ok(now)
    }

    /// Asks for the end. The execution is cancelled when its state says so.
    pub async fn cancel(&self, id: &ExecutionId, reason: &str) -> Result<ExecutionView> {
        let live = self.live().get(id).cloned();
        let Some(live) = live else { return Ok(self.stored(id).await?.view()) };
        let write = Write::RequestCancel { execution_id: id.clone(), reason: reason.to_owned() };
        self.0.store.write(write).await?;
        live.cancel.send_modify(|asked| {
            asked.get_or_insert_with(|| reason.to_owned());
        });
        self.get(id).await
    }
}

impl Shared {
    /// The execution has ended and its end is stored.
    pub(super) async fn retire(&self, record: &ExecutionRecord) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.execution_id);
        let id = record.execution_id.clone();
        if let Err(error) = self.controller.release(id).await {
            tracing::debug!(error = %error.chain(), "nothing to release any more");
        }
    }

    pub(super) async fn enqueue(&self, record: ExecutionRecord) {
        // Fails only when the controller is stopping; the record is stored.
        let _ = self.queue.send(Box::new(record)).await;
    }

    /// Ends an execution by the controller's own word, with an event that says so.
    pub(super) async fn end(&self, record: &mut ExecutionRecord, live: &Live, kind: EventKind) -> Result<()> {
        let event = EventView {
            sequence: record.last_sequence + 1,
            attempt: record.attempt,
            time_ms: now_ms(),
            kind,
        };
        let events = vec![(event.sequence, encoding::encode(&record.execution_id, &event))];
        drive::apply(record, &event);
        self.store.write(Write::RecordEvents { record: Box::new(record.clone()), events }).await?;
        live.view.send_replace(record.view());
        self.retire(record).await;
        Ok(())
    }
}

/// The task that places what waits.
struct Queue {
    shared: Arc<Shared>,
    waiting: VecDeque<Box<ExecutionRecord>>,
}

impl Queue {
    async fn run(mut self, mut incoming: mpsc::Receiver<Box<ExecutionRecord>>) {
        let mut version = self.shared.controller.version();
        let stop = self.shared.stop.clone();
        loop {
            // Placing raises the version itself: what it placed is not worth another look.
            version.mark_unchanged();
            let mut retry = false;
            if let Err(error) = self.place_all().await {
                tracing::error!(error = %error.chain(), "nothing could be placed; it is tried again");
                retry = true;
            }
            tokio::select! {
                () = tokio::time::sleep(PLACE_RETRY), if retry => {}
                () = stop.cancelled() => return,
                record = incoming.recv() => match record {
                    Some(record) => self.waiting.push_back(record),
                    None => return,
                },
                changed = version.changed(), if !self.waiting.is_empty() => if changed.is_err() { return },
                () = self.cancelled() => {}
            }
            while let Ok(record) = incoming.try_recv() {
                self.waiting.push_back(record);
            }
        }
    }

    /// Resolves when one of those that wait is cancelled.
    async fn cancelled(&self) {
        let asked = self.waiting.iter().filter_map(|record| {
            let live = self.live(&record.execution_id)?;
            Some(Box::pin(async move {
                let _ = live.cancel.subscribe().wait_for(Option::is_some).await;
            }))
        });
        let asked = asked.collect::<Vec<_>>();
        if asked.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(asked).await;
    }

    fn live(&self, id: &ExecutionId) -> Option<Arc<Live>> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// In the order in which they came; one that does not fit holds nobody up.
    async fn place_all(&mut self) -> Result<()> {
        // Taken one by one: what an error leaves behind still waits.
        for _ in 0..self.waiting.len() {
            let Some(record) = self.waiting.front().cloned() else { return Ok(()) };
            self.place_one(record).await?;
            // Placed, ended, or put back at the end: this place in the queue is done with.
            self.waiting.pop_front();
        }
        Ok(())
    }

    async fn place_one(&mut self, mut record: Box<ExecutionRecord>) -> Result<()> {
        let Some(live) = self.live(&record.execution_id) else { return Ok(()) };
        let cancelled = live.cancel.borrow().clone();
        if let Some(reason) = cancelled {
            return self.shared.end(&mut record, &live, EventKind::Cancelled { reason }).await;
        }
        let (id, demand) = (record.execution_id.clone(), record.demand.clone());
        let placed =
            self.shared.controller.with_placement(move |membership| membership.place(&id, &demand)).await?;
        match placed {
            Ok(node_id) => self.assign(record, live, node_id).await,
            Err(no_fit) => {
                tell(&live, &no_fit);
                self.waiting.push_back(record);
                Ok(())
            }
        }
    }

    /// Stored before the node hears of it.
    async fn assign(
        &mut self,
        mut record: Box<ExecutionRecord>,
        live: Arc<Live>,
        node_id: NodeId,
    ) -> Result<()> {
        let attempt = record.attempt + 1;
        let write = Write::AssignExecution {
            execution_id: record.execution_id.clone(),
            node_id: node_id.clone(),
            attempt,
        };
        let assigned = self.shared.store.write(write).await;
        if !matches!(assigned, Ok(1)) {
            let id = record.execution_id.clone();
            self.shared.controller.release(id).await?;
            // An error leaves it where it waits. No row: cancelled between the look and the write, which
            // the next round sees.
            assigned?;
            self.waiting.push_back(record);
            return Ok(());
        }
        tracing::info!(execution_id = %record.execution_id, %node_id, attempt, "assigned");
        record.state = State::Assigned;
        record.node_id = Some(node_id);
        record.attempt = attempt;
        live.view.send_replace(record.view());
        drive::spawn(self.shared.clone(), *record, live);
        Ok(())
    }
}

fn tell(live: &Live, no_fit: &NoFit) {
    let waiting = Some(no_fit.to_string());
    live.view.send_if_modified(|view| {
        let changed = view.waiting != waiting;
        view.waiting = waiting;
        changed
    });
}

/// Cancels what still runs on a node whose drain has reached its deadline.
async fn end_overdue(executions: Executions) {
    let mut overdue = executions.0.controller.overdue();
    let stop = executions.0.stop.clone();
    loop {
        let ids = overdue.borrow_and_update().clone();
        for id in ids {
            if let Err(error) =
                executions.cancel(&id, "its node is drained and the deadline has passed").await
            {
                tracing::warn!(execution_id = %id, error = %error.chain(), "could not be cancelled");
            }
        }
        match stop.run_until_cancelled(overdue.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// Tells nodes to let go of what has ended here, where an earlier word was lost.
async fn reconcile(shared: Arc<Shared>, mut reports: mpsc::Receiver<(NodeId, Vec<Held>)>) {
    while let Some(Some((node_id, held))) = shared.stop.run_until_cancelled(reports.recv()).await {
        let mut ended = Vec::new();
        for held in held {
            let is_live =
                shared.live.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&held.execution_id);
            if is_live {
                continue;
            }
            match shared.store.execution(&held.execution_id).await {
                Ok(Some(record)) if record.state.is_final() => ended.push(held.execution_id),
                Ok(_) => {}
                Err(error) => tracing::warn!(error = %error.chain(), "a report could not be compared"),
            }
        }
        if ended.is_empty() {
            continue;
        }
        if let Ok(worker) = shared.nodes.worker(&node_id)
            && let Err(error) = worker.release(&ended).await
        {
            tracing::debug!(%node_id, error = %error.chain(), "not released; the next heartbeat tries again");
        }
    }
}

/// For a driver: what a refusal by the node means for the execution.
pub(super) fn failed(error: &Error) -> EventKind {
    EventKind::Failed { failure: Failure::from(error), exit_code: None }
}
