//! Settings of a controller for executions.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};

use crate::schema::Runtime;

const LOST_AFTER_SECS: u64 = 600;
const LOST_AFTER_SECS_MAX: u64 = 86_400;
const DAYS: u32 = 30;
const EXECUTIONS: u32 = 10_000;
const EVENTS_MB: u32 = 2048;
const ARTIFACTS_MB: u32 = 20_480;
/// A node keeps 10 MiB of output by default. Short pieces have headers of several times their size.
const EXECUTION_EVENTS_MB: u32 = 256;
/// Half of all executions that may be open, so that one caller leaves room for others.
const PER_CALLER: u32 = 5_000;
const PER_CALLER_MAX: u32 = 10_000;
const MIB: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutionSettings {
    /// Time without contact to a node after which its executions are reported as lost.
    pub lost_after: Duration,
    /// Maximum number of stored bytes of one execution's events, whatever its node sends.
    pub event_bytes_max: u64,
    /// Maximum number of open executions of one caller.
    pub executions_per_caller: u32,
    pub kept: Kept,
}

/// Retention of executions that have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub age_ms: i64,
    pub executions: u32,
    pub events_bytes: u64,
    pub artifacts_bytes: u64,
}

impl ExecutionSettings {
    /// Validates the settings. Errors name the key.
    pub fn of(lost_after_secs: Option<u64>, runtime: &Runtime) -> Result<Self> {
        let retention = &runtime.retention;
        let lost_after = lost_after_secs.unwrap_or(LOST_AFTER_SECS);
        if !(1..=LOST_AFTER_SECS_MAX).contains(&lost_after) {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!(
                    "spec.cluster.lost_after_secs {lost_after} is out of range 1 to {LOST_AFTER_SECS_MAX}"
                ),
            ));
        }
        let at_least_one = |key: &str, value: Option<u32>, default: u32| match value.unwrap_or(default) {
            0 => Err(Error::new(ErrorCode::ConfigInvalid, format!("spec.runtime.retention.{key} is 0"))
                .remedy("keep at least 1")),
            value => Ok(value),
        };
        let executions_per_caller = runtime.max_executions_per_caller.unwrap_or(PER_CALLER);
        if !(1..=PER_CALLER_MAX).contains(&executions_per_caller) {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!(
                    "spec.runtime.max_executions_per_caller {executions_per_caller} is out of range 1 to {PER_CALLER_MAX}"
                ),
            ));
        }
        let days = at_least_one("days", retention.days, DAYS)?;
        Ok(Self {
            lost_after: Duration::from_secs(lost_after),
            event_bytes_max: u64::from(at_least_one(
                "execution_events_mb",
                retention.execution_events_mb,
                EXECUTION_EVENTS_MB,
            )?) * MIB,
            executions_per_caller,
            kept: Kept {
                age_ms: i64::from(days) * 86_400_000,
                executions: at_least_one("executions", retention.executions, EXECUTIONS)?,
                events_bytes: u64::from(at_least_one("events_mb", retention.events_mb, EVENTS_MB)?) * MIB,
                artifacts_bytes: u64::from(at_least_one(
                    "artifacts_mb",
                    retention.artifacts_mb,
                    ARTIFACTS_MB,
                )?) * MIB,
            },
        })
    }
}

impl Default for ExecutionSettings {
    fn default() -> Self {
        Self {
            lost_after: Duration::from_secs(LOST_AFTER_SECS),
            event_bytes_max: u64::from(EXECUTION_EVENTS_MB) * MIB,
            executions_per_caller: PER_CALLER,
            kept: Kept {
                age_ms: i64::from(DAYS) * 86_400_000,
                executions: EXECUTIONS,
                events_bytes: u64::from(EVENTS_MB) * MIB,
                artifacts_bytes: u64::from(ARTIFACTS_MB) * MIB,
            },
        }
    }
}
