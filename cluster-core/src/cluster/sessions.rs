//! Attested sessions: which node speaks in which, and what it has said already.
//!
//! Sessions live in memory alone: after a restart nothing captured before is accepted, and nodes
//! attest again by themselves.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    error::{Error, ErrorCode, Result},
    identity::{PublicKey, SealContext, SequenceWindow},
    ids::{NodeId, SessionId},
    rpc::Sealer,
};

/// Calls under way when a node attests again may still finish.
const OVERLAP_MS: i64 = 10_000;

#[derive(Debug)]
struct Session {
    node_id: NodeId,
    public_key: PublicKey,
    window: SequenceWindow,
    fenced_at_ms: Option<i64>,
    /// For calls to this node.
    sealer: Arc<Sealer>,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionId, Session>,
    current: HashMap<NodeId, SessionId>,
}

/// All sessions of this controller. The lock is held for look-ups only.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<State>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session; the node's older one ends after a short overlap.
    pub fn open(&self, node_id: NodeId, public_key: PublicKey, sealer: Arc<Sealer>, now_ms: i64) {
        let mut state = self.lock();
        state.sessions.retain(|_, session| session.fenced_at_ms.is_none_or(|at| at > now_ms));
        let session_id = sealer.session_id().clone();
        if let Some(older) = state.current.insert(node_id.clone(), session_id.clone())
            && let Some(older) = state.sessions.get_mut(&older)
        {
            older.fenced_at_ms = Some(now_ms + OVERLAP_MS);
        }
        let window = SequenceWindow::default();
        state
            .sessions
            .insert(session_id, Session { node_id, public_key, window, fenced_at_ms: None, sealer });
    }

    /// Accepts a call of a session once.
    pub fn accept(&self, context: &SealContext, now_ms: i64) -> Result<()> {
        let unknown = || {
            Error::new(ErrorCode::SessionUnknown, "this session is not one of this controller's")
                .remedy("attest again")
        };
        let mut state = self.lock();
        let session = state.sessions.get_mut(&context.session_id).ok_or_else(unknown)?;
        if session.node_id != context.sender || session.fenced_at_ms.is_some_and(|at| at <= now_ms) {
            return Err(unknown());
        }
        session.window.accept(context.sequence)
    }

    /// How the controller speaks to a node: None until it has attested in this life of the controller.
    pub fn sealer(&self, node_id: &NodeId) -> Option<Arc<Sealer>> {
        let state = self.lock();
        let session = state.sessions.get(state.current.get(node_id)?)?;
        Some(session.sealer.clone())
    }

    /// Ends every session of a node whose pinned key is another one now.
    pub fn rekey(&self, node_id: &NodeId, public_key: &PublicKey) {
        let mut state = self.lock();
        state.sessions.retain(|_, session| session.node_id != *node_id || session.public_key == *public_key);
        let current = state.current.get(node_id).cloned();
        if current.is_some_and(|id| !state.sessions.contains_key(&id)) {
            state.current.remove(node_id);
        }
    }
}
