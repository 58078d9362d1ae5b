//! Deployments over HTTP, with the body that the seed published.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use cluster_core::{
    deploy::{DeploymentFilter, DeploymentView, Origin},
    ids::DeploymentId,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Asked, Body, Named},
    error::Answer,
};
use crate::tools::{check_range, check_secret, deploy_edge_node::Arguments, whole};

const DEPLOYMENTS_MAX: u32 = 200;
const DEPLOYMENTS_DEFAULT: u32 = 100;
pub const WAIT_SECONDS_MAX: u64 = 60;

#[derive(Serialize)]
pub struct Deployments {
    deployments: Vec<DeploymentView>,
    total: usize,
}

/// 202 with the id: the deployment goes on by itself. A dry run answers 200 with the plan.
pub async fn deploy(State(api): State<Api>, Body(mut body): Body<Arguments>) -> Answer<Response> {
    if api.origin == Origin::Assistant {
        body.tunnel_token = check_secret("tunnel_token", body.tunnel_token)?;
    }
    let dry_run = body.dry_run;
    let request = body.check()?;
    if dry_run {
        let plan = api.core.plan_deployment(request, api.origin).await?;
        return Ok(Json(plan).into_response());
    }
    let view = whole(async move { api.core.deploy(request, api.origin).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    limit: Option<u32>,
}

pub async fn list(State(api): State<Api>, Asked(query): Asked<List>) -> Answer<Json<Deployments>> {
    let limit = check_range("limit", query.limit.unwrap_or(DEPLOYMENTS_DEFAULT), 1..=DEPLOYMENTS_MAX)?;
    let filter =
        DeploymentFilter { limit: usize::try_from(limit).unwrap_or(usize::MAX), ..Default::default() };
    let (deployments, total) = api.core.deployments(filter).await?;
    Ok(Json(Deployments { deployments, total }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Show {
    wait_seconds: Option<u64>,
    since_event: Option<u64>,
}

pub async fn show(
    State(api): State<Api>,
    Named(id): Named<DeploymentId>,
    Asked(query): Asked<Show>,
) -> Answer<Json<DeploymentView>> {
    let wait = check_range("wait_seconds", query.wait_seconds.unwrap_or(0), 0..=WAIT_SECONDS_MAX)?;
    let known = api.core.deployment(&id).await?;
    let since = query.since_event.unwrap_or(known.event);
    if wait == 0 || known.state.is_final() || known.event > since {
        return Ok(Json(known));
    }
    Ok(Json(api.core.await_deployment_change(&id, since, Duration::from_secs(wait)).await?))
}
