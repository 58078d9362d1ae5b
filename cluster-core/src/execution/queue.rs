//! The task that places what waits for a node, in the order in which it came; what does not fit holds
//! nobody up.
//!
//! What has no room is looked at again when the membership changes, and not for every newcomer: of two
//! that ask for the same, the later one fits no better.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::sync::mpsc;

use super::{
    drive::{self, Handed},
    lifecycle::{Input, State, Step},
    live::{Live, Shared, Word},
    manifest::Demand,
    view::EventKind,
};
use crate::{
    cluster::{membership::Membership, placement::NoFit},
    error::Result,
    ids::{ExecutionId, NodeId},
    store::{ExecutionRecord, ExecutionWrite, Write},
};

/// After the store refused a placement (a full disk, say).
const PLACE_RETRY: Duration = Duration::from_secs(5);
/// Placed by one decision and stored by one commit.
const PLACED_TOGETHER_MAX: usize = 256;

pub(super) struct Queue {
    pub shared: Arc<Shared>,
    pub waiting: VecDeque<Box<ExecutionRecord>>,
}

impl Queue {
    pub async fn run(mut self, mut words: mpsc::Receiver<Word>) {
        let mut version = self.shared.controller.version();
        let stop = self.shared.stop.clone();
        let mut from = 0;
        loop {
            // Placing raises the version itself: what it placed is not worth another look.
            version.mark_unchanged();
            let mut retry = false;
            if let Err(error) = self.place(from).await {
                tracing::error!(error = %error.chain(), "not all could be placed; it is tried again");
                retry = true;
            }
            from = tokio::select! {
                () = tokio::time::sleep(PLACE_RETRY), if retry => 0,
                () = stop.cancelled() => return,
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

    /// From where on the queue is worth a look.
    fn take(&mut self, word: Word, from: usize) -> usize {
        match word {
            Word::Place(record) => {
                self.waiting.push_back(record);
                from
            }
            Word::Cancelled(id) => {
                let place = self.waiting.iter().position(|record| record.execution_id == id);
                place.map_or(from, |place| place.min(from))
            }
        }
    }

    /// Those from a place in the queue on. What an error leaves behind still waits.
    async fn place(&mut self, from: usize) -> Result<()> {
        let mut rest = self.waiting.split_off(from.min(self.waiting.len()));
        let mut outcome = Ok(());
        while outcome.is_ok() && !rest.is_empty() {
            let later = rest.split_off(rest.len().min(PLACED_TOGETHER_MAX));
            let batch = std::mem::replace(&mut rest, later);
            outcome = self.place_batch(batch).await;
        }
        self.waiting.append(&mut rest);
        outcome
    }

    async fn place_batch(&mut self, batch: VecDeque<Box<ExecutionRecord>>) -> Result<()> {
        let mut outcome = Ok(());
        let mut asked = Vec::with_capacity(batch.len());
        for mut record in batch {
            let Some(live) = self.shared.live(&record.execution_id) else { continue };
            let cancelled = live.cancel.borrow().clone();
            if let Some(reason) = cancelled {
                let end = EventKind::Cancelled { reason };
                if let Err(error) = self.shared.end(&mut record, &live, end).await {
                    outcome = Err(error);
                    self.waiting.push_back(record);
                }
                continue;
            }
            asked.push((record, live));
        }
        let demands =
            asked.iter().map(|(record, _)| (record.execution_id.clone(), record.demand.clone())).collect();
        let placed =
            self.shared.controller.with_placement(move |membership| decide(membership, demands)).await;
        let placed = match placed {
            Ok(placed) => placed,
            Err(error) => {
                self.waiting.extend(asked.into_iter().map(|(record, _)| record));
                return Err(error);
            }
        };
        let mut chosen = Vec::new();
        for ((record, live), placed) in asked.into_iter().zip(placed) {
            match placed {
                Ok(node_id) => chosen.push((record, live, node_id)),
                Err(no_fit) => {
                    tell(&live, &no_fit);
                    self.waiting.push_back(record);
                }
            }
        }
        // Together, so that the store commits them together.
        let stored = join_all(chosen.iter().map(|(record, _, node_id)| self.store(record, node_id))).await;
        for ((record, live, node_id), stored) in chosen.into_iter().zip(stored) {
            match stored {
                Ok(true) => self.begin(*record, live, node_id),
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
                drive::spawn(self.shared.clone(), stored, live, Handed::Perhaps);
                Ok(())
            }
        }
    }

    async fn put_back(&mut self, record: Box<ExecutionRecord>) -> Result<()> {
        let id = record.execution_id.clone();
        self.waiting.push_back(record);
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
        drive::spawn(self.shared.clone(), record, live, Handed::No);
    }
}

/// Chooses for each in turn. Where one finds no room, another that asks for the same finds none either.
fn decide(
    membership: &mut Membership,
    demands: Vec<(ExecutionId, Demand)>,
) -> Vec<std::result::Result<NodeId, NoFit>> {
    let mut without_room: Vec<(Demand, NoFit)> = Vec::new();
    demands
        .into_iter()
        .map(|(id, demand)| {
            if let Some((_, no_fit)) = without_room.iter().find(|(known, _)| *known == demand) {
                return Err(no_fit.clone());
            }
            let placed = membership.place(&id, &demand);
            if let Err(no_fit) = &placed {
                without_room.push((demand, no_fit.clone()));
            }
            placed
        })
        .collect()
}

fn tell(live: &Live, no_fit: &NoFit) {
    let waiting = Some(no_fit.to_string());
    live.view.send_if_modified(|view| {
        let changed = view.waiting != waiting;
        view.waiting = waiting;
        changed
    });
}
