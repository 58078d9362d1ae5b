//! Refusals in the log: the first ones line by line, then a line a while with the count of the rest. A
//! caller that is refused a thousand times a second must not fill the disk.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aegis_types::error::ErrorCode;

/// Lines of one call and reason that come at once.
const LINES_MAX: u32 = 10;
/// Between lines after those; the count of lines starts from 0 after a pause of the same length.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Counted {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

/// Counts by call and reason, of which there are a few hundred.
#[derive(Debug, Default)]
pub struct RefusalLog(Mutex<HashMap<(&'static str, ErrorCode), Counted>>);

impl RefusalLog {
    /// Whether a line may be written now: with how many were left out since the last one.
    pub fn admit(&self, call: &'static str, reason: ErrorCode) -> Option<u64> {
        self.admit_at(call, reason, Instant::now())
    }

    fn admit_at(&self, call: &'static str, reason: ErrorCode, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counted.entry((call, reason)).or_insert(Counted { since: now, lines: 0, suppressed: 0 });
        if now.duration_since(known.since) >= INTERVAL {
            // Still many: one line. None for a while: as at first.
            known.lines = if known.suppressed > 0 { LINES_MAX - 1 } else { 0 };
            known.since = now;
        }
        if known.lines >= LINES_MAX {
            known.suppressed += 1;
            return None;
        }
        known.lines += 1;
        Some(std::mem::take(&mut known.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_logged_first_and_then_counted() {
        let log = RefusalLog::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let admit = |now| log.admit_at("Heartbeat", ErrorCode::TokenExpired, now);
        let lines = (0..100_000).filter(|_| admit(start).is_some()).count();
        assert_eq!(lines, LINES_MAX as usize);
        assert_eq!(log.admit_at("Heartbeat", ErrorCode::ClockSkew, start), Some(0), "another reason");
        assert_eq!(admit(at(10)), Some(99_990));
        assert_eq!(admit(at(11)), None);
        assert_eq!(admit(at(20)), Some(1));
        let later = (0..100).filter(|_| admit(at(60)).is_some()).count();
        assert_eq!(later, LINES_MAX as usize, "after a pause as at first");
    }
}
