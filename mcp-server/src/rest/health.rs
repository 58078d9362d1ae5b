//! Liveness, readiness and health of the node's parts.

use axum::{Extension, Json, extract::State};
use cluster_core::types::error::{Error, ErrorCode};
use http::{HeaderName, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Api,
    error::{Answer, Problem},
};
use crate::caller::Caller;

/// Path of the answer to a request that comes while every place is taken.
pub const BUSY: &str = "/health/busy";

/// Health is for probes, which have no token. Well-known paths answer 404, since there is no OAuth.
pub fn is_open(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready" | BUSY) || path.starts_with("/.well-known/")
}

/// The process answers.
pub async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// Answers 503 until all required parts of the node are up.
pub async fn ready(State(api): State<Api>) -> (StatusCode, Json<Value>) {
    let health = api.core.health().await;
    let missing: Vec<_> =
        health.subsystems.iter().filter(|part| part.critical && !part.ok).map(|part| &part.name).collect();
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": health.ready, "missing": missing })))
}

/// Returns the health of every part, with 200 as long as the process answers: a node that has not joined yet is
/// healthy, and not ready. A caller without a token learns no ids, versions and causes.
pub async fn full(State(api): State<Api>, caller: Option<Extension<Caller>>) -> Json<Value> {
    let health = api.core.health().await;
    if caller.is_some() {
        return Json(serde_json::to_value(health).unwrap_or_default());
    }
    let parts: Vec<_> = health
        .subsystems
        .iter()
        .map(|part| json!({ "name": part.name, "ok": part.ok, "critical": part.critical }))
        .collect();
    Json(json!({ "ready": health.ready, "uptime_seconds": health.uptime_seconds, "subsystems": parts }))
}

/// Answers a request for which no place is left.
pub async fn busy() -> Problem {
    Problem(
        Error::new(ErrorCode::ResourceExhausted, "all HTTP connections are in use")
            .remedy("close event streams that are no longer read, then send the request again"),
    )
}

/// Returns the metrics in the format of Prometheus.
pub async fn metrics(State(api): State<Api>) -> Answer<([(HeaderName, &'static str); 1], String)> {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], api.core.metrics().await?))
}

/// Starts the shutdown after the response.
pub async fn shutdown(State(api): State<Api>) -> (StatusCode, Json<Value>) {
    tracing::info!("asked to stop");
    api.stop.cancel();
    (StatusCode::ACCEPTED, Json(json!({ "stopping": true })))
}
