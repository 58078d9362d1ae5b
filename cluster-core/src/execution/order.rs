//! What a controller orders of a worker, as it travels and as it is journaled.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::manifest::Manifest;
use crate::{
    cluster::gpu::GpuId,
    ids::{ExecutionId, GpuUuid},
    registries::PullLogin,
};

/// One assignment of an execution to a node. The number fences: a higher one ends a lower one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub execution_id: ExecutionId,
    pub number: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub manifest: Manifest,
    pub input: String,
    /// The values of [`Manifest::secret_env`].
    #[serde(default, skip_serializing_if = "SecretEnv::is_empty")]
    pub secrets: SecretEnv,
    /// Login at the image's registry. Lies in a file of the journal until the image is there.
    #[serde(skip)]
    pub login: Option<PullLogin>,
}

impl Order {
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }
}

/// Variables whose values are never shown. They lie in a file of the worker's journal (0600) until the execution
/// has ended, since each iteration creates a container; the engine's own record of a container has them as long as
/// the container.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretEnv(pub BTreeMap<String, String>);

impl SecretEnv {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Written before anything is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journaled {
    pub order: Order,
    pub accepted_at_ms: i64,
    /// Until then its first container is started.
    pub deadline_ms: i64,
    /// Which of the node's GPUs it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuId>,
}

impl Journaled {
    /// Returns the end of its preparation on the monotonic clock. After a restart the wall clock says how much is left:
    /// never more than the whole, and none where it has passed.
    pub fn deadline(&self, wall_ms: i64, now: Instant) -> Instant {
        let whole_ms = self.deadline_ms.saturating_sub(self.accepted_at_ms).max(0);
        let left_ms = self.deadline_ms.saturating_sub(wall_ms).clamp(0, whole_ms);
        now + Duration::from_millis(left_ms.unsigned_abs())
    }
}

/// An execution that a worker holds, as a heartbeat reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub last_sequence: u64,
    /// Devices that it has, until it has ended. Empty where the node knows no devices.
    pub gpus: Vec<GpuUuid>,
}

impl Held {
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::request::{ExecutionRequest, Submission};

    #[test]
    fn deadline_holds_whatever_the_clock_says() {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let manifest = Submission::check(request).unwrap().manifest;
        let order = Order {
            execution_id: ExecutionId::mint(),
            attempt: 1,
            manifest,
            input: String::new(),
            secrets: SecretEnv::default(),
            login: None,
        };
        let accepted_at_ms = 1_700_000_000_000;
        let journaled =
            Journaled { order, accepted_at_ms, deadline_ms: accepted_at_ms + 60_000, gpus: Vec::new() };
        let now = Instant::now();
        let left = |wall_ms| journaled.deadline(wall_ms, now).duration_since(now).as_secs();
        assert_eq!(left(accepted_at_ms), 60);
        assert_eq!(left(accepted_at_ms + 50_000), 10, "after a restart");
        assert_eq!(left(accepted_at_ms + 86_400_000), 0);
        // Of a machine that boots in 1970.
        assert_eq!(left(0), 60);
    }
}
