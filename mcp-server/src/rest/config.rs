//! Configuration layers and token keys over HTTP. All callers may read. Only a person may change them, over the data
//! directory's socket: a layer can relax the policy of executions.

use axum::{Json, extract::State};
use cluster_core::{
    config::{
        applied::EffectiveConfig,
        layers::{ConfigSnapshot, Scope},
    },
    controller::handle::NodeConfigView,
    identity::TokenKeysView,
    types::ids::{NodeId, TenantSlug},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Api,
    body::{Asked, Body, Named},
    error::Answer,
};
use crate::tools::whole;

#[derive(Serialize)]
pub struct Layers {
    layers: Vec<ConfigSnapshot>,
}

/// Returns the configuration of this node itself.
pub async fn effective(State(api): State<Api>) -> Json<EffectiveConfig> {
    Json(api.core.effective_config())
}

pub async fn layers(State(api): State<Api>) -> Answer<Json<Layers>> {
    Ok(Json(Layers { layers: api.core.config_layers().await? }))
}

pub async fn layer(State(api): State<Api>, Named(scope): Named<Scope>) -> Answer<Json<ConfigSnapshot>> {
    Ok(Json(api.core.config_layer(&scope).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    config: Value,
    /// Expected current version of the layer.
    #[serde(default)]
    if_version: Option<String>,
}

pub async fn put(
    State(api): State<Api>,
    Named(scope): Named<Scope>,
    Body(body): Body<Layer>,
) -> Answer<Json<ConfigSnapshot>> {
    let work = async move { api.core.put_config_layer(scope, &body.config, body.if_version).await };
    Ok(Json(whole(work).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    if_version: Option<String>,
}

#[derive(Serialize)]
pub struct Removed {
    removed: Scope,
}

pub async fn remove(
    State(api): State<Api>,
    Named(scope): Named<Scope>,
    Asked(query): Asked<Remove>,
) -> Answer<Json<Removed>> {
    let removed = scope.clone();
    whole(async move { api.core.delete_config_layer(scope, query.if_version).await }).await?;
    Ok(Json(Removed { removed }))
}

pub async fn node(State(api): State<Api>, Named(id): Named<NodeId>) -> Answer<Json<NodeConfigView>> {
    Ok(Json(api.core.node_config(&id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Tenant of the node; `None` removes the assignment.
    #[serde(default)]
    tenant: Option<TenantSlug>,
}

pub async fn assign(
    State(api): State<Api>,
    Named(id): Named<NodeId>,
    Body(body): Body<Assignment>,
) -> Answer<Json<NodeConfigView>> {
    Ok(Json(whole(async move { api.core.assign_tenant(&id, body.tenant).await }).await?))
}

pub async fn token_keys(State(api): State<Api>) -> Answer<Json<TokenKeysView>> {
    Ok(Json(api.core.token_keys()?))
}

pub async fn rotate_token_key(State(api): State<Api>) -> Answer<Json<TokenKeysView>> {
    Ok(Json(whole(async move { api.core.rotate_token_key().await }).await?))
}
