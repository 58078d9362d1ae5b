//! Bounds of the audit log, as `spec.mcp.audit` has them.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};

use crate::schema::AuditRetention;

const DAYS_DEFAULT: u32 = 90;
const DAYS_MAX: u32 = 3650;
const ENTRIES_DEFAULT: u32 = 100_000;
const ENTRIES_MAX: u32 = 10_000_000;

/// Each is a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditSettings {
    pub age: Duration,
    pub entries: u32,
}

impl AuditSettings {
    pub fn of(given: &AuditRetention) -> Result<Self> {
        let bounded = |key: &str, value: u32, max: u32| match value {
            value if (1..=max).contains(&value) => Ok(value),
            value => Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!("spec.mcp.audit.{key}: {value} is out of range 1 to {max}"),
            )),
        };
        let days = bounded("days", given.days.unwrap_or(DAYS_DEFAULT), DAYS_MAX)?;
        let entries = bounded("entries", given.entries.unwrap_or(ENTRIES_DEFAULT), ENTRIES_MAX)?;
        Ok(Self { age: Duration::from_secs(u64::from(days) * 24 * 60 * 60), entries })
    }
}
