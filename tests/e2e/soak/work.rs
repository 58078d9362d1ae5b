//! Work of a soak: several kinds, each with output that shows its outcome.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::support::IMAGE;

/// First line of a container: this prefix, a random number of the kernel, and the iteration.
pub const START: &str = "start ";
/// Other lines: this prefix and their number, from 1 on.
pub const LINE: &str = "line ";
/// Last line.
pub const END: &str = "end";

/// Timeout of work that ends by itself, longer than all faults of the soak.
const TIMEOUT_SECONDS: u64 = 900;
/// Two cores run three engines.
const CPU: f64 = 0.2;
const MEMORY_MB: u32 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Writes a line each half second, then exits with this code.
    Exits { lines: u32, code: i32 },
    /// Writes many lines as fast as possible, then exits with 0.
    Writes { lines: u32 },
    /// Fails until this iteration.
    Iterates { succeeds_at: u32 },
    /// Writes until it is cancelled.
    IsCancelled { after: Duration },
    /// Writes until its time limit.
    TimesOut { seconds: u64 },
    /// Like `Exits`, but may restart on another node.
    Retries { lines: u32, code: i32 },
    /// Fails in this many attempts, and is retried.
    FailsFirst { lines: u32, failures: u32 },
}

impl Work {
    pub fn random(rng: &mut Rng) -> Self {
        let code = if rng.bool() { 0 } else { rng.i32(1..100) };
        match rng.u32(0..7) {
            0 => Work::Exits { lines: rng.u32(1..20), code },
            1 => Work::Writes { lines: rng.u32(100..1_500) },
            2 => Work::Iterates { succeeds_at: rng.u32(1..5) },
            3 => Work::IsCancelled { after: Duration::from_millis(rng.u64(0..12_000)) },
            4 => Work::TimesOut { seconds: rng.u64(1..10) },
            5 => Work::FailsFirst { lines: rng.u32(1..10), failures: rng.u32(1..=RETRIES_MAX) },
            _ => Work::Retries { lines: rng.u32(1..30), code },
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Work::Exits { .. } => "exits",
            Work::Writes { .. } => "writes",
            Work::Iterates { .. } => "iterates",
            Work::IsCancelled { .. } => "is cancelled",
            Work::TimesOut { .. } => "times out",
            Work::Retries { .. } => "retries",
            Work::FailsFirst { .. } => "fails first",
        }
    }

    pub fn max_attempts(self) -> u32 {
        match self {
            Work::Retries { .. } => 2,
            Work::Exits { .. }
            | Work::Writes { .. }
            | Work::Iterates { .. }
            | Work::IsCancelled { .. }
            | Work::TimesOut { .. }
            | Work::FailsFirst { .. } => 1,
        }
    }

    /// Returns the number of permitted retries of its program.
    pub fn retries(self) -> u32 {
        match self {
            Work::FailsFirst { failures, .. } => failures,
            _ => 0,
        }
    }

    /// Returns the number of lines in each container, if it ends by itself.
    pub fn lines(self) -> Option<u32> {
        match self {
            Work::Exits { lines, .. }
            | Work::Writes { lines }
            | Work::Retries { lines, .. }
            | Work::FailsFirst { lines, .. } => Some(lines),
            Work::Iterates { .. } => Some(LINES_AN_ITERATION),
            Work::IsCancelled { .. } | Work::TimesOut { .. } => None,
        }
    }

    /// Returns the body of its submission.
    pub fn request(self, key: &str) -> Value {
        let timeout = match self {
            Work::TimesOut { seconds } => seconds,
            _ => TIMEOUT_SECONDS,
        };
        let iterations = match self {
            // One more than it needs: it must stop by itself.
            Work::Iterates { succeeds_at } => succeeds_at + 1,
            _ => 1,
        };
        let policy = json!({ "max": self.retries(), "backoff_seconds": 1, "exit_codes": [RETRIED] });
        json!({
            "image": IMAGE,
            "command": ["sh", "-c", self.script()],
            "resources": { "cpu": CPU, "memory_mb": MEMORY_MB },
            "timeout_seconds": timeout,
            "max_iterations": iterations,
            "max_attempts": self.max_attempts(),
            "retry": (self.retries() > 0).then_some(policy),
            "idempotency_key": key,
        })
    }

    fn script(self) -> String {
        let begin = format!(
            "trap 'exit 0' TERM; echo \"{START}$(cat /proc/sys/kernel/random/uuid) $AEGIS_ITERATION\"; i=0; \
             line() {{ i=$((i+1)); echo \"{LINE}$i $1\"; }}"
        );
        let write = |lines: u32, pause: &str| {
            format!("while [ $i -lt {lines} ]; do line {}; {pause} done; echo {END}", "x".repeat(80))
        };
        // A wait that a signal ends.
        const SLOWLY: &str = "sleep 0.5 & wait $!;";
        match self {
            Work::Exits { lines, code } | Work::Retries { lines, code } => {
                format!("{begin}; {}; exit {code}", write(lines, SLOWLY))
            }
            Work::FailsFirst { lines, failures } => {
                format!(
                    "{begin}; {}; [ $AEGIS_ATTEMPT -gt {failures} ] || exit {RETRIED}",
                    write(lines, SLOWLY)
                )
            }
            Work::Writes { lines } => format!("{begin}; {}", write(lines, "")),
            Work::Iterates { succeeds_at } => {
                format!(
                    "{begin}; {}; [ $AEGIS_ITERATION -ge {succeeds_at} ]",
                    write(LINES_AN_ITERATION, SLOWLY)
                )
            }
            Work::IsCancelled { .. } | Work::TimesOut { .. } => {
                format!("{begin}; while :; do line; {SLOWLY} done")
            }
        }
    }
}

const LINES_AN_ITERATION: u32 = 3;
const RETRIES_MAX: u32 = 3;
/// Exit code that is retried.
const RETRIED: i32 = 75;
