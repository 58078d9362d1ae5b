//! Entries of the audit log as they are shown.

use std::fmt;

use aegis_store::AuditRow;
use aegis_types::{caller::Door, clock::rfc3339};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::redact::line;

pub(super) const OK: &str = "ok";
pub(super) const ABANDONED: &str = "abandoned";
const CLIENT_CHARS_MAX: usize = 64;
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
