//! Rollouts over HTTP: many hosts by one call, answered with 202 and an id, followed and cancelled by it.

use std::convert::Infallible;

use axum::{
    Json,
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event, Sse},
    },
};
use cluster_core::{
    deploy::RolloutView,
    types::{error::Result, ids::RolloutId},
};
use futures::Stream;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Asked, Body, Named},
    error::Answer,
    parts,
};
use crate::tools::{check_range, deploy_edge_nodes::Arguments, whole};

const ROLLOUTS_MAX: u32 = 100;
const ROLLOUTS_DEFAULT: u32 = 20;
/// 202 with the id: the rollout goes on by itself. A dry run answers 200 with every host's plan.
pub async fn begin(State(api): State<Api>, Body(body): Body<Arguments>) -> Answer<Response> {
    let dry_run = body.dry_run;
    let request = body.check(api.origin)?;
    if dry_run {
        return Ok(Json(api.core.plan_rollout(request, api.origin).await?).into_response());
    }
    let view = whole(async move { api.core.roll_out(request, api.origin).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    limit: Option<u32>,
}

#[derive(Serialize)]
pub struct Rollouts {
    rollouts: Vec<RolloutView>,
}

pub async fn list(State(api): State<Api>, Asked(query): Asked<List>) -> Answer<Json<Rollouts>> {
    let limit = check_range("limit", query.limit.unwrap_or(ROLLOUTS_DEFAULT), 1..=ROLLOUTS_MAX)?;
    Ok(Json(Rollouts { rollouts: api.core.rollouts(limit).await? }))
}

pub async fn show(State(api): State<Api>, Named(id): Named<RolloutId>) -> Answer<Json<RolloutView>> {
    Ok(Json(api.core.rollout(&id).await?))
}

pub async fn cancel(State(api): State<Api>, Named(id): Named<RolloutId>) -> Answer<Json<RolloutView>> {
    Ok(Json(whole(async move { api.core.cancel_rollout(&id).await }).await?))
}

/// Every host as it is at first, then each as it changes, then the whole rollout as it ended.
pub async fn stream(
    State(api): State<Api>,
    Named(id): Named<RolloutId>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let views = api.core.watch_rollout(&id).await?;
    Ok(parts::stream(views, 0))
}
