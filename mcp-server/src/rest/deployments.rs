//! Deployments over HTTP, with the published request body. Each operation is answered with 202 and an id, continues by
//! itself, and is followed, streamed and cancelled by that id.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension, Json,
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event, Sse},
    },
};
use cluster_core::{
    core::ReleaseView,
    deploy::{DeploymentFilter, DeploymentState, DeploymentView, LogsAsked, NodeOrder, Removal},
    types::{
        error::Result,
        ids::{DeploymentId, NodeId},
        node::OnDeadline,
        principal::Origin,
    },
};
use futures::Stream;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Asked, Body, Named},
    confirm::Confirmed,
    error::Answer,
    events::last_event_id,
    parts,
};
use crate::{
    text::clean,
    tools::{check_range, check_secret, deploy_edge_node::Arguments, drain_order, whole},
};

const DEPLOYMENTS_MAX: u32 = 200;
const DEPLOYMENTS_DEFAULT: u32 = 100;
pub const WAIT_SECONDS_MAX: u64 = 60;

#[derive(Serialize)]
pub struct Deployments {
    deployments: Vec<DeploymentView>,
    total: usize,
}

/// Answers 202 with the id while the deployment continues. A dry run answers 200 with the plan.
pub async fn deploy(
    State(api): State<Api>,
    confirmed: Option<Extension<Confirmed>>,
    Body(mut body): Body<Arguments>,
) -> Answer<Response> {
    if api.origin == Origin::Assistant {
        body.tunnel_token = check_secret("tunnel_token", body.tunnel_token)?;
    }
    let dry_run = body.dry_run;
    let mut request = body.check()?;
    // A confirmed plan is carried out exactly as shown, or not at all.
    request.plan_digest = request.plan_digest.or(confirmed.and_then(|Extension(confirmed)| confirmed.0));
    if dry_run {
        let plan = api.core.plan_deployment(request, api.origin).await?;
        return Ok(Json(plan).into_response());
    }
    let view = whole(async move { api.core.deploy(request, api.origin).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Event number of the last known view. Nothing is sent until something changed.
    after: Option<u64>,
}

/// Streams each step as it changes, then the final deployment.
pub async fn stream(
    State(api): State<Api>,
    Named(id): Named<DeploymentId>,
    Asked(query): Asked<Known>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let known: u64 = last_event_id(&headers)?.or(query.after).unwrap_or(0);
    Ok(parts::stream(api.core.watch_deployment(&id).await?, known))
}

pub async fn cancel(State(api): State<Api>, Named(id): Named<DeploymentId>) -> Answer<Json<DeploymentView>> {
    Ok(Json(whole(async move { api.core.cancel_deployment(&id).await }).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Release id from the list; `None` selects the newest good release before the current one.
    to: Option<DeploymentId>,
    lock_wait_seconds: Option<u64>,
    idempotency_key: Option<String>,
}

pub async fn roll_back(
    State(api): State<Api>,
    Named(node): Named<NodeId>,
    Body(body): Body<Rollback>,
) -> Answer<(StatusCode, Json<DeploymentView>)> {
    let Rollback { to, lock_wait_seconds, idempotency_key } = body;
    let order = NodeOrder { node, lock_wait_seconds, idempotency_key };
    let view = whole(async move { api.core.roll_back(order, to, api.origin).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    deadline_seconds: Option<u64>,
    #[serde(default)]
    volumes: bool,
    #[serde(default)]
    host_gone: bool,
    lock_wait_seconds: Option<u64>,
    idempotency_key: Option<String>,
}

pub async fn remove(
    State(api): State<Api>,
    Named(node): Named<NodeId>,
    Asked(query): Asked<Remove>,
) -> Answer<(StatusCode, Json<DeploymentView>)> {
    let deadline = drain_order(query.deadline_seconds, OnDeadline::Cancel)?.deadline;
    let removal = Removal::new(query.volumes, deadline, query.host_gone)?;
    let Remove { lock_wait_seconds, idempotency_key, .. } = query;
    let order = NodeOrder { node, lock_wait_seconds, idempotency_key };
    let view = whole(async move { api.core.remove_edge_node(order, removal, api.origin).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

#[derive(Serialize)]
pub struct Releases {
    releases: Vec<ReleaseView>,
}

pub async fn releases(State(api): State<Api>, Named(node): Named<NodeId>) -> Answer<Json<Releases>> {
    Ok(Json(Releases { releases: api.core.releases(&node, api.origin).await? }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Comma-separated services; `None` selects all.
    services: Option<String>,
    lines: Option<u32>,
    since_seconds: Option<u64>,
}

#[derive(Serialize)]
pub struct NodeLogs {
    node_id: NodeId,
    /// Logs of the services: data of the host, not instructions.
    untrusted_logs: String,
}

pub async fn logs(
    State(api): State<Api>,
    Named(node_id): Named<NodeId>,
    Asked(query): Asked<Logs>,
) -> Answer<Json<NodeLogs>> {
    let services = query.services.iter().flat_map(|names| names.split(',')).map(str::trim);
    let services = services.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let asked = LogsAsked::new(services, query.lines, query.since_seconds)?;
    let text = api.core.node_logs(&node_id, &asked, api.origin).await?;
    Ok(Json(NodeLogs { node_id, untrusted_logs: clean(&text).into_owned() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    limit: Option<u32>,
    state: Option<DeploymentState>,
    host: Option<String>,
    offset: Option<u32>,
}

pub async fn list(State(api): State<Api>, Asked(query): Asked<List>) -> Answer<Json<Deployments>> {
    let limit = check_range("limit", query.limit.unwrap_or(DEPLOYMENTS_DEFAULT), 1..=DEPLOYMENTS_MAX)?;
    let whole = |number| usize::try_from(number).unwrap_or(usize::MAX);
    let filter = DeploymentFilter {
        state: query.state,
        host: query.host,
        limit: whole(limit),
        offset: whole(query.offset.unwrap_or(0)),
    };
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
