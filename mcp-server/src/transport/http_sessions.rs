//! Sessions of the older eras over HTTP, bounded in number.
//!
//! rmcp ends idle sessions. A client that opens a session for every call and never closes one would still accumulate
//! thousands. At the bound, the least recently used session is evicted. Its client gets 404 and starts a new session,
//! as in the specification (Streamable HTTP, session management).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::Stream;
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::{
        SessionId, SessionManager,
        session::{
            ServerSseMessage,
            local::{LocalSessionManager, SessionConfig},
        },
    },
};

type Local = LocalSessionManager;
type Error = <Local as SessionManager>::Error;

#[derive(Debug)]
pub struct HttpSessions {
    local: Local,
    uses: Mutex<Uses>,
    count_max: usize,
}

/// Current sessions, each with the number of its last use; the smallest number is the least recently used session.
#[derive(Debug, Default)]
struct Uses {
    count: u64,
    last: HashMap<SessionId, Use>,
}

/// Number of a session's last use, and the caller that opened the session.
#[derive(Debug, Default)]
struct Use {
    number: u64,
    owner: Option<String>,
}

impl Uses {
    /// Records a use. A session that has ended meanwhile is not restored.
    fn again(&mut self, id: &SessionId) {
        if let Some(last) = self.last.get_mut(id) {
            self.count += 1;
            last.number = self.count;
        }
    }

    /// Records a new session. Returns the session to evict, if the bound is exceeded.
    fn first(&mut self, id: SessionId, count_max: usize) -> Option<SessionId> {
        let is_full = self.last.len() >= count_max;
        let oldest = self.last.iter().min_by_key(|(_, last)| last.number).filter(|_| is_full);
        let oldest = oldest.map(|(id, _)| id.clone());
        if let Some(id) = &oldest {
            self.last.remove(id);
        }
        self.count += 1;
        self.last.insert(id, Use { number: self.count, owner: None });
        oldest
    }
}

impl HttpSessions {
    pub fn new(count_max: usize, idle_max: Duration) -> Self {
        let mut local = Local::default();
        let mut config = SessionConfig::default();
        config.keep_alive = Some(idle_max);
        local.session_config = config;
        Self { local, uses: Mutex::default(), count_max }
    }

    /// Records the caller that opened a session.
    pub fn set_owner(&self, id: &str, owner: &str) {
        if let Some(found) = self.uses().last.get_mut(id) {
            found.owner = Some(owner.to_owned());
        }
    }

    /// Returns whether another caller opened the session.
    pub fn is_of_another(&self, id: &str, caller: &str) -> bool {
        let uses = self.uses();
        uses.last.get(id).and_then(|found| found.owner.as_deref()).is_some_and(|owner| owner != caller)
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionManager for HttpSessions {
    type Error = Error;
    type Transport = <Local as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Error> {
        let (id, transport) = self.local.create_session().await?;
        let oldest = self.uses().first(id.clone(), self.count_max);
        if let Some(oldest) = oldest {
            tracing::info!(sessions = self.count_max, "an MCP session makes room for a new one");
            if let Err(error) = self.local.close_session(&oldest).await {
                tracing::debug!(%error, "it had ended by itself");
            }
        }
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Error> {
        self.local.initialize_session(id, message).await
    }

    /// Called before every other operation on a session.
    async fn has_session(&self, id: &SessionId) -> Result<bool, Error> {
        self.uses().again(id);
        self.local.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Error> {
        self.uses().last.remove(id);
        self.local.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Error> {
        self.local.create_stream(id, message).await
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), Error> {
        self.local.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Error> {
        self.local.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Error> {
        self.local.resume(id, last_event_id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_MAX: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_one_that_was_used_longest_ago_makes_room() {
        let sessions = HttpSessions::new(2, IDLE_MAX);
        let open = async || sessions.create_session().await.unwrap();
        let (first, _of_first) = open().await;
        let (second, _of_second) = open().await;
        assert!(sessions.has_session(&first).await.unwrap(), "and it is used by that");
        let (third, _of_third) = open().await;
        assert!(!sessions.has_session(&second).await.unwrap());
        assert!(sessions.has_session(&first).await.unwrap() && sessions.has_session(&third).await.unwrap());

        sessions.set_owner(&first, "token a");
        assert!(sessions.is_of_another(&first, "token b") && !sessions.is_of_another(&first, "token a"));

        // A session that its client ended takes no place.
        sessions.close_session(&first).await.unwrap();
        let (fourth, _of_fourth) = open().await;
        assert!(sessions.has_session(&third).await.unwrap() && sessions.has_session(&fourth).await.unwrap());
        assert!(!sessions.has_session(&first).await.unwrap());
        assert_eq!(sessions.uses().last.len(), 2);
    }
}
