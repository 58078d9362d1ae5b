//! A worker's own membership, for the person whose machine it is.

use axum::{Json, extract::State};
use cluster_core::types::error::{Error, ErrorCode};
use serde_json::{Value, json};

use super::{
    Api,
    error::{Answer, Problem},
};

/// False while work still runs here: ask again. Once it is true the daemon ends.
pub async fn leave(State(api): State<Api>) -> Answer<Json<Value>> {
    let left = api.core.leave().await?;
    Ok(Json(json!({ "left": left })))
}

/// Answers a request for what only a controller knows.
pub async fn not_here(State(api): State<Api>) -> Problem {
    Problem(
        Error::new(
            ErrorCode::FailedPrecondition,
            format!("node {} is a worker, and its controller answers this", api.core.node_id()),
        )
        .remedy("run the command on the controller's machine; `aegis status` shows this node"),
    )
}

pub async fn rotate_key(State(api): State<Api>) -> Answer<Json<Value>> {
    api.core.rotate_key().await?;
    Ok(Json(json!({ "rotated": true })))
}
