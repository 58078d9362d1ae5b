//! Access tokens: made, listed, revoked. An administrator's alone, and no list holds a value.

use std::time::Duration;

use axum::{Json, extract::State};
use cluster_core::{
    controller::access::{AccessTokenGrant, AccessTokenOrder, AccessTokenView, LIFETIME_MAX},
    types::{error::Error, ids::AccessTokenName, scope::Scope},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Api,
    body::{Body, Named},
    error::Answer,
};
use crate::tools::{check_range, whole};

const TTL_SECONDS_DEFAULT: u64 = 30 * 24 * 60 * 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: AccessTokenName,
    #[serde(default)]
    scope: Option<Scope>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

#[derive(Serialize)]
pub struct Tokens {
    tokens: Vec<AccessTokenView>,
}

pub async fn create(
    State(api): State<Api>,
    Body(body): Body<Create>,
) -> Answer<(StatusCode, Json<AccessTokenGrant>)> {
    // None is no default: how much a token may do is said.
    let scope = body.scope.ok_or_else(|| {
        Error::invalid("scope: it is missing").remedy("read looks, operate also changes, admin also lets in")
    })?;
    let seconds = body.ttl_seconds.unwrap_or(TTL_SECONDS_DEFAULT);
    let lifetime = Duration::from_secs(check_range("ttl_seconds", seconds, 1..=LIFETIME_MAX.as_secs())?);
    let order = AccessTokenOrder { name: body.name, scope, lifetime };
    let grant = whole(async move { api.core.create_access_token(order).await }).await?;
    Ok((StatusCode::CREATED, Json(grant)))
}

pub async fn list(State(api): State<Api>) -> Answer<Json<Tokens>> {
    Ok(Json(Tokens { tokens: api.core.access_tokens()? }))
}

pub async fn revoke(State(api): State<Api>, Named(name): Named<AccessTokenName>) -> Answer<Json<Value>> {
    let revoked = name.clone();
    whole(async move { api.core.revoke_access_token(&name).await }).await?;
    Ok(Json(json!({ "name": revoked, "revoked": true })))
}
