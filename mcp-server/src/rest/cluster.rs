//! Nodes over HTTP.

use std::time::Duration;

use axum::{Json, extract::State};
use cluster_core::{
    core::{HealthView, PeerFilter, RemovalOrder},
    types::{
        ids::{ClusterId, NodeId},
        node::{DrainView, OnDeadline, PeerStatus, PeerView, Role},
    },
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Api,
    body::{Asked, Body, Named},
    deployments::WAIT_SECONDS_MAX,
    error::Answer,
};
use crate::tools::{check_range, drain_node::change_of, drain_order, whole};

#[derive(Serialize)]
pub struct Status {
    cluster_id: ClusterId,
    health: HealthView,
    nodes: Vec<PeerView>,
    /// Fields that the nodes reported.
    untrusted_fields: Vec<&'static str>,
}

#[derive(Serialize)]
pub struct Nodes {
    nodes: Vec<PeerView>,
    total: usize,
    /// Fields that the nodes reported.
    untrusted_fields: Vec<&'static str>,
}

pub async fn status(State(api): State<Api>) -> Answer<Json<Status>> {
    let cluster_id = api.core.cluster_id()?;
    let nodes = api.core.peers(PeerFilter::default()).await?;
    let health = api.core.health().await;
    Ok(Json(Status { cluster_id, health, nodes, untrusted_fields: PeerView::NODE_SUPPLIED.to_vec() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    status: Option<PeerStatus>,
    role: Option<Role>,
    /// Comma-separated: all of them.
    tags: Option<String>,
}

pub async fn nodes(State(api): State<Api>, Asked(query): Asked<List>) -> Answer<Json<Nodes>> {
    let tags = query.tags.iter().flat_map(|tags| tags.split(',')).filter(|tag| !tag.is_empty());
    let tags = tags.map(cluster_core::types::ids::Tag::parse).collect::<Result<_, _>>()?;
    let filter = PeerFilter { status: query.status, role: query.role, tags };
    let nodes = api.core.peers(filter).await?;
    Ok(Json(Nodes { total: nodes.len(), nodes, untrusted_fields: PeerView::NODE_SUPPLIED.to_vec() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    #[serde(default)]
    deadline_seconds: Option<u64>,
    #[serde(default)]
    on_deadline: Option<OnDeadline>,
}

/// Starts a drain, or changes what is given of one that runs.
pub async fn drain(
    State(api): State<Api>,
    Named(id): Named<NodeId>,
    Body(body): Body<Drain>,
) -> Answer<Json<DrainView>> {
    let known = api.core.drain_status(&id).await?;
    match change_of(&known, body.deadline_seconds, body.on_deadline)? {
        Some(order) => Ok(Json(whole(async move { api.core.drain(&id, order).await }).await?)),
        None => Ok(Json(known)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    wait_seconds: Option<u64>,
}

pub async fn drain_status(
    State(api): State<Api>,
    Named(id): Named<NodeId>,
    Asked(query): Asked<Wait>,
) -> Answer<Json<DrainView>> {
    let wait = check_range("wait_seconds", query.wait_seconds.unwrap_or(0), 0..=WAIT_SECONDS_MAX)?;
    let view = match wait {
        0 => api.core.drain_status(&id).await?,
        seconds => api.core.await_drain(&id, Duration::from_secs(seconds)).await?,
    };
    Ok(Json(view))
}

pub async fn resume(State(api): State<Api>, Named(id): Named<NodeId>) -> Answer<Json<PeerView>> {
    Ok(Json(whole(async move { api.core.resume(&id).await }).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    deadline_seconds: Option<u64>,
    #[serde(default)]
    force: bool,
}

/// Answers with the drain as it stands: asking again follows it, until the state is `removed`.
pub async fn remove(
    State(api): State<Api>,
    Named(id): Named<NodeId>,
    Asked(query): Asked<Removal>,
) -> Answer<Json<DrainView>> {
    let deadline = drain_order(query.deadline_seconds, OnDeadline::Cancel)?.deadline;
    let order = RemovalOrder { deadline, force: query.force };
    Ok(Json(whole(async move { api.core.remove(&id, order).await }).await?))
}

pub async fn shut_down(
    State(api): State<Api>,
    Named(id): Named<NodeId>,
) -> Answer<(StatusCode, Json<Value>)> {
    whole(async move { api.core.shut_down_node(&id).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "ordered": true }))))
}
