//! Reads that succeeded, folded: those of one caller with one tool within a second become one entry.
//!
//! Assistants ask for the same thing again and again, and an entry for each costs more than the answer. What changes
//! something, and what is refused or abandoned, is never folded.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aegis_store::AuditRow;
use aegis_types::caller::Actor;
use tokio::{sync::Notify, time::Instant};

use super::Client;

/// Reads that are this close to the first are one entry.
const WINDOW: Duration = Duration::from_secs(1);
/// Entries that are open. Beyond it each read is an entry of its own.
const OPEN_MAX: usize = 1024;

/// Reads with the same key are one entry.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub actor: Actor,
    pub client: Option<Client>,
    pub action: String,
}

/// Reads that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Reads {
    state: Mutex<State>,
    /// The first one is open.
    opened: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Key, (Instant, AuditRow)>,
    /// Nothing is written any more.
    is_closed: bool,
}

impl Reads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a read. Returns the entry that is to be written now, where there is one.
    pub fn count(&self, key: Key, row: AuditRow) -> Option<AuditRow> {
        let now = Instant::now();
        let mut state = self.state();
        if state.is_closed {
            return Some(row);
        }
        let is_full = state.open.len() >= OPEN_MAX;
        let is_first = state.open.is_empty();
        let complete = match state.open.entry(key) {
            Entry::Occupied(mut entry) => {
                let (since, first) = entry.get_mut();
                if now.duration_since(*since) < WINDOW {
                    first.calls += 1;
                    first.last_at_ms = Some(row.at_ms);
                    first.duration_ms = first.duration_ms.max(row.duration_ms);
                    None
                } else {
                    Some(entry.insert((now, row)).1)
                }
            }
            Entry::Vacant(_) if is_full => Some(row),
            Entry::Vacant(entry) => {
                entry.insert((now, row));
                None
            }
        };
        drop(state);
        if is_first {
            self.opened.notify_one();
        }
        complete
    }

    /// Resolves once an entry is complete.
    pub async fn complete(&self) {
        loop {
            let oldest = self.state().open.values().map(|(since, _)| *since).min();
            match oldest {
                Some(since) => return tokio::time::sleep_until(since + WINDOW).await,
                None => self.opened.notified().await,
            }
        }
    }

    /// Takes the entries to which no read is added any more, oldest first.
    pub fn take_complete(&self) -> Vec<AuditRow> {
        let now = Instant::now();
        sorted(self.state().open.extract_if(|_, (since, _)| now.duration_since(*since) >= WINDOW))
    }

    /// Takes all entries, oldest first.
    pub fn take_all(&self) -> Vec<AuditRow> {
        sorted(self.state().open.drain())
    }

    /// Takes all entries for the last time: later reads are entries of their own.
    pub fn close(&self) -> Vec<AuditRow> {
        self.state().is_closed = true;
        self.take_all()
    }
}

fn sorted(entries: impl Iterator<Item = (Key, (Instant, AuditRow))>) -> Vec<AuditRow> {
    let mut rows = entries.map(|(_, (_, row))| row).collect::<Vec<_>>();
    rows.sort_by_key(|row| row.at_ms);
    rows
}
