//! Orders on their way into the journal: those of one execution one after the other, those of others together, so
//! that they share its syncs.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use aegis_types::ids::ExecutionId;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// More than orders that are journaled together, so that two of them rarely share a lock.
const LOCKS: usize = 256;

/// Held while an order is looked up and begun.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Locks of executions, each shared by the ids that fall on it: there is no entry to clean up.
#[derive(Debug)]
pub(super) struct ExecutionLocks {
    locks: Vec<Arc<Mutex<()>>>,
    hasher: RandomState,
}

impl Default for ExecutionLocks {
    fn default() -> Self {
        Self { locks: (0..LOCKS).map(|_| Arc::default()).collect(), hasher: RandomState::new() }
    }
}

impl ExecutionLocks {
    pub async fn take(&self, execution_id: &ExecutionId) -> Turn {
        let hash = self.hasher.hash_one(execution_id);
        let place = usize::try_from(hash % LOCKS as u64).unwrap_or(0);
        Arc::clone(&self.locks[place]).lock_owned().await
    }
}
