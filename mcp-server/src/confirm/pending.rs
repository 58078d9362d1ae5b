//! Plans that were shown or asked and wait for confirmation. They are bounded, short-lived, and used once.
//!
//! The state stays here and the client holds a random handle, so nothing that the client returns has to be trusted.
//! Single use requires state on this side in any case.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use cluster_core::identity::sha256;
use rmcp::model::JsonObject;
use uuid::Uuid;

use super::VALID;

/// Maximum number of plans. The oldest is evicted.
const PENDING_MAX: usize = 256;
/// Length of a handle in hexadecimal digits: 74 random bits, and short enough to be typed.
const HANDLE_DIGITS: usize = 20;
/// Arguments that do not affect the action.
const NOT_BOUND: [&str; 2] = ["wait_seconds", "response_format"];

/// Way in which a handle was issued. A handle is valid only for its own kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To the model, which returns it as an argument.
    Shown,
    /// To the client, which returns it with its person's answer.
    Asked,
}

/// Exact subject of a confirmation: caller, tool and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject([u8; 32]);

impl Subject {
    pub fn of(caller: &str, tool: &str, arguments: Option<&JsonObject>) -> Self {
        let mut bound = arguments.cloned().unwrap_or_default();
        bound.retain(|name, _| !NOT_BOUND.contains(&name.as_str()));
        // serde_json's objects are sorted by key.
        let text = serde_json::to_vec(&(caller, tool, bound)).unwrap_or_default();
        Self(sha256(&text))
    }
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    subject: Subject,
    carries: Option<String>,
    until: SystemTime,
}

#[derive(Debug, Default)]
pub struct Pending(Mutex<HashMap<String, Entry>>);

impl Pending {
    pub fn put(&self, kind: Kind, subject: Subject, carries: Option<String>, now: SystemTime) -> String {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.until > now);
        if entries.len() >= PENDING_MAX
            && let Some(oldest) =
                entries.iter().min_by_key(|(_, entry)| entry.until).map(|(handle, _)| handle.clone())
        {
            entries.remove(&oldest);
        }
        let mut handle = Uuid::new_v4().simple().to_string();
        handle.truncate(HANDLE_DIGITS);
        entries.insert(handle.clone(), Entry { kind, subject, carries, until: now + VALID });
        handle
    }

    /// Spends a handle and returns its value. A handle of another subject is kept, since it may be used correctly
    /// later.
    pub fn take(
        &self,
        handle: &str,
        kind: Kind,
        subject: &Subject,
        now: SystemTime,
    ) -> Option<Option<String>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(handle)?;
        if entry.kind != kind || entry.subject != *subject || entry.until <= now {
            return None;
        }
        entries.remove(handle).map(|entry| entry.carries)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn subject(caller: &str, arguments: &serde_json::Value) -> Subject {
        Subject::of(caller, "drain_node", arguments.as_object())
    }

    #[test]
    fn a_handle_counts_once_for_one_caller_and_one_call() {
        let (pending, now) = (Pending::default(), SystemTime::UNIX_EPOCH);
        let ours = subject("a", &json!({"node_id": "n", "wait_seconds": 1}));
        let handle = pending.put(Kind::Shown, ours.clone(), Some("digest".to_owned()), now);
        for other in [subject("b", &json!({"node_id": "n"})), subject("a", &json!({"node_id": "m"}))] {
            assert_eq!(pending.take(&handle, Kind::Shown, &other, now), None);
        }
        assert_eq!(
            pending.take(&handle, Kind::Asked, &ours, now),
            None,
            "a model's token is no person's answer"
        );
        assert_eq!(pending.take(&handle, Kind::Shown, &ours, now + VALID), None, "too late");
        let same = subject("a", &json!({"node_id": "n", "wait_seconds": 40}));
        assert_eq!(pending.take(&handle, Kind::Shown, &same, now), Some(Some("digest".to_owned())));
        assert_eq!(pending.take(&handle, Kind::Shown, &ours, now), None, "twice");
    }

    #[test]
    fn the_oldest_makes_room() {
        let pending = Pending::default();
        let one = subject("a", &json!({}));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds);
        let handles: Vec<_> =
            (0..=PENDING_MAX as u64).map(|n| pending.put(Kind::Shown, one.clone(), None, at(n))).collect();
        let now = at(PENDING_MAX as u64);
        assert_eq!(pending.take(&handles[0], Kind::Shown, &one, now), None);
        assert_eq!(pending.take(&handles[1], Kind::Shown, &one, now), Some(None));
    }
}
