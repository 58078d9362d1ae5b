//! A worker's own membership, for the person whose machine it is.

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{Api, error::Answer};

/// False while work still runs here: ask again. Once it is true the daemon ends.
pub async fn leave(State(api): State<Api>) -> Answer<Json<Value>> {
    let left = api.core.leave().await?;
    Ok(Json(json!({ "left": left })))
}

pub async fn rotate_key(State(api): State<Api>) -> Answer<Json<Value>> {
    api.core.rotate_key().await?;
    Ok(Json(json!({ "rotated": true })))
}
