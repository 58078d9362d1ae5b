//! Hosts that a person admits. Served over the unix socket alone: no assistant reaches it.

use axum::{Json, extract::State};
use cluster_core::{core::HostKeyView, deploy::ApprovedHost};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Api,
    body::{Body, Named},
    error::Answer,
};

#[derive(Serialize)]
pub struct Hosts {
    hosts: Vec<ApprovedHost>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    host: String,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    host: String,
    #[serde(default)]
    port: Option<u16>,
    fingerprint: String,
}

pub async fn list(State(api): State<Api>) -> Answer<Json<Hosts>> {
    Ok(Json(Hosts { hosts: api.core.approved_hosts().await? }))
}

pub async fn probe(State(api): State<Api>, Body(body): Body<Probe>) -> Answer<Json<HostKeyView>> {
    Ok(Json(api.core.probe_host(&body.host, body.port).await?))
}

pub async fn approve(State(api): State<Api>, Body(body): Body<Approve>) -> Answer<Json<ApprovedHost>> {
    Ok(Json(api.core.approve_host(&body.host, body.port, &body.fingerprint).await?))
}

pub async fn forget(
    State(api): State<Api>,
    Named((host, port)): Named<(String, u16)>,
) -> Answer<Json<Value>> {
    api.core.forget_host(&host, Some(port)).await?;
    Ok(Json(json!({ "host": host, "port": port, "forgotten": true })))
}
