//! Executions over HTTP.

use std::time::Duration;

use axum::{
    Extension, Json,
    body::Body as Stream,
    extract::State,
    response::{IntoResponse as _, Response},
};
use cluster_core::types::{
    agent::AgentReference,
    error::{Error, ErrorCode},
    execution::{
        filter::ExecutionFilter,
        lifecycle,
        request::{ExecutionRequest, Submitter},
        view::{ExecutionView, SpecView},
    },
    ids::{ExecutionId, NodeId, Tag},
    text::shown,
};
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use tokio_util::io::ReaderStream;

use super::{
    Api,
    body::{Asked, Body, Named},
    deployments::WAIT_SECONDS_MAX,
    error::Answer,
};
use crate::{
    caller::Caller,
    tools::{cancel_reason, check_range, whole},
};

/// Bytes read at a time for a download.
const PIECE_BYTES: usize = 128 * 1024;
const EXECUTIONS_DEFAULT: u32 = 50;
const EXECUTIONS_MAX: u32 = 1000;

#[derive(Serialize)]
pub struct Executions {
    executions: Vec<ExecutionView>,
    /// Older executions may follow: pass this value as `before`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<ExecutionId>,
}

pub async fn submit(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ExecutionRequest>,
) -> Answer<(StatusCode, Json<ExecutionView>)> {
    let submitter = Submitter { origin: api.origin, identity: caller.actor.identity };
    let view = whole(async move { api.core.submit(request, submitter).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    limit: Option<u32>,
    /// Comma-separated states or labels.
    #[serde(default)]
    state: String,
    #[serde(default)]
    label: String,
    node_id: Option<NodeId>,
    agent: Option<AgentReference>,
    before: Option<ExecutionId>,
}

impl List {
    fn filter(self) -> cluster_core::types::error::Result<ExecutionFilter> {
        fn words(text: &str) -> impl Iterator<Item = &str> {
            text.split(',').map(str::trim).filter(|word| !word.is_empty())
        }
        let state = |name: &str| {
            lifecycle::State::from_name(name).ok_or_else(|| {
                let known: Vec<_> = lifecycle::State::ALL.iter().map(|state| state.name()).collect();
                Error::invalid(format!("state: \"{}\" is none", shown(name)))
                    .remedy(format!("use {}", known.join(", ")))
            })
        };
        Ok(ExecutionFilter {
            states: words(&self.state).map(state).collect::<Result<_, _>>()?,
            labels: words(&self.label).map(Tag::parse).collect::<Result<_, _>>()?,
            node_id: self.node_id,
            agent: self.agent,
            before: self.before,
        })
    }
}

pub async fn list(State(api): State<Api>, Asked(query): Asked<List>) -> Answer<Json<Executions>> {
    let limit = check_range("limit", query.limit.unwrap_or(EXECUTIONS_DEFAULT), 1..=EXECUTIONS_MAX)?;
    let executions = api.core.executions(&query.filter()?, limit).await?;
    let is_full = executions.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    let next = executions.last().filter(|_| is_full).map(|last| last.execution_id.clone());
    Ok(Json(Executions { executions, next }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Show {
    /// Seconds to wait for the end.
    wait_seconds: Option<u64>,
}

/// An execution with its request.
#[derive(Serialize)]
pub struct Shown {
    #[serde(flatten)]
    view: ExecutionView,
    spec: SpecView,
}

pub async fn show(
    State(api): State<Api>,
    Named(id): Named<ExecutionId>,
    Asked(query): Asked<Show>,
) -> Answer<Json<Shown>> {
    let wait = check_range("wait_seconds", query.wait_seconds.unwrap_or(0), 0..=WAIT_SECONDS_MAX)?;
    let view = match wait {
        0 => api.core.execution(&id).await?,
        seconds => api.core.await_execution_end(&id, Duration::from_secs(seconds)).await?,
    };
    Ok(Json(Shown { spec: api.core.execution_spec(&id).await?, view }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    #[serde(default)]
    reason: Option<String>,
}

pub async fn cancel(
    State(api): State<Api>,
    Named(id): Named<ExecutionId>,
    Body(body): Body<Cancel>,
) -> Answer<Json<ExecutionView>> {
    let reason = cancel_reason(body.reason)?;
    Ok(Json(whole(async move { api.core.cancel_execution(&id, &reason).await }).await?))
}

/// Returns the packed artifacts of an ended execution.
pub async fn artifacts(State(api): State<Api>, Named(id): Named<ExecutionId>) -> Answer<Response> {
    let path = api.core.execution_artifacts(&id).await?;
    let unread = |e: std::io::Error| {
        Error::new(ErrorCode::Storage, "the artifacts cannot be read on the controller").source(e)
    };
    let file = tokio::fs::File::open(path).await.map_err(unread)?;
    let bytes = file.metadata().await.map_err(unread)?.len();
    let headers = [(CONTENT_TYPE, "application/gzip".to_owned()), (CONTENT_LENGTH, bytes.to_string())];
    Ok((headers, Stream::from_stream(ReaderStream::with_capacity(file, PIECE_BYTES))).into_response())
}

/// Runs a trial container on this machine to its end.
pub async fn trial(State(api): State<Api>) -> Answer<Json<ExecutionView>> {
    Ok(Json(whole(async move { api.core.run_trial().await }).await?))
}
