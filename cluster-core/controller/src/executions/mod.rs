//! Executions on the controller: accepted, queued, placed, and followed to their end.
//!
//! Tasks: the `queue` places pending executions. One `driver` task for each assigned execution owns its record.
//! `reconcile` compares the reports of nodes with the records. `retention` deletes records that ended long ago. Another
//! task ends executions that outlive the deadline of a drain. After a restart, open executions are read from the store.

mod blocked;
mod callers;
mod driver;
mod event_budget;
mod exclusion;
mod feedback;
pub mod hooks;
pub mod open;
mod order_cache;
mod patience;
mod projection;
mod queue;
mod reconcile;
mod retention;
pub mod transfer;

use std::{sync::Arc, time::Duration};

use aegis_identity::sha256;
use aegis_rpc::{event_encoding, worker_client::check_order_fits};
use aegis_store::{ExecutionWrite, Write};
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    execution::{
        artifacts::Artifacts,
        filter::ExecutionFilter,
        lifecycle::State,
        order::Held,
        record::{ExecutionRecord, NewExecution},
        request::{ExecutionRequest, Submission, Submitter},
        view::{EventKind, EventView, ExecutionView, SpecView},
    },
    ids::{ExecutionId, NodeId},
};
use tokio::sync::{mpsc, watch};

use self::{
    driver::Handed,
    open::{ExecutionContext, QueueMessage, Shared},
    order_cache::OrderCache,
    queue::Queue,
    transfer::{ContentTransfer, TransferSettings},
};

/// Executions that wait for a node.
const QUEUE_MAX: usize = 10_000;
/// Manifests and inputs of open executions in the database. Each may have 2 MiB.
const OPEN_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
const ORDERS_MAX: usize = 1024;
/// Events read at a time on behalf of a reader.
const EVENTS_READ_MAX: u32 = 1000;
/// Pause before a cancel at a drain's deadline that could not be stored (a full disk, say) is tried again.
const CANCEL_RETRY: Duration = Duration::from_secs(5);

/// A cheap handle on all executions.
#[derive(Debug, Clone)]
pub struct Executions(Arc<Shared>);

impl Executions {
    /// Takes up what the store says is open.
    pub async fn start(
        context: ExecutionContext,
        sending: TransferSettings,
        reports: mpsc::Receiver<(NodeId, Vec<Held>)>,
    ) -> Result<Self> {
        let (words, incoming) = mpsc::channel(ORDERS_MAX);
        let open = context.store.open_executions().await?;
        let sending = ContentTransfer::open(sending, &open, &context.store).await?;
        let shared = Arc::new(Shared::new(context, sending, words));
        let executions = Self(shared.clone());
        let mut queue = Queue::new(shared.clone());
        for record in open {
            let live = shared.go_live(&record, shared.callers.restore(&record.caller));
            match &record.node_id {
                // The controller has restored what it occupies there.
                Some(_) if record.state != State::Pending => {
                    driver::spawn(shared.clone(), record, live, Handed::Perhaps);
                }
                _ => {
                    queue.admit(Box::new(record));
                }
            }
        }
        tokio::spawn(queue.run(incoming));
        tokio::spawn(end_overdue(executions.clone()));
        hooks::start(&shared).await?;
        tokio::spawn(retention::run(shared.clone()));
        tokio::spawn(reconcile::run(shared, reports));
        Ok(executions)
    }

