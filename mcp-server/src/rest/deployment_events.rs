//! A deployment's steps as a stream (SSE): each step as it changes, then the whole deployment as it ended.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use cluster_core::{
    Result,
    deploy::{DeploymentView, StepView},
    ids::DeploymentId,
};
use futures::Stream;
use http::HeaderMap;
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    Api,
    body::{Asked, Named},
    error::Answer,
    events::{END, KEEP_ALIVE, last_event_id, message},
};

/// Every message but the last: one step as it is now. Steps that change faster than they are read are
/// told once.
const STEP: &str = "step";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The event of a view that is known already: only what changed since is told, where that is known.
    after: Option<u64>,
}

pub async fn stream(
    State(api): State<Api>,
    Named(id): Named<DeploymentId>,
    Asked(query): Asked<Query>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let after: u64 = last_event_id(&headers)?.or(query.after).unwrap_or(0);
    let views = api.core.watch_deployment(&id).await?;
    let mut reader = Reader { views, told: Vec::new(), ready: VecDeque::new(), ended: false };
    let first = reader.views.borrow_and_update().clone();
    if first.event > after || first.state.is_final() {
        reader.take(&first);
    } else {
        reader.told = first.steps;
    }
    let events = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Reader {
    views: watch::Receiver<DeploymentView>,
    /// The steps as they were told last.
    told: Vec<StepView>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            // Its task ends with the deployment, and leaves the last view behind.
            let gone = self.views.changed().await.is_err();
            let view = self.views.borrow_and_update().clone();
            self.take(&view);
            self.ended |= gone;
        }
    }

    fn take(&mut self, view: &DeploymentView) {
        let changed = view.steps.iter().filter(|step| !self.told.contains(step));
        let id = view.event.to_string();
        self.ready.extend(changed.map(|step| message(STEP, step).id(id.clone())));
        self.told = view.steps.clone();
        if view.state.is_final() {
            self.ready.push_back(message(END, view).id(id));
            self.ended = true;
        }
    }
}
