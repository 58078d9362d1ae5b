//! What the log holds of a call, how it is asked for and how long it is kept.

use std::{fmt, time::Duration};

use aegis_types::{
    caller::Door,
    clock::rfc3339,
    error::{Error, ErrorCode, Result},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::redact::line;
use crate::{config::schema::AuditRetention, store::AuditRow};

pub(super) const OK: &str = "ok";
pub(super) const ABANDONED: &str = "abandoned";
const CLIENT_CHARS_MAX: usize = 64;
const DAYS_DEFAULT: u32 = 90;
const DAYS_MAX: u32 = 3650;
const ENTRIES_DEFAULT: u32 = 100_000;
const ENTRIES_MAX: u32 = 10_000_000;

/// The program that called, as it names itself: nothing proves it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Client {
    name: String,
    version: String,
}

impl Client {
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: line(name, CLIENT_CHARS_MAX), version: line(version, CLIENT_CHARS_MAX) }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// Begun at or after this, in Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Exactly this one.
    pub action: Option<String>,
    /// The newest so many.
    pub limit: u32,
}

/// An entry as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditView {
    /// When the call began, as RFC 3339.
    pub at: String,
    pub door: Door,
    /// `uid 1000`, `http.token`, `token NAME`, or `anybody`.
    pub who: String,
    /// Name and version, as the client says them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// A tool, `POST /v1/executions`, or `ExecuteAgent`.
    pub action: String,
    /// JSON without secrets, cut where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
    /// `ok`, the code of the error, or `abandoned` where the caller left before the answer.
    pub result: String,
    /// Duration of the longest call, in an entry of several.
    pub duration_ms: i64,
    /// Reads of one caller with one tool within a second are one entry: how many there were. The arguments are those
    /// of the first.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub calls: i64,
    /// When the last of several began, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<String>,
}

fn once() -> i64 {
    1
}

fn is_once(calls: &i64) -> bool {
    *calls == 1
}

impl From<AuditRow> for AuditView {
    fn from(row: AuditRow) -> Self {
        Self {
            at: rfc3339(row.at_ms),
            door: row.door,
            who: row.who,
            client: row.client,
            action: row.action,
            arguments: row.arguments,
            result: row.result,
            duration_ms: row.duration_ms,
            calls: row.calls,
            last_at: row.last_at_ms.map(rfc3339),
        }
    }
}

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
