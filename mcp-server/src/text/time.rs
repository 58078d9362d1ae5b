//! Times for models and people: moments in ISO 8601 (UTC), lengths and ages in words, so that readers need not
//! calculate.

use std::fmt;

use cluster_core::types::clock::rfc3339;
use schemars::JsonSchema;
use serde::Serialize;

/// Like `2026-11-20T08:15:30.5Z`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct TimestampText(String);

impl TimestampText {
    /// Converts Unix time.
    pub fn of_ms(time_ms: i64) -> Self {
        Self(rfc3339(time_ms))
    }

    pub fn now() -> Self {
        Self::of_ms(cluster_core::types::clock::now_ms())
    }
}

impl fmt::Display for TimestampText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A length of time, like `3 s` or `2 h`: its largest unit of which there are two or more, rounded down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct DurationText(String);

impl DurationText {
    pub fn of_ms(ms: u64) -> Self {
        Self(match ms / 1000 {
            0 => format!("{ms} ms"),
            seconds @ 1..120 => format!("{seconds} s"),
            seconds @ 120..7200 => format!("{} min", seconds / 60),
            seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
            seconds => format!("{} days", seconds / 86_400),
        })
    }

    pub fn of_seconds(seconds: u64) -> Self {
        Self::of_ms(seconds.saturating_mul(1000))
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long something is past, like `3 s ago`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct AgeText(String);

impl AgeText {
    pub fn of_ms(ms: u64) -> Self {
        Self(format!("{} ago", DurationText::of_ms(ms)))
    }

    /// Returns the time between two moments. A future moment, by a clock that differs, counts as now.
    pub fn between(time_ms: i64, now_ms: i64) -> Self {
        Self::of_ms(u64::try_from(now_ms.saturating_sub(time_ms)).unwrap_or_default())
    }
}

impl fmt::Display for AgeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_a_person_says_them() {
        for (ms, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (61_000, "61 s"),
            (600_000, "10 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 days"),
        ] {
            assert_eq!(DurationText::of_ms(ms).to_string(), words);
        }
        assert_eq!(AgeText::between(5_000, 1_000).to_string(), "0 ms ago");
        assert_eq!(serde_json::to_value(TimestampText::of_ms(1_500)).unwrap(), "1970-01-01T00:00:01.5Z");
    }
}
