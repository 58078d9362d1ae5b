//! The task that places waiting executions, by priority and then by age. An execution that does not fit blocks no other.
//!
//! Queued executions are retried when the membership changes, not on every submission: a later execution with the same
//! constraints cannot fit where an earlier one did not. A node is kept free for the oldest execution that has waited for
//! minutes, so that a stream of small executions cannot starve a large one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use aegis_store::{ExecutionWrite, Write};
use aegis_types::{
    clock::now_ms,
    error::{ErrorCode, Failure, Result},
    execution::{
        lifecycle::{Input, State, Step},
        manifest::PlacementRequest,
        record::ExecutionRecord,
        request::QUEUE_SECONDS_MAX,
        view::EventKind,
    },
    ids::{ExecutionId, NodeId},
};
use futures::future::join_all;
use tokio::{sync::mpsc, time::Instant};

use super::blocked::Blocked;
use crate::{
    executions::{
        driver::{self, Handed},
        open::{Live, QueueMessage, Shared},
    },
    membership::{Excluded, Membership},
    placement::PlacementError,
};

/// After the store refused a placement (a full disk, say).
const PLACE_RETRY: Duration = Duration::from_secs(5);
/// Between looks for what time alone changes.
const DUE_PAUSE: Duration = Duration::from_millis(200);
/// Placed by one decision and stored by one commit.
const PLACED_TOGETHER_MAX: usize = 256;

/// After so long a node is kept free for the oldest. Until then most executions that run there have ended.
const KEPT_FREE_AFTER: Duration = Duration::from_secs(300);

/// An execution that waits for a node.
pub(super) struct Waiting {
    record: Box<ExecutionRecord>,
    since: Instant,
}

impl Waiting {
    /// Returns the entry of a record. Its wait counts on over a restart.
    pub fn new(record: Box<ExecutionRecord>) -> Self {
        let waited_ms = now_ms().saturating_sub(record.queued_at_ms);
        let waited = Duration::from_millis(u64::try_from(waited_ms).unwrap_or(0));
        let now = Instant::now();
        Self { record, since: now.checked_sub(waited).unwrap_or(now) }
    }

    fn priority(&self) -> i32 {
        self.record.demand.priority
    }

    fn until(&self) -> Instant {
        self.since + Duration::from_secs(self.record.demand.wait_seconds.unwrap_or(QUEUE_SECONDS_MAX))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until() <= now
    }

    fn is_long(&self, now: Instant) -> bool {
        self.since + KEPT_FREE_AFTER <= now
    }
}

pub(super) struct Queue {
    pub shared: Arc<Shared>,
    waiting: VecDeque<Waiting>,
    blocked: Blocked,
    /// A node is kept free for one of those that wait.
    has_hold: bool,
}

impl Queue {
    pub fn new(shared: Arc<Shared>) -> Self {
        let blocked = Blocked::new(shared.clone());
        Self { shared, waiting: VecDeque::new(), blocked, has_hold: false }
    }

    /// Takes an execution in, and returns its place among those that wait. A blocked one has no place.
    pub fn admit(&mut self, record: Box<ExecutionRecord>) -> Option<usize> {
        let record = self.blocked.admit(record)?;
        Some(insert(&mut self.waiting, Waiting::new(record)))
    }

