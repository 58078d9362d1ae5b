//! The HTTP API: thin handlers that read, call one method of the core, and write.
//!
//! The same routes are served twice: over HTTP behind the guard, where callers count as assistants,
//! and over the unix socket of the data directory, where they are the person who owns it. Only there
//! can hosts be admitted, secrets be set, configuration be changed and the daemon be stopped. The scope that each
//! route needs and the audit entry of each change are in `gate`; confirmation of disruptive requests is in
//! `confirm`.

mod agents;
mod audit;
pub mod body;
mod cluster;
mod config;
pub mod confirm;
mod deployments;
mod enrolment;
pub mod error;
mod events;
mod executions;
pub(crate) mod gate;
pub mod health;
mod hosts;
mod member;
mod node_events;
mod parts;
mod rollouts;
mod secrets;
mod tokens;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, delete, get, post, put},
};
use cluster_core::{
    core::Core,
    types::{
        error::{Error, ErrorCode},
        principal::Origin,
    },
};
use error::Problem;
use tokio_util::sync::CancellationToken;

use crate::{confirm::Confirmations, rest::body::BODY_BYTES_MAX};

/// Above the longest wait that a caller can request, with time for the host checks of a dry run.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(120);

/// State that the handlers share.
#[derive(Debug, Clone)]
pub struct Api {
    pub core: Core,
    pub origin: Origin,
    /// Confirmations, shared with MCP.
    pub confirmations: Arc<Confirmations>,
    /// Cancelled to stop the daemon.
    pub stop: CancellationToken,
}

/// Returns the routes of a node that serves an API.
pub fn router(api: Api) -> Router {
    let mut router = Router::new()
        .route("/deploy/edge-node", post(deployments::deploy))
        .route("/deployments", get(deployments::list))
        .route("/deploy/edge-node/{node}", delete(deployments::remove))
        .route("/deploy/edge-node/{node}/rollback", post(deployments::roll_back))
        .route("/deploy/edge-node/{node}/releases", get(deployments::releases))
        .route("/deployments/{id}", get(deployments::show))
        .route("/deployments/{id}/cancel", post(deployments::cancel))
        .route("/deployments/{id}/events", get(deployments::stream))
        .route("/deploy/edge-nodes", post(rollouts::begin))
        .route("/rollouts", get(rollouts::list))
        .route("/rollouts/{id}", get(rollouts::show))
        .route("/rollouts/{id}/cancel", post(rollouts::cancel))
        .route("/rollouts/{id}/events", get(rollouts::stream))
        .route("/v1/cluster/status", get(cluster::status))
        .route("/v1/cluster/nodes", get(cluster::nodes))
        .route("/v1/cluster/nodes/{id}/drain", get(cluster::drain_status).post(cluster::drain))
        .route("/v1/cluster/nodes/{id}/resume", post(cluster::resume))
        .route("/v1/cluster/nodes/{id}", delete(cluster::remove))
        .route("/v1/cluster/nodes/{id}/shutdown", post(cluster::shut_down))
        .route("/v1/cluster/nodes/{id}/config", get(config::node))
        .route("/v1/cluster/nodes/{id}/logs", get(deployments::logs))
        .route("/v1/cluster/events", get(node_events::stream))
        .route("/v1/cluster/enrolment-tokens", get(enrolment::list).post(enrolment::create))
        .route("/v1/cluster/enrolment-tokens/{id}", delete(enrolment::revoke))
        .route("/v1/cluster/token-keys", get(config::token_keys))
        .route("/v1/config/layers", get(config::layers))
        .route("/v1/config/layers/{*scope}", get(config::layer))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", delete(tokens::revoke))
        .route("/v1/audit", get(audit::list))
        .route("/v1/agents", get(agents::list).post(agents::apply))
        .route("/v1/agents/{name}", get(agents::show).delete(agents::delete))
        .route("/v1/executions", get(executions::list).post(executions::submit))
        .route("/v1/executions/{id}", get(executions::show))
        .route("/v1/executions/{id}/events", get(events::stream))
        .route("/v1/executions/{id}/artifacts", get(executions::artifacts))
        .route("/v1/executions/{id}/cancel", post(executions::cancel))
        .merge(health_routes());
    if api.origin == Origin::Person {
        router = router
            .route("/v1/cluster/nodes/{id}/tenant", put(config::assign))
            .route("/v1/cluster/token-keys/rotate", post(config::rotate_token_key))
            .route("/v1/config", get(config::effective))
            .route("/v1/config/layers/{*scope}", put(config::put).delete(config::remove))
            .route("/v1/trial", post(executions::trial))
            .route("/v1/hosts", get(hosts::list).post(hosts::approve))
            .route("/v1/hosts/probe", post(hosts::probe))
            .route("/v1/hosts/{host}/{port}", delete(hosts::forget))
            .route("/v1/secrets", get(secrets::list))
            .route("/v1/secrets/{name}", put(secrets::set).delete(secrets::delete))
            .merge(shutdown_route());
    }
    finish(router, api)
}

/// Returns the routes of a plain worker: health, and over its own socket also its membership, configuration and
/// shutdown.
pub fn worker_router(api: Api) -> Router {
    let mut router = health_routes();
    if api.origin == Origin::Person {
        router = router
            .route("/v1/node/leave", post(member::leave))
            .route("/v1/node/rotate-key", post(member::rotate_key))
            .route("/v1/config", get(config::effective))
            .merge(shutdown_route());
    }
    let router = router.route("/v1/{*path}", any(member::not_here));
    finish(router, api)
}

fn health_routes() -> Router<Api> {
    Router::new()
        .route("/health", get(health::full))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route(health::BUSY, any(health::busy))
        .route("/metrics", get(health::metrics))
}

fn shutdown_route() -> Router<Api> {
    Router::new().route("/v1/shutdown", post(health::shutdown))
}

fn finish(router: Router<Api>, api: Api) -> Router {
    router
        .fallback(async || Problem(Error::new(ErrorCode::NotFound, "there is no such path")))
        .method_not_allowed_fallback(async || {
            let problem = Problem(Error::invalid("this path does not take this method"));
            (http::StatusCode::METHOD_NOT_ALLOWED, problem.body())
        })
        .layer(middleware::from_fn(bounded))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(api.clone(), gate::gate))
        .with_state(api)
}

/// Limits the time until the response begins; an event stream then continues without limit.
async fn bounded(request: Request, next: Next) -> Response {
    tokio::time::timeout(REQUEST_TIME_MAX, next.run(request)).await.unwrap_or_else(|_| {
        Problem(Error::new(ErrorCode::Timeout, "the request took too long")).into_response()
    })
}
