//! Attested sessions: which node speaks in which, with which key, and what it has said already.
//!
//! Sessions live in memory alone: after a restart nothing captured before is accepted, and nodes
//! attest again by themselves.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aegis_identity::{PublicKey, SequenceWindow};
use aegis_rpc::Sealer;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{NodeId, SessionId},
};

/// Calls under way when a node attests again, or changes its key, may still finish.
pub const OVERLAP_MS: i64 = 10_000;
/// A session that ended is remembered this long, to notice who still uses it.
const FENCED_MEMORY_MS: i64 = 600_000;
/// Fenced sessions kept for each node, so that a node that attests repeatedly cannot fill the memory.
const FENCED_MAX: usize = 8;
/// One late call may be a lost answer. Two within the memory are two speakers.
const CONTENTIONS_MIN: usize = 2;

#[derive(Debug)]
struct Session {
    node_id: NodeId,
    /// The key that was pinned when it was opened: a rotation leaves it valid for the overlap.
    public_key: PublicKey,
    window: SequenceWindow,
    fenced_at_ms: Option<i64>,
    /// Seals calls to this node.
    sealer: Arc<Sealer>,
}

impl Session {
    fn is_fenced(&self, now_ms: i64) -> bool {
        self.fenced_at_ms.is_some_and(|at| at <= now_ms)
    }
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionId, Session>,
    current: HashMap<NodeId, SessionId>,
    /// Sessions of a node that newer ones ended, oldest first.
    fenced: HashMap<NodeId, VecDeque<SessionId>>,
    /// When ended sessions of a node were used, each session once.
    contentions: HashMap<NodeId, VecDeque<(i64, SessionId)>>,
}

/// All sessions of this controller. The lock is held for look-ups only.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<State>);

fn unknown() -> Error {
    Error::new(ErrorCode::SessionUnknown, "this session is not one of this controller's")
        .remedy("attest again")
}

