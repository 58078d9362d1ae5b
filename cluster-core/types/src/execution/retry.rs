//! Retries of an execution whose program failed. Pure.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Retries that an execution may ask for.
pub const RETRIES_MAX: u32 = 10;
/// Longest pause before a retry.
pub const BACKOFF_SECONDS_MAX: u32 = 3600;
const BACKOFF_SECONDS_DEFAULT: u32 = 10;
const EXIT_CODES_MAX: usize = 32;

/// When an execution runs again after its program failed, on any node that fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// Most retries, 1-10.
    pub max: u32,
    /// First pause, 1-3600 (default 10). It doubles each time, up to 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_seconds: Option<u32>,
    /// Only these exit codes (default: all but 0).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exit_codes: Vec<i32>,
}

impl RetryPolicy {
    /// Checks the policy of a request.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` names the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let out_of_range = |field: &str, value: i64, max: u32| {
            Err(Error::invalid(format!("retry.{field} {value} is out of range 1 to {max}")))
        };
        if !(1..=RETRIES_MAX).contains(&self.max) {
            return out_of_range("max", i64::from(self.max), RETRIES_MAX);
        }
        if let Some(seconds) = self.backoff_seconds
            && !(1..=BACKOFF_SECONDS_MAX).contains(&seconds)
        {
            return out_of_range("backoff_seconds", i64::from(seconds), BACKOFF_SECONDS_MAX);
        }
        if self.exit_codes.len() > EXIT_CODES_MAX {
            return Err(Error::invalid(format!("retry.exit_codes: at most {EXIT_CODES_MAX} are taken")));
        }
        match self.exit_codes.iter().find(|code| !(1..=255).contains(*code)) {
            Some(code) => out_of_range("exit_codes", i64::from(*code), 255),
            None => Ok(()),
        }
    }

    /// Whether a program that ended with this code is run again.
    pub fn covers(&self, exit_code: i32) -> bool {
        exit_code != 0 && (self.exit_codes.is_empty() || self.exit_codes.contains(&exit_code))
    }

    /// Returns the pause before the retry that follows `done` others.
    pub fn pause(&self, done: u32) -> Duration {
        let first = self.backoff_seconds.unwrap_or(BACKOFF_SECONDS_DEFAULT);
        let seconds = first.saturating_mul(2_u32.saturating_pow(done)).min(BACKOFF_SECONDS_MAX);
        Duration::from_secs(u64::from(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_up_to_an_hour() {
        let seconds = |backoff_seconds, done| {
            RetryPolicy { max: 10, backoff_seconds, ..Default::default() }.pause(done).as_secs()
        };
        assert_eq!([0, 1, 2].map(|done| seconds(None, done)), [10, 20, 40]);
        assert_eq!(seconds(Some(1), 9), 512);
        assert_eq!(seconds(Some(3600), u32::MAX), 3600);
    }

    #[test]
    fn only_failures_that_are_named_are_covered() {
        let all = RetryPolicy::default();
        assert_eq!([0, 1, 255].map(|code| all.covers(code)), [false, true, true]);
        let some = RetryPolicy { exit_codes: vec![75], ..all };
        assert_eq!([0, 1, 75].map(|code| some.covers(code)), [false, false, true]);
    }

    #[test]
    fn bounds_are_named_in_the_error() {
        let policy = |max, backoff_seconds, exit_codes: &[i32]| {
            RetryPolicy { max, backoff_seconds, exit_codes: exit_codes.to_vec() }.check()
        };
        policy(1, Some(3600), &[1, 255]).unwrap();
        for (bad, text) in [
            (policy(0, None, &[]), "retry.max 0 is out of range 1 to 10"),
            (policy(11, None, &[]), "1 to 10"),
            (policy(1, Some(0), &[]), "retry.backoff_seconds 0"),
            (policy(1, None, &[1, 0]), "retry.exit_codes 0 is out of range 1 to 255"),
            (policy(1, None, &[1; 33]), "at most 32"),
        ] {
            assert!(bad.unwrap_err().message().contains(text), "{text}");
        }
    }
}
