//! Sockets of ssh agents. A daemon outlives the login that started it, and with it the agent of that login; the
//! sockets of later logins take its place.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Logins of one person on one machine.
const SOCKETS_MAX: usize = 8;

/// Sockets by the time of their last offer, newest first. A cheap handle.
#[derive(Debug, Clone, Default)]
pub(super) struct AgentSockets(Arc<Mutex<Vec<PathBuf>>>);

impl AgentSockets {
    pub fn new(first: Option<PathBuf>) -> Self {
        Self(Arc::new(Mutex::new(first.into_iter().collect())))
    }

    pub fn offer(&self, path: PathBuf) {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|known| *known != path);
        sockets.insert(0, path);
        sockets.truncate(SOCKETS_MAX);
    }

    /// Returns the newest socket at which an agent answers. If no agent answers, returns the newest socket, so that the
    /// error names its path.
    pub fn usable(&self) -> Option<PathBuf> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sockets.iter().find(|path| answers(path)).or_else(|| sockets.first()).cloned()
    }
}

/// Connects to the socket. A local listener accepts or refuses a connection at once.
fn answers(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn newest_agent_that_answers_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let sockets = AgentSockets::new(Some(path("first")));
        assert_eq!(sockets.usable(), Some(path("first")), "an error names it");
        let second = UnixListener::bind(path("second")).unwrap();
        let _third = UnixListener::bind(path("third")).unwrap();
        sockets.offer(path("third"));
        sockets.offer(path("second"));
        assert_eq!(sockets.usable(), Some(path("second")));
        drop(second);
        assert_eq!(sockets.usable(), Some(path("third")), "the login of the second has ended");
        for number in 0..20 {
            sockets.offer(path(&number.to_string()));
        }
        assert_eq!(sockets.0.lock().unwrap().len(), SOCKETS_MAX);
        assert_eq!(AgentSockets::default().usable(), None);
    }
}