fn fenced() -> Error {
    Error::new(ErrorCode::SessionUnknown, "a newer session of this node has ended this one")
        .remedy("attest again; if that goes on, two machines use one key")
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session; the node's older one ends after a short overlap.
    pub fn open(&self, node_id: NodeId, public_key: PublicKey, sealer: Arc<Sealer>, now_ms: i64) {
        let mut state = self.lock();
        let remembered = |at: i64| at + FENCED_MEMORY_MS > now_ms;
        state.sessions.retain(|_, session| session.fenced_at_ms.is_none_or(remembered));
        let session_id = sealer.session_id().clone();
        if let Some(older) = state.current.insert(node_id.clone(), session_id.clone()) {
            if let Some(older) = state.sessions.get_mut(&older) {
                older.fenced_at_ms = Some(older.fenced_at_ms.unwrap_or(i64::MAX).min(now_ms + OVERLAP_MS));
            }
            let fenced = state.fenced.entry(node_id.clone()).or_default();
            fenced.push_back(older);
            if fenced.len() > FENCED_MAX
                && let Some(oldest) = fenced.pop_front()
            {
                state.sessions.remove(&oldest);
            }
        }
        let window = SequenceWindow::default();
        state
            .sessions
            .insert(session_id, Session { node_id, public_key, window, fenced_at_ms: None, sealer });
    }

    /// The key that a session's calls are signed with, if the session may still speak.
    pub fn key(&self, session_id: &SessionId, node_id: &NodeId, now_ms: i64) -> Result<PublicKey> {
        let state = self.lock();
        let session = state.sessions.get(session_id).filter(|session| session.node_id == *node_id);
        let session = session.ok_or_else(unknown)?;
        if session.is_fenced(now_ms) { Err(fenced()) } else { Ok(session.public_key) }
    }

    /// The key by which a call in an ended session is known to come from the session's node.
    pub fn ended_key(&self, session_id: &SessionId, node_id: &NodeId, now_ms: i64) -> Option<PublicKey> {
        let state = self.lock();
        let session = state.sessions.get(session_id).filter(|session| session.node_id == *node_id)?;
        session.is_fenced(now_ms).then_some(session.public_key)
    }

    /// Notes that a node's key has signed in a session that ended.
    pub fn note_contention(&self, session_id: &SessionId, node_id: &NodeId, now_ms: i64) {
        let mut state = self.lock();
        let contentions = state.contentions.entry(node_id.clone()).or_default();
        contentions.retain(|(at, _)| at + FENCED_MEMORY_MS > now_ms);
        if contentions.len() < CONTENTIONS_MIN && !contentions.iter().any(|(_, known)| known == session_id) {
            contentions.push_back((now_ms, session_id.clone()));
        }
    }

    /// Whether sessions of this node's key alternate, which one machine alone does not do.
    pub fn is_contended(&self, node_id: &NodeId, now_ms: i64) -> bool {
        let state = self.lock();
        let recent = |(at, _): &&(i64, SessionId)| at + FENCED_MEMORY_MS > now_ms;
        state.contentions.get(node_id).is_some_and(|all| all.iter().filter(recent).count() >= CONTENTIONS_MIN)
    }

    /// Accepts a number of a session once.
    pub fn accept(&self, session_id: &SessionId, sequence: u64) -> Result<()> {
        let mut state = self.lock();
        state.sessions.get_mut(session_id).ok_or_else(unknown)?.window.accept(sequence)
    }

    /// Returns the sealer of calls to a node. `None` until the node has attested to this process.
    pub fn sealer(&self, node_id: &NodeId) -> Option<Arc<Sealer>> {
        let state = self.lock();
        let session = state.sessions.get(state.current.get(node_id)?)?;
        Some(session.sealer.clone())
    }

    /// The node changed its key itself: its sessions end after the overlap.
    pub fn retire(&self, node_id: &NodeId, now_ms: i64) {
        let mut state = self.lock();
        for session in state.sessions.values_mut().filter(|session| session.node_id == *node_id) {
            session.fenced_at_ms = Some(session.fenced_at_ms.unwrap_or(i64::MAX).min(now_ms + OVERLAP_MS));
        }
    }

    /// Ends every session of a node whose pinned key is another one now.
    pub fn rekey(&self, node_id: &NodeId, public_key: &PublicKey) {
        self.end(node_id, |key| key != public_key);
    }

    /// Ends every session of a node.
    pub fn forget(&self, node_id: &NodeId) {
        self.end(node_id, |_| true);
    }

    fn end(&self, node_id: &NodeId, which: impl Fn(&PublicKey) -> bool) {
        let mut state = self.lock();
        state.sessions.retain(|_, session| session.node_id != *node_id || !which(&session.public_key));
        let current = state.current.get(node_id).cloned();
        if current.is_some_and(|id| !state.sessions.contains_key(&id)) {
            state.current.remove(node_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_identity::NodeKey;
    use aegis_rpc::ClusterClock;

    fn open(sessions: &Sessions, node: &NodeId, key: &Arc<NodeKey>, now_ms: i64) -> SessionId {
        let id = SessionId::mint();
        let clock = ClusterClock::new(now_ms, tokio::time::Instant::now());
        let sealer = Sealer::new(key.clone(), node.clone(), "c".into(), "t".into(), id.clone(), 1, clock);
        sessions.open(node.clone(), key.public(), Arc::new(sealer), now_ms);
        id
    }

    fn setting() -> (Sessions, NodeId, Arc<NodeKey>) {
        let node = NodeId::parse("edge-1").unwrap();
        (Sessions::default(), node, Arc::new(NodeKey::generate().unwrap()))
    }

    #[test]
    fn a_newer_session_ends_the_older_one_after_the_overlap() {
        let (sessions, node, key) = setting();
        let first = open(&sessions, &node, &key, 0);
        let second = open(&sessions, &node, &key, 1_000);
        sessions.key(&first, &node, 1_000 + OVERLAP_MS - 1).unwrap();
        let error = sessions.key(&first, &node, 1_000 + OVERLAP_MS).unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionUnknown);
        sessions.key(&second, &node, 1_000_000).unwrap();
        assert!(!sessions.is_contended(&node, 20_000), "one late call is no second machine");
    }

    #[test]
    fn two_sessions_of_one_key_that_alternate_are_noticed() {
        let (sessions, node, key) = setting();
        let ours = open(&sessions, &node, &key, 0);
        let copy = open(&sessions, &node, &key, 1_000);
        let speak = |session: &SessionId, now_ms| {
            assert!(sessions.key(session, &node, now_ms).is_err());
            assert!(sessions.ended_key(session, &node, now_ms).is_some());
            sessions.note_contention(session, &node, now_ms);
        };
        for _ in 0..3 {
            speak(&ours, 20_000);
        }
        assert!(!sessions.is_contended(&node, 20_000), "one session that goes on trying counts once");
        open(&sessions, &node, &key, 20_000);
        assert!(sessions.key(&copy, &node, 40_000).is_err());
        assert!(!sessions.is_contended(&node, 40_000), "not before the key has signed");
        speak(&copy, 40_000);
        assert!(sessions.is_contended(&node, 40_000));
        assert!(!sessions.is_contended(&node, 40_000 + FENCED_MEMORY_MS));
    }

    #[test]
    fn a_node_that_attests_over_and_over_fills_no_memory() {
        let (sessions, node, key) = setting();
        for _ in 0..1_000 {
            open(&sessions, &node, &key, 0);
        }
        assert_eq!(sessions.lock().sessions.len(), FENCED_MAX + 1);
    }

    #[test]
    fn a_removed_node_and_another_key_end_sessions_at_once() {
        let (sessions, node, key) = setting();
        let other = Arc::new(NodeKey::generate().unwrap());
        let session = open(&sessions, &node, &key, 0);
        sessions.rekey(&node, &key.public());
        sessions.key(&session, &node, 1).unwrap();
        sessions.rekey(&node, &other.public());
        assert!(sessions.key(&session, &node, 1).is_err());
        let session = open(&sessions, &node, &other, 0);
        sessions.forget(&node);
        assert!(sessions.key(&session, &node, 1).is_err() && sessions.sealer(&node).is_none());
    }
}