    /// Durable before it is answered. What no node could ever take is refused here.
    pub async fn submit(&self, request: ExecutionRequest, submitter: Submitter) -> Result<ExecutionView> {
        let digest = hex::encode(sha256(&serde_json::to_vec(&request).unwrap_or_default()));
        if let Some(key) = &request.idempotency_key
            && let Some(known) = self.0.store.execution_by_key(key).await?
        {
            return self.same(known, &digest);
        }
        let mut request = self.0.agents.resolve(request).await?;
        let workspace = request.workspace.take();
        let mut submission = Submission::check(request)?;
        submission.notify = self.0.hooks.resolve(&submission.notify)?;
        self.check_dependencies(&submission).await?;
        let mut secret_bytes = 0;
        for name in submission.manifest.secret_env.values() {
            secret_bytes += self.0.secrets.check(name).await?;
        }
        check_order_fits(&submission.manifest, &submission.input, secret_bytes)?;
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
        let caller = submitter.identity.to_string();
        let place = self.0.callers.take(&caller, self.0.settings.executions_per_caller)?;
        if self.0.live_count() >= QUEUE_MAX {
            return Err(Error::new(ErrorCode::ResourceExhausted, format!("{QUEUE_MAX} executions are open"))
                .remedy("wait until some have ended"));
        }
        let mut new = NewExecution::new(submission, caller, digest, now_ms());
        if self.0.open_bytes().saturating_add(new.record.order_bytes) > OPEN_BYTES_MAX {
            let mib = OPEN_BYTES_MAX / (1024 * 1024);
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("manifests and inputs of open executions have {mib} MiB"),
            )
            .remedy("wait until some have ended, or send large data as a workspace"));
        }
        if let Some(path) = workspace {
            let note = self.0.sending.pack(&path, submitter.origin, &new.record.execution_id).await?;
            new.set_workspace(note);
        }
        let record = new.record.clone();
        // The manifest of an execution that runs after others changes with the workspace that it takes over.
        let order =
            (record.dependencies.is_none() && OrderCache::accepts(&record)).then(|| new.content.clone());
        let create = Write::Execution(ExecutionWrite::Create(Box::new(new)));
        let created = self.0.store.write(create).await;
        if !matches!(created, Ok(1..)) {
            self.0.sending.let_go(record.workspace.as_ref(), &record.execution_id);
        }
        if created? == 0 {
            // The same key came twice at once.
            let key = record.idempotency_key.as_deref().unwrap_or_default();
            let known = self.0.store.execution_by_key(key).await?;
            let known = known.ok_or_else(|| Error::internal("an execution was neither created nor found"))?;
            return self.same(known, &record.request_digest);
        }
        if let Some(order) = order {
            self.0.orders.insert(&record, order);
        }
        let view = self.0.go_live(&record, place).view.borrow().clone();
        let stopping = |_| Error::new(ErrorCode::Unavailable, "the controller is stopping");
        self.0.queue.send(QueueMessage::Place(Box::new(record))).await.map_err(stopping)?;
        Ok(view)
    }

    /// Refuses an execution that would run after one that is not known, or that leaves no artifacts to take over.
    async fn check_dependencies(&self, submission: &Submission) -> Result<()> {
        let Some(dependencies) = &submission.dependencies else { return Ok(()) };
        for id in &dependencies.after {
            let record = self.stored(id).await?;
            if dependencies.workspace_from.as_ref() == Some(id) && !record.has_artifacts {
                return Err(Error::invalid(format!("workspace_from: {id} keeps no artifacts"))
                    .remedy("name an execution that was submitted with artifacts"));
            }
        }
        Ok(())
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
        self.0.live(&stored.execution_id).map_or_else(|| stored.view(), |live| live.view.borrow().clone())
    }

    async fn stored(&self, id: &ExecutionId) -> Result<ExecutionRecord> {
        let unknown =
            || Error::not_found("execution", id.as_str()).remedy("use the id that submit_execution returned");
        self.0.store.execution(id).await?.ok_or_else(unknown)
    }

    pub async fn get(&self, id: &ExecutionId) -> Result<ExecutionView> {
        match self.0.live(id) {
            Some(live) => Ok(live.view.borrow().clone()),
            None => Ok(self.stored(id).await?.view()),
        }
    }

    /// Returns the request of an execution as it was checked.
    pub async fn spec(&self, id: &ExecutionId) -> Result<SpecView> {
        let record = self.stored(id).await?;
        let content = self.0.store.order_content(id).await?;
        let content = content.ok_or_else(|| Error::not_found("execution", id.as_str()))?;
        Ok(record.into_spec(content.manifest))
    }

    /// Returns the states of all executions that have not ended.
    pub fn open_states(&self) -> Vec<State> {
        self.0.open_states()
    }

    /// Returns the newest executions that a filter lets through, newest first.
    pub async fn recent(&self, filter: &ExecutionFilter, limit: u32) -> Result<Vec<ExecutionView>> {
        if let Some(before) = &filter.before {
            // An execution that is not kept any more has no place in the list.
            self.stored(before).await?;
        }
        let records = self.0.store.recent_executions(filter, limit).await?;
        Ok(records.iter().map(|record| self.current(record)).collect())
    }

    pub async fn events(&self, id: &ExecutionId, after_sequence: u64, limit: u32) -> Result<Vec<EventView>> {
        let mut events = self.read_events(id, after_sequence, limit).await?;
        if events.is_empty() {
            let record = self.stored(id).await?;
            if !record.state.is_final() {
                return Ok(events);
            }
            // The last events may have been stored between the two reads; nothing comes after them.
            events = self.read_events(id, after_sequence, limit).await?;
            if events.is_empty() {
                return Ok(gap(after_sequence, record.last_sequence.saturating_add(1)).into_iter().collect());
            }
        }
        let first = events.first().map_or(0, |event| event.sequence);
        if let Some(gap) = gap(after_sequence, first) {
            events.insert(0, gap);
        }
        Ok(events)
    }

    async fn read_events(&self, id: &ExecutionId, after_sequence: u64, limit: u32) -> Result<Vec<EventView>> {
        let events = self.0.store.execution_events(id, after_sequence, limit.min(EVENTS_READ_MAX)).await?;
        events.iter().map(|bytes| event_encoding::decode(bytes)).collect()
    }

    /// Follows an execution; of an ended one there is only the last view.
    pub async fn watch(&self, id: &ExecutionId) -> Result<watch::Receiver<ExecutionView>> {
        match self.0.live(id) {
            Some(live) => Ok(live.view.subscribe()),
            None => Ok(watch::channel(self.get(id).await?).1),
        }
    }

    /// Waits until `done` holds of the view, or time is over; answers with how it stands then.
    pub async fn wait(
        &self,
        id: &ExecutionId,
        limit: Duration,
        mut done: impl FnMut(&ExecutionView) -> bool,
    ) -> Result<ExecutionView> {
        let Some(live) = self.0.live(id) else { return self.get(id).await };
        let mut view = live.view.subscribe();
        // The sender lives in `live`, so that only the time limit ends this early.
        let _ = tokio::time::timeout(limit, view.wait_for(|view| done(view))).await;
        let now = view.borrow().clone();
        Ok(now)
    }

    /// The packed file of what an execution left behind.
    pub async fn artifacts(&self, id: &ExecutionId) -> Result<std::path::PathBuf> {
        let record = self.stored(id).await?;
        match record.artifacts {
            Some(Artifacts { problem: None, .. }) => Ok(self.0.sending.path(id)),
            Some(Artifacts { problem: Some(problem), .. }) => {
                Err(Error::new(ErrorCode::NotFound, format!("{id} has no artifacts: {problem}")))
            }
            None if record.state.is_final() => {
                Err(Error::new(ErrorCode::NotFound, format!("{id} left no artifacts"))
                    .remedy("name paths in artifacts when submitting"))
            }
            None => Err(Error::new(ErrorCode::FailedPrecondition, format!("{id} has not ended"))
                .remedy("its artifacts are there when it has")),
        }
    }

    /// Asks for the end. The execution is cancelled when its state says so.
    pub async fn cancel(&self, id: &ExecutionId, reason: &str) -> Result<ExecutionView> {
        let Some(live) = self.0.live(id) else { return Ok(self.stored(id).await?.view()) };
        let write = ExecutionWrite::RequestCancel { execution_id: id.clone(), reason: reason.to_owned() };
        self.0.store.write(Write::Execution(write)).await?;
        live.cancel.send_modify(|asked| {
            asked.get_or_insert_with(|| reason.to_owned());
        });
        // Fails only when the controller is stopping; the wish is stored.
        let _ = self.0.queue.send(QueueMessage::Cancelled(id.clone())).await;
        self.get(id).await
    }
}

/// Told in the place of events that are not kept any more.
fn gap(after_sequence: u64, next: u64) -> Option<EventView> {
    let (first, last) = (after_sequence.checked_add(1)?, next.checked_sub(1)?);
    let kind = EventKind::Gap { first, last };
    (first <= last).then_some(EventView { sequence: last, attempt: 0, time_ms: now_ms(), kind })
}

/// Cancels what still runs on a node whose drain has reached its deadline.
async fn end_overdue(executions: Executions) {
    let mut overdue = executions.0.controller.overdue();
    let stop = executions.0.stop.clone();
    loop {
        let ids = overdue.borrow_and_update().clone();
        let mut retry = false;
        for id in ids {
            if let Err(error) =
                executions.cancel(&id, "its node is drained and the deadline has passed").await
            {
                tracing::warn!(execution_id = %id, error = %error.chain(), "could not be cancelled");
                retry = true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // The list changes when work ends, which a cancel that failed does not bring about.
            () = tokio::time::sleep(CANCEL_RETRY), if retry => {}
            changed = overdue.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
