//! Log of node events: bounded, in memory, and pulled by each reader.
//!
//! It has no task: the membership's owner appends, and readers wait. A slow reader delays no other, and gets a gap for
//! events beyond the bound. The log begins with the controller's process, so that an id carries the epoch.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aegis_types::{
    clock::rfc3339,
    error::Error,
    ids::NodeId,
    node::{Desired, NodeRecord, Observed},
    node_event::NodeEventKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Kept for readers that come later: a day of a quiet cluster, minutes of a bad hour.
const EVENTS_MAX: usize = 4096;

/// Position of a reader: `<epoch>-<sequence>`. Ids are ordered like their events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    pub epoch: u64,
    pub sequence: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

impl FromStr for EventId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers = text.split_once('-').and_then(|(epoch, sequence)| {
            Some(Self { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
        });
        numbers.ok_or_else(|| {
            Error::invalid(format!("\"{}\" is not the id of a node event", aegis_types::text::shown(text)))
                .remedy("it looks like 3-17: the epoch and the number of the event")
        })
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeEvent {
    /// `<epoch>-<sequence>`: what to resume from.
    pub id: String,
    /// RFC 3339.
    pub time: String,
    pub kind: NodeEventKind,
    pub node_id: NodeId,
}

/// Events for a reader, and where to continue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub events: Vec<NodeEvent>,
    /// Events before these are gone: those of an earlier life of the controller, or too old.
    pub gap: bool,
}

#[derive(Debug, Default)]
struct Log {
    events: VecDeque<NodeEvent>,
    /// Number of the newest event. The first event has 1.
    sequence: u64,
}

/// A cheap handle on the log.
#[derive(Debug, Clone)]
pub struct NodeEvents {
    epoch: u64,
    log: Arc<Mutex<Log>>,
    newest: Arc<watch::Sender<u64>>,
}

impl NodeEvents {
    pub fn new(epoch: u64) -> Self {
        Self { epoch, log: Arc::default(), newest: Arc::new(watch::channel(0).0) }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn append(&self, kind: NodeEventKind, node_id: NodeId, now_ms: i64) {
        let mut log = self.lock();
        log.sequence += 1;
        let id = EventId { epoch: self.epoch, sequence: log.sequence }.to_string();
        if log.events.len() == EVENTS_MAX {
            log.events.pop_front();
        }
        log.events.push_back(NodeEvent { id, time: rfc3339(now_ms), kind, node_id });
        let newest = log.sequence;
        drop(log);
        self.newest.send_replace(newest);
    }

    /// The newest event there is now: a reader that starts from here sees only what comes.
    pub fn newest(&self) -> EventId {
        EventId { epoch: self.epoch, sequence: self.lock().sequence }
    }

    /// The events after this one, at most `limit`.
    pub fn after(&self, id: EventId, limit: usize) -> Batch {
        let log = self.lock();
        // Another epoch's number says nothing about this log.
        let known = if id.epoch == self.epoch { id.sequence.min(log.sequence) } else { 0 };
        let first = log.sequence + 1 - log.events.len() as u64;
        let skip = usize::try_from((known + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let gap = known + 1 < first || (id.epoch != self.epoch && id.epoch != 0);
        Batch { events: log.events.iter().skip(skip).take(limit).cloned().collect(), gap }
    }

    /// Resolves when there is an event after this one.
    pub async fn wait(&self, id: EventId) {
        if id.epoch != self.epoch {
            return;
        }
        let mut newest = self.newest.subscribe();
        // The sender lives in this handle.
        let _ = newest.wait_for(|newest| *newest > id.sequence).await;
    }
}

/// Returns the event that a change of a node's record amounts to.
pub fn event_of(before: Option<&NodeRecord>, after: &NodeRecord) -> Option<NodeEventKind> {
    let wanted = before.map_or(Desired::Schedulable, |record| record.desired);
    let seen = before.map_or(Observed::Expected, |record| record.observed);
    match (wanted, after.desired) {
        (Desired::Removed, Desired::Removed) => return None,
        (_, Desired::Removed) => return Some(NodeEventKind::NodeRemoved),
        (Desired::Schedulable, Desired::Draining | Desired::Removing) => {
            return Some(NodeEventKind::NodeDraining);
        }
        (Desired::Draining | Desired::Removing, Desired::Schedulable) => {
            return Some(NodeEventKind::NodeResumed);
        }
        _ => {}
    }
    match (seen, after.observed) {
        (Observed::Expected, Observed::Active) => Some(NodeEventKind::NodeJoined),
        (Observed::Unhealthy | Observed::Offline, Observed::Active) => Some(NodeEventKind::NodeRecovered),
        (Observed::Expected | Observed::Active | Observed::Offline, Observed::Unhealthy) => {
            Some(NodeEventKind::NodeUnhealthy)
        }
        (Observed::Expected | Observed::Active | Observed::Unhealthy, Observed::Offline) => {
            Some(NodeEventKind::NodeOffline)
        }
        (Observed::Active, Observed::Active)
        | (Observed::Unhealthy, Observed::Unhealthy)
        | (Observed::Offline, Observed::Offline)
        | (_, Observed::Expected) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> NodeId {
        NodeId::parse(text).unwrap()
    }

    #[test]
    fn readers_resume_and_are_told_of_gaps() {
        let events = NodeEvents::new(3);
        for _ in 0..EVENTS_MAX + 10 {
            events.append(NodeEventKind::NodeJoined, node("a"), 0);
        }
        let newest = events.newest();
        assert_eq!(newest.sequence, EVENTS_MAX as u64 + 10);
        assert_eq!(events.after(newest, 10), Batch::default());
        let last = events.after(EventId { sequence: newest.sequence - 1, ..newest }, 10);
        assert_eq!((last.events.len(), last.gap), (1, false));
        assert_eq!(last.events[0].id, newest.to_string());
        let old = events.after(EventId { epoch: 3, sequence: 5 }, 1);
        assert_eq!((old.events[0].id.as_str(), old.gap), ("3-11", true));
        let earlier_life = events.after(EventId { epoch: 2, sequence: 4_000 }, 1);
        assert!(earlier_life.gap);
        assert_eq!(earlier_life.events[0].id, "3-11");
        let future = events.after(EventId { epoch: 3, sequence: u64::MAX }, 1);
        assert!(future.events.is_empty());
    }

    #[tokio::test]
    async fn a_reader_waits_for_what_comes() {
        let events = NodeEvents::new(1);
        let start = events.newest();
        let waiting = tokio::spawn({
            let events = events.clone();
            async move {
                events.wait(start).await;
                events.after(start, 10).events
            }
        });
        events.append(NodeEventKind::NodeOffline, node("b"), 0);
        assert_eq!(waiting.await.unwrap()[0].kind, NodeEventKind::NodeOffline);
    }

    #[test]
    fn ids_read_back() {
        let id = EventId { epoch: 7, sequence: 9 };
        assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
        for bad in ["", "7", "7-", "-1", "a-b", "7-9-1"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }
}
