//! Whether the node lives, is ready, and how its parts are.

use axum::{Json, extract::State};
use cluster_core::core::HealthView;
use http::StatusCode;
use serde_json::{Value, json};

use super::Api;

/// The process answers.
pub async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// 503 until everything that the node needs is up.
pub async fn ready(State(api): State<Api>) -> (StatusCode, Json<Value>) {
    let health = api.core.health().await;
    let missing: Vec<_> =
        health.subsystems.iter().filter(|part| part.critical && !part.ok).map(|part| &part.name).collect();
    (status(health.ready), Json(json!({ "ready": health.ready, "missing": missing })))
}

pub async fn full(State(api): State<Api>) -> (StatusCode, Json<HealthView>) {
    let health = api.core.health().await;
    (status(health.ready), Json(health))
}

fn status(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Begins the end; the answer comes before it.
pub async fn shutdown(State(api): State<Api>) -> (StatusCode, Json<Value>) {
    tracing::info!("asked to stop");
    api.stop.cancel();
    (StatusCode::ACCEPTED, Json(json!({ "stopping": true })))
}
