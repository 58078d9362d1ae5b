//! Enrolment tokens over HTTP: made, listed, revoked.

use std::time::Duration;

use axum::{Json, extract::State};
use cluster_core::{
    controller::handle::TokenView,
    core::{EnrolmentGrant, EnrolmentOrder},
    types::{
        ids::{EnrolmentTokenId, NodeId, Tag},
        node::Role,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Body, Named},
    error::Answer,
};
use crate::tools::check_range;

const TTL_SECONDS_DEFAULT: u64 = 15 * 60;
const TTL_SECONDS_MAX: u64 = 24 * 60 * 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    #[serde(default)]
    node_id: Option<NodeId>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
    /// Tags that the node may claim; any where they are not given.
    #[serde(default)]
    tags: Option<Vec<Tag>>,
}

#[derive(Serialize)]
pub struct Tokens {
    tokens: Vec<TokenView>,
}

pub async fn create(State(api): State<Api>, Body(body): Body<Create>) -> Answer<Json<EnrolmentGrant>> {
    let seconds = body.ttl_seconds.unwrap_or(TTL_SECONDS_DEFAULT);
    let order = EnrolmentOrder {
        node_id: body.node_id,
        role: body.role.unwrap_or(Role::Worker),
        lifetime: Duration::from_secs(check_range("ttl_seconds", seconds, 1..=TTL_SECONDS_MAX)?),
        tags: body.tags,
    };
    Ok(Json(api.core.create_enrolment_token(order).await?))
}

pub async fn list(State(api): State<Api>) -> Answer<Json<Tokens>> {
    Ok(Json(Tokens { tokens: api.core.enrolment_tokens().await? }))
}

pub async fn revoke(State(api): State<Api>, Named(id): Named<EnrolmentTokenId>) -> Answer<Json<TokenView>> {
    Ok(Json(api.core.revoke_enrolment_token(&id).await?))
}
