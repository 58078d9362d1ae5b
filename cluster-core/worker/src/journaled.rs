//! An order as the worker's journal has it.

use std::time::Duration;

use aegis_types::{execution::order::Order, gpu::GpuId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Written before anything is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JournaledAssignment {
    pub order: Order,
    pub accepted_at_ms: i64,
    /// Until then its first container is started.
    pub deadline_ms: i64,
    /// Which of the node's GPUs it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuId>,
}

impl JournaledAssignment {
    /// Returns the deadline of its preparation on the monotonic clock. After a restart the rest follows from the wall
    /// clock, and lies between 0 and the whole.
    pub fn deadline(&self, wall_ms: i64, now: Instant) -> Instant {
        let whole_ms = self.deadline_ms.saturating_sub(self.accepted_at_ms).max(0);
        let left_ms = self.deadline_ms.saturating_sub(wall_ms).clamp(0, whole_ms);
        now + Duration::from_millis(left_ms.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::{
        execution::{
            order::SecretEnv,
            request::{ExecutionRequest, Submission},
        },
        ids::ExecutionId,
    };

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
        let journaled = JournaledAssignment {
            order,
            accepted_at_ms,
            deadline_ms: accepted_at_ms + 60_000,
            gpus: Vec::new(),
        };
        let now = Instant::now();
        let left = |wall_ms| journaled.deadline(wall_ms, now).duration_since(now).as_secs();
        assert_eq!(left(accepted_at_ms), 60);
        assert_eq!(left(accepted_at_ms + 50_000), 10, "after a restart");
        assert_eq!(left(accepted_at_ms + 86_400_000), 0);
        // Of a machine that boots in 1970.
        assert_eq!(left(0), 60);
    }
}
