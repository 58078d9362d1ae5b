//! Registered agents over HTTP. A manifest is the whole body, YAML or JSON.

use axum::{Json, body::Bytes, extract::State};
use cluster_core::{
    controller::agents::{AgentDetail, AgentView, Applied, Deleted, Outcome},
    types::{agent::AgentReference, error::Error, ids::AgentName},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Asked, Named},
    error::Answer,
};
use crate::tools::whole;

#[derive(Serialize)]
pub struct Agents {
    agents: Vec<AgentView>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    version: Option<u32>,
}

pub async fn list(State(api): State<Api>) -> Answer<Json<Agents>> {
    Ok(Json(Agents { agents: api.core.agents().await? }))
}

pub async fn show(
    State(api): State<Api>,
    Named(name): Named<AgentName>,
    Asked(query): Asked<Version>,
) -> Answer<Json<AgentDetail>> {
    Ok(Json(api.core.agent(&AgentReference { name, version: query.version }).await?))
}

/// 201 for a version more, 200 where nothing changed.
pub async fn apply(State(api): State<Api>, body: Bytes) -> Answer<(StatusCode, Json<Applied>)> {
    let manifest = text(&body)?;
    let applied = whole(async move { api.core.apply_agent(&manifest).await }).await?;
    let status = match applied.outcome {
        Outcome::Created => StatusCode::CREATED,
        Outcome::Unchanged => StatusCode::OK,
    };
    Ok((status, Json(applied)))
}

pub async fn delete(
    State(api): State<Api>,
    Named(name): Named<AgentName>,
    Asked(query): Asked<Version>,
) -> Answer<Json<Deleted>> {
    let reference = AgentReference { name, version: query.version };
    Ok(Json(whole(async move { api.core.delete_agent(&reference).await }).await?))
}

fn text(body: &Bytes) -> cluster_core::types::error::Result<String> {
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("the manifest is not UTF-8"))?;
    Ok(text.to_owned())
}
