//! Places for connections to the HTTP port, bounded in number.
//!
//! A connection is unproven until one of its requests brought a valid token. When all places are taken, the oldest
//! unproven connection is closed for a new one, so that clients without a token cannot keep others out. When all
//! connections are proven, a new one gets one of a few places in reserve, where only health is served: a probe is
//! answered however busy the daemon is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use cluster_core::types::clock::now_ms;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Clients that are served at a time: a few assistants with a few streams each.
pub const CONNECTIONS_MAX: usize = 256;
/// Connections beyond [`CONNECTIONS_MAX`], for health alone.
const RESERVE_MAX: usize = 16;
/// Longest time between two log lines about full places.
const LOG_INTERVAL_MS: i64 = 60_000;

/// Cheap handle to the places of one listener.
#[derive(Debug, Clone)]
pub struct Places(Arc<State>);

#[derive(Debug)]
struct State {
    places: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    /// Unproven connections in the order of their arrival.
    unproven: Mutex<BTreeMap<u64, CancellationToken>>,
    next: AtomicU64,
    logged_at_ms: AtomicI64,
}

/// Place of one connection.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    mark: Mark,
    /// Cancelled when the connection has to go.
    pub evicted: CancellationToken,
    /// Only health is served.
    pub is_reserve: bool,
}

/// Proves a connection; in the extensions of its requests.
#[derive(Debug, Clone)]
pub struct Mark {
    id: u64,
    places: Places,
}

impl Mark {
    /// Notes that a request of this connection brought a valid token.
    pub fn prove(&self) {
        self.places.unproven().remove(&self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.mark.prove();
    }
}

impl Place {
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }
}

impl Default for Places {
    fn default() -> Self {
        Self::new(CONNECTIONS_MAX, RESERVE_MAX)
    }
}

impl Places {
    fn new(places: usize, reserve: usize) -> Self {
        Self(Arc::new(State {
            places: Arc::new(Semaphore::new(places)),
            reserve: Arc::new(Semaphore::new(reserve)),
            unproven: Mutex::default(),
            next: AtomicU64::new(0),
            logged_at_ms: AtomicI64::new(0),
        }))
    }

    fn unproven(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.0.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place: a free one, the place of an unproven connection, or one in reserve.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may have closed an unproven connection.
    pub async fn take(&self) -> Option<Place> {
        if let Ok(permit) = Arc::clone(&self.0.places).try_acquire_owned() {
            return Some(self.place(permit, false));
        }
        self.log_full();
        let oldest = self.unproven().pop_first();
        if let Some((_, evicted)) = oldest {
            evicted.cancel();
            let permit = Arc::clone(&self.0.places).acquire_owned().await.ok()?;
            return Some(self.place(permit, false));
        }
        tokio::select! {
            biased;
            permit = Arc::clone(&self.0.places).acquire_owned() => Some(self.place(permit.ok()?, false)),
            permit = Arc::clone(&self.0.reserve).acquire_owned() => Some(self.place(permit.ok()?, true)),
        }
    }

    fn place(&self, permit: OwnedSemaphorePermit, is_reserve: bool) -> Place {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let evicted = CancellationToken::new();
        if !is_reserve {
            self.unproven().insert(id, evicted.clone());
        }
        Place { _permit: permit, mark: Mark { id, places: self.clone() }, evicted, is_reserve }
    }

    fn log_full(&self) {
        let now = now_ms();
        let before = self.0.logged_at_ms.load(Ordering::Relaxed);
        if now.saturating_sub(before) >= LOG_INTERVAL_MS {
            self.0.logged_at_ms.store(now, Ordering::Relaxed);
            tracing::warn!(connections = CONNECTIONS_MAX, "all HTTP connections are in use");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn oldest_unproven_connection_is_evicted() {
        let places = Places::new(2, 1);
        let (first, second) = (places.take().await.unwrap(), places.take().await.unwrap());
        first.mark().prove();
        let waiting = places.clone();
        let third = tokio::spawn(async move { waiting.take().await.unwrap() });
        second.evicted.cancelled().await;
        assert!(!first.evicted.is_cancelled());
        drop(second);
        assert!(!third.await.unwrap().is_reserve);
    }

    #[tokio::test]
    async fn proven_connections_leave_a_reserve_for_health() {
        let places = Places::new(1, 1);
        let only = places.take().await.unwrap();
        only.mark().prove();
        let reserve = places.take().await.unwrap();
        assert!(reserve.is_reserve && !only.evicted.is_cancelled());
        drop(only);
        assert!(!places.take().await.unwrap().is_reserve);
    }
}
