//! Sessions that a connection may have open at a time.

use std::sync::Arc;

use tokio::sync::{OnceCell, Semaphore};

pub(super) struct Sessions {
    pub slots: Arc<Semaphore>,
    pub several: OnceCell<bool>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(SESSIONS_MAX as usize)), several: OnceCell::new() }
    }
}

/// sshd allows 10; two are left for slots that are still being freed.
pub const SESSIONS_MAX: u32 = 8;
