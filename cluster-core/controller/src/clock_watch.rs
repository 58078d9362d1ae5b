//! Detects jumps of the wall clock by the monotonic clock.

use aegis_types::clock::Clock;
use tokio::time::Instant;

/// A jump of the wall clock beyond this is told, and nothing is deleted by the clock in the round after it.
pub const JUMP_TOLD_MS: i64 = 300_000;
/// The clocks are read one after the other, and one of them may be slewed.
const JUMP_MS_MIN: i64 = 2_000;

/// Notices where the wall clock has not gone as the monotonic clock did.
#[derive(Debug)]
pub struct ClockWatch {
    clock: Clock,
    wall_ms: i64,
    at: Instant,
}

/// Time that passed between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Time on the monotonic clock.
    pub real_ms: i64,
    /// Difference by which the wall clock went on more, or less. 0 where it is no jump.
    pub jump_ms: i64,
}

impl Passed {
    /// Whether the wall clock is not to be trusted in this round.
    pub fn is_jump(self) -> bool {
        self.jump_ms.abs() > JUMP_TOLD_MS
    }
}

impl ClockWatch {
    pub fn new(clock: Clock) -> Self {
        Self { clock, wall_ms: clock.now_ms(), at: Instant::now() }
    }

    /// Looks at both clocks; tells what passed since the last look.
    pub fn look(&mut self) -> Passed {
        let (wall_ms, at) = (self.clock.now_ms(), Instant::now());
        let real_ms = i64::try_from(at.duration_since(self.at).as_millis()).unwrap_or(i64::MAX);
        let jump_ms = wall_ms.saturating_sub(self.wall_ms).saturating_sub(real_ms);
        (self.wall_ms, self.at) = (wall_ms, at);
        Passed { real_ms, jump_ms: if jump_ms.abs() < JUMP_MS_MIN { 0 } else { jump_ms } }
    }
}
