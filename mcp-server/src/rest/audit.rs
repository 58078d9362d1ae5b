//! The audit log, read by an administrator.

use axum::{Json, extract::State};
use cluster_core::{
    controller::audit::AuditView,
    types::{audit::AuditQuery, clock::now_ms},
};
use serde::{Deserialize, Serialize};

use super::{Api, body::Asked, error::Answer};
use crate::tools::check_range;

const ENTRIES_DEFAULT: u32 = 100;
const ENTRIES_MAX: u32 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Only calls of the last N seconds.
    since_seconds: Option<u32>,
    /// A tool, or a method and path.
    tool: Option<String>,
    limit: Option<u32>,
}

#[derive(Serialize)]
pub struct Entries {
    /// The newest that fit, newest last.
    entries: Vec<AuditView>,
}

pub async fn list(State(api): State<Api>, Asked(query): Asked<List>) -> Answer<Json<Entries>> {
    let limit = check_range("limit", query.limit.unwrap_or(ENTRIES_DEFAULT), 1..=ENTRIES_MAX)?;
    let since_ms = query.since_seconds.map(|seconds| now_ms().saturating_sub(i64::from(seconds) * 1000));
    let query = AuditQuery { since_ms, action: query.tool, limit };
    Ok(Json(Entries { entries: api.core.audit_entries(&query).await? }))
}
