//! Wall-clock time as the cluster stores it: Unix time in milliseconds.

use std::time::{SystemTime, UNIX_EPOCH};

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Source of wall-clock time: this machine's clock, or that of a simulation.
#[derive(Debug, Clone, Copy)]
pub struct Clock(fn() -> i64);

impl Clock {
    /// `now_ms` answers Unix time in milliseconds.
    pub const fn of(now_ms: fn() -> i64) -> Self {
        Self(now_ms)
    }

    pub fn now_ms(self) -> i64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self(now_ms)
    }
}

/// RFC 3339 in UTC, as the published messages spell times.
pub fn rfc3339(time_ms: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}