    pub async fn run(mut self, mut words: mpsc::Receiver<QueueMessage>) {
        let mut ends = self.shared.ends.subscribe();
        let mut version = self.shared.controller.version();
        let stop = self.shared.stop.clone();
        let mut from = 0;
        loop {
            // Placing raises the version itself: what it placed is not worth another look.
            version.mark_unchanged();
            let mut retry = false;
            let (released, outcome) = self.blocked.release().await;
            for record in released {
                from = from.min(insert(&mut self.waiting, Waiting::new(record)));
            }
            let placed = self.place(from).await;
            for error in [outcome, placed].into_iter().filter_map(Result::err) {
                tracing::error!(error = %error.chain(), "not all could be placed; it is tried again");
                retry = true;
            }
            let due = self.due(Instant::now());
            from = tokio::select! {
                () = tokio::time::sleep(PLACE_RETRY), if retry => 0,
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(due), if !retry && !self.is_empty() => 0,
                changed = ends.changed(), if !self.blocked.is_empty() => match changed {
                    Ok(()) => {
                        self.blocked.recheck();
                        self.waiting.len()
                    }
                    Err(_) => return,
                },
                word = words.recv() => {
                    let Some(word) = word else { return };
                    let newcomers = self.waiting.len();
                    let mut from = self.take(word, newcomers);
                    while let Ok(word) = words.try_recv() {
                        from = self.take(word, from);
                    }
                    from
                }
                // A placement that could not be stored was released again, which itself changes the membership.
                changed = version.changed(), if !self.waiting.is_empty() && !retry => match changed {
                    Ok(()) => 0,
                    Err(_) => return,
                },
            };
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.blocked.is_empty()
    }

    /// Returns when time alone changes something: a wait is over, a pause is over, or the oldest has waited for long.
    fn due(&self, now: Instant) -> Instant {
        let waits = self.waiting.iter().map(Waiting::until);
        let long = self.waiting.iter().map(|waiting| waiting.since + KEPT_FREE_AFTER).filter(|at| *at > now);
        // An entry that is over and still here could not be stored, and is tried again.
        waits
            .chain(long)
            .chain(self.blocked.due())
            .min()
            .map_or(now + PLACE_RETRY, |due| due.max(now + DUE_PAUSE))
    }

    /// From where on the queue is worth a look.
    fn take(&mut self, word: QueueMessage, from: usize) -> usize {
        match word {
            QueueMessage::Place(record) => self.admit(record).map_or(from, |place| place.min(from)),
            QueueMessage::Cancelled(id) => {
                self.blocked.recheck();
                let place = self.waiting.iter().position(|waiting| waiting.record.execution_id == id);
                place.map_or(from, |place| place.min(from))
            }
        }
    }

    /// Those from a place in the queue on. What an error leaves behind still waits.
    async fn place(&mut self, from: usize) -> Result<()> {
        let mut rest = self.waiting.split_off(from.min(self.waiting.len()));
        let (mut outcome, is_full, mut has_hold) = (Ok(()), from == 0, from != 0);
        while outcome.is_ok() && !rest.is_empty() {
            let later = rest.split_off(rest.len().min(PLACED_TOGETHER_MAX));
            let batch = std::mem::replace(&mut rest, later);
            outcome = self.place_batch(batch, &mut has_hold).await;
        }
        self.waiting.append(&mut rest);
        if is_full && self.has_hold && !has_hold {
            self.shared.controller.with_placement(Membership::drop_hold).await?;
        }
        if is_full {
            self.has_hold = has_hold;
        }
        outcome
    }

    /// `has_hold` says that a node is kept free already, or that this look is no full one.
    async fn place_batch(&mut self, batch: VecDeque<Waiting>, has_hold: &mut bool) -> Result<()> {
        let mut outcome = Ok(());
        let mut asked = Vec::with_capacity(batch.len());
        for mut waiting in batch {
            let Some(live) = self.shared.live(&waiting.record.execution_id) else { continue };
            let cancelled = live.cancel.borrow().clone();
            if let Some(reason) = cancelled {
                let end = EventKind::Cancelled { reason };
                if let Err(error) = self.shared.end(&mut waiting.record, &live, end).await {
                    outcome = Err(error);
                    self.waiting.push_back(waiting);
                }
                continue;
            }
            asked.push((waiting, live));
        }
        let now = Instant::now();
        let requests = asked.iter().map(|(waiting, live)| Request {
            execution_id: waiting.record.execution_id.clone(),
            demand: waiting.record.demand.clone(),
            excluded: live.exclusion().nodes.clone(),
            is_long: waiting.is_long(now),
        });
        let (requests, held): (Vec<_>, bool) = (requests.collect(), *has_hold);
        let placed =
            self.shared.controller.with_placement(move |membership| decide(membership, requests, held));
        let placed = match placed.await {
            Ok((placed, held)) => {
                *has_hold = held;
                placed
            }
            Err(error) => {
                self.waiting.extend(asked.into_iter().map(|(waiting, _)| waiting));
                return Err(error);
            }
        };
        let mut chosen = Vec::new();
        for ((mut waiting, live), placed) in asked.into_iter().zip(placed) {
            let no_fit = match placed {
                Ok(node_id) => {
                    chosen.push((waiting.record, live, node_id));
                    continue;
                }
                Err(no_fit) => no_fit,
            };
            let refusal = live.exclusion().first_refusal.clone();
            let Some(failure) = end_of_wait(&waiting, &no_fit, refusal, now) else {
                live.tell_waiting(&no_fit.to_string());
                self.waiting.push_back(waiting);
                continue;
            };
            let end = EventKind::Failed { failure, exit_code: None };
            if let Err(error) = self.shared.end(&mut waiting.record, &live, end).await {
                outcome = Err(error);
                self.waiting.push_back(waiting);
            }
        }
        // Together, so that the store commits them together.
        let stored = join_all(chosen.iter().map(|(record, _, node_id)| self.store(record, node_id))).await;
        for ((record, live, node_id), stored) in chosen.into_iter().zip(stored) {
            match stored {
                Ok(true) => {
                    if record.attempt == 0 {
                        let waited_ms = now_ms().saturating_sub(record.queued_at_ms);
                        let waited = Duration::from_millis(u64::try_from(waited_ms).unwrap_or(0));
                        self.shared.metrics.execution_placed(waited);
                    }
                    self.begin(*record, live, node_id);
                }
                Ok(false) => self.read_again(*record, live, node_id).await?,
                Err(error) => {
                    outcome = Err(error);
                    self.put_back(record).await?;
                }
            }
        }
        outcome
    }

    /// The assignment, before the node hears of it. False where it was cancelled meanwhile.
    async fn store(&self, record: &ExecutionRecord, node_id: &NodeId) -> Result<bool> {
        let write = ExecutionWrite::Assign {
            execution_id: record.execution_id.clone(),
            node_id: node_id.clone(),
            attempt: record.attempt + 1,
        };
        Ok(self.shared.store.write(Write::Execution(write)).await? == 1)
    }

    /// Continues with the record as it is stored, where an assignment did not fit it: the execution was cancelled
    /// meanwhile, or an earlier commit became durable although the store reported an error.
    async fn read_again(&mut self, record: ExecutionRecord, live: Arc<Live>, node_id: NodeId) -> Result<()> {
        let Some(stored) = self.shared.store.execution(&record.execution_id).await? else {
            self.shared.retire(&record).await;
            return Ok(());
        };
        match stored.state {
            State::Pending => self.put_back(Box::new(stored)).await,
            _ if stored.state.is_final() => {
                self.shared.retire(&stored).await;
                Ok(())
            }
            // Assigned by the earlier commit, whose node may differ from the one reserved now.
            _ => {
                if stored.node_id.as_ref() != Some(&node_id) {
                    self.shared.controller.release(stored.execution_id.clone()).await?;
                }
                live.view.send_replace(stored.view());
                driver::spawn(self.shared.clone(), stored, live, Handed::Perhaps);
                Ok(())
            }
        }
    }

    async fn put_back(&mut self, record: Box<ExecutionRecord>) -> Result<()> {
        let id = record.execution_id.clone();
        insert(&mut self.waiting, Waiting::new(record));
        self.shared.controller.release(id).await
    }

    fn begin(&self, mut record: ExecutionRecord, live: Arc<Live>, node_id: NodeId) {
        if record.life().next(Input::Assigned) != Step::Become(State::Assigned) {
            tracing::error!(execution_id = %record.execution_id, state = record.state.name(), "not assignable");
            return;
        }
        record.state = State::Assigned;
        record.attempt += 1;
        tracing::info!(execution_id = %record.execution_id, %node_id, attempt = record.attempt, "assigned");
        record.node_id = Some(node_id);
        live.view.send_replace(record.view());
        driver::spawn(self.shared.clone(), record, live, Handed::No);
    }
}

/// Puts an entry behind those of its priority, and returns its place.
pub(super) fn insert(waiting: &mut VecDeque<Waiting>, entry: Waiting) -> usize {
    let before = waiting.iter().rposition(|known| known.priority() >= entry.priority());
    let place = before.map_or(0, |before| before + 1);
    waiting.insert(place, entry);
    place
}

/// Question of the queue to the membership, for one execution.
struct Request {
    execution_id: ExecutionId,
    demand: PlacementRequest,
    excluded: Excluded,
    /// It has waited for so long that a node may be kept free for it.
    is_long: bool,
}

/// Chooses a node for each request in turn. Keeps a node free for the first request that has waited for long, unless
/// `has_hold`. A request with the same demand as one that did not fit is not tried.
fn decide(
    membership: &mut Membership,
    requests: Vec<Request>,
    mut has_hold: bool,
) -> (Vec<std::result::Result<NodeId, PlacementError>>, bool) {
    let mut without_room: Vec<(PlacementRequest, Excluded, PlacementError)> = Vec::new();
    let mut placed = Vec::with_capacity(requests.len());
    for request in requests {
        let Request { execution_id, demand, excluded, is_long } = request;
        let may_hold = is_long && !has_hold;
        let known = without_room.iter().find(|(known, nodes, _)| *known == demand && *nodes == excluded);
        if let Some((.., no_fit)) = known.filter(|_| !may_hold) {
            placed.push(Err(no_fit.clone()));
            continue;
        }
        let chosen = membership.place_except(&execution_id, &demand, &excluded);
        if let Err(no_fit) = &chosen {
            if may_hold {
                has_hold = membership.hold_for(&execution_id, &demand, &excluded);
            }
            without_room.push((demand, excluded, no_fit.clone()));
        }
        placed.push(chosen);
    }
    (placed, has_hold)
}

/// Returns why an execution that fits nowhere now waits no longer.
fn end_of_wait(
    waiting: &Waiting,
    no_fit: &PlacementError,
    refusal: Option<Failure>,
    now: Instant,
) -> Option<Failure> {
    if let Some(refusal) = refusal.filter(|_| !no_fit.may_change()) {
        return Some(refusal);
    }
    if !waiting.is_over(now) {
        return None;
    }
    let message = match waiting.record.demand.wait_seconds {
        Some(0) => format!("no node fits, and it does not wait: {no_fit}"),
        _ => format!("no node had room within {} s: {no_fit}", now.duration_since(waiting.since).as_secs()),
    };
    let remedy =
        "see list_peers for tags and free resources; deploy, resume or free a node, or wait for longer";
    Some(Failure { code: ErrorCode::NoNodeFits, message, remedy: Some(remedy.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        executions::projection::tests::record,
        placement::{Rejection, Until},
    };

    fn waiting(wait_seconds: Option<u64>) -> Waiting {
        let mut record = record(State::Pending);
        record.demand.wait_seconds = wait_seconds;
        (record.attempt, record.queued_at_ms) = (0, now_ms());
        Waiting::new(Box::new(record))
    }

    fn no_fit(until: Until) -> PlacementError {
        PlacementError(vec![Rejection { node_id: NodeId::parse("a").unwrap(), why: "why".into(), until }])
    }

    #[test]
    fn wait_ends_at_once_in_time_or_with_the_first_refusal() {
        let end = |wait, until, refusal: Option<&Failure>, seconds| {
            let waiting = waiting(wait);
            end_of_wait(
                &waiting,
                &no_fit(until),
                refusal.cloned(),
                Instant::now() + Duration::from_secs(seconds),
            )
        };
        let code = |failure: Option<Failure>| failure.map(|failure| failure.code);
        assert_eq!(code(end(Some(0), Until::Free, None, 0)), Some(ErrorCode::NoNodeFits), "it never waits");
        assert_eq!(code(end(Some(60), Until::Free, None, 59)), None);
        assert_eq!(code(end(Some(60), Until::Never, None, 61)), Some(ErrorCode::NoNodeFits));
        assert_eq!(code(end(None, Until::Never, None, 86_400)), None);
        assert_eq!(code(end(None, Until::Free, None, QUEUE_SECONDS_MAX + 1)), Some(ErrorCode::NoNodeFits));
        let refusal = Failure { code: ErrorCode::Forbidden, message: "the policy".into(), remedy: None };
        assert_eq!(code(end(None, Until::Free, Some(&refusal), 0)), None, "another node may take it later");
        assert_eq!(end(None, Until::Never, Some(&refusal), 0), Some(refusal));
    }

    #[test]
    fn higher_priorities_come_first_and_equal_ones_in_turn() {
        let mut queue = VecDeque::new();
        let mut places = Vec::new();
        for (name, priority) in [("a", 0), ("b", -1), ("c", 0), ("d", 5), ("e", 5), ("f", -1)] {
            let mut entry = waiting(None);
            (entry.record.demand.priority, entry.record.image) = (priority, name.to_owned());
            places.push(insert(&mut queue, entry));
        }
        assert_eq!(places, [0, 1, 1, 0, 1, 5]);
        let order: String = queue.iter().map(|entry| entry.record.image.as_str()).collect();
        assert_eq!(order, "deacbf");
    }

    #[test]
    fn wait_counts_on_over_a_restart() {
        let record = ExecutionRecord { queued_at_ms: now_ms() - 400_000, ..record(State::Pending) };
        let restored = Waiting::new(Box::new(record.clone()));
        assert!(restored.is_long(Instant::now()));
        let requeued = Waiting::new(Box::new(ExecutionRecord { queued_at_ms: now_ms(), ..record }));
        assert!(!requeued.is_long(Instant::now()));
    }
}
