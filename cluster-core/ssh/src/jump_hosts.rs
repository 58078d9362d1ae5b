//! Connections to jump hosts, shared by all connections through them. A server limits concurrent logins
//! (`MaxStartups`), and all links of a fleet connect at once when the controller starts.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::UserName,
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::{
    connection::{Connection, WeakConnection},
    host_keys::{Accepted, HostKey},
    target::Endpoint,
};

/// Traffic of a connection to a jump host. Bulk data of deployments does not queue in front of heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    Links,
    Work,
}

/// The logins of a route up to a jump host, nearest first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Way {
    pub purpose: Purpose,
    pub hops: Vec<(Endpoint, UserName)>,
}

/// A cheap handle.
#[derive(Clone, Default)]
pub struct JumpHosts {
    slots: Arc<Mutex<HashMap<Way, Arc<AsyncMutex<Slot>>>>>,
}

impl fmt::Debug for JumpHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JumpHosts")
    }
}

/// The connection at the end of one way. It ends with the last connection that it carries.
#[derive(Default)]
struct Slot {
    open: Option<WeakConnection>,
    failed: Option<Failed>,
}

struct Failed {
    at: Instant,
    code: ErrorCode,
    message: String,
    remedy: Option<String>,
}

impl Failed {
    fn of(error: &Error) -> Self {
        let remedy = error.remedy_text().map(str::to_owned);
        Self { at: Instant::now(), code: error.code(), message: error.message().to_owned(), remedy }
    }

    fn error(&self) -> Error {
        let error = Error::new(self.code, self.message.clone());
        match &self.remedy {
            Some(remedy) => error.remedy(remedy.clone()),
            None => error,
        }
    }
}

impl JumpHosts {
    /// Returns the connection at the end of a way, opened by `open` if there is no usable connection. Concurrent
    /// callers share one attempt and its failure.
    ///
    /// `pinned` returns the key that is pinned to the host now. An existing connection is not reused if it has another
    /// key, or if its key was accepted by a removed pin.
    pub async fn connect(
        &self,
        way: Way,
        pinned: impl AsyncFnOnce() -> Result<Option<HostKey>>,
        open: impl AsyncFnOnce() -> Result<Connection>,
    ) -> Result<Connection> {
        let asked = Instant::now();
        let slot = self.slot(way);
        let mut slot = slot.lock().await;
        if let Some(failed) = slot.failed.as_ref().filter(|failed| failed.at >= asked) {
            return Err(failed.error());
        }
        if let Some(connection) = slot.open.as_ref().and_then(WeakConnection::upgrade)
            && is_trusted(&connection, pinned().await?.as_ref())
        {
            return Ok(connection);
        }
        match open().await {
            Ok(connection) => {
                *slot = Slot { open: Some(connection.downgrade()), failed: None };
                Ok(connection)
            }
            Err(error) => {
                *slot = Slot { open: None, failed: Some(Failed::of(&error)) };
                Err(error)
            }
        }
    }

    /// Returns the slot of a way. Unused slots whose connection has ended are removed.
    fn slot(&self, way: Way) -> Arc<AsyncMutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            let is_open = |slot: &Slot| slot.open.as_ref().and_then(WeakConnection::upgrade).is_some();
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|slot| is_open(&slot))
        });
        slots.entry(way).or_default().clone()
    }
}

fn is_trusted(connection: &Connection, pinned: Option<&HostKey>) -> bool {
    match (pinned, connection.host_key_accepted()) {
        (Some(pinned), _) => pinned == connection.host_key(),
        (None, Accepted::Known) => true,
        (None, Accepted::Pinned | Accepted::New) => false,
    }
}
