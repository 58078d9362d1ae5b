//! Rollouts over HTTP: many hosts by one call, answered with 202 and an id, followed and called off by it.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    Json,
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use cluster_core::{
    Result,
    deploy::{MemberView, RolloutView},
    ids::RolloutId,
};
use futures::Stream;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Api,
    body::{Asked, Body, Named},
    error::Answer,
    events::{END, KEEP_ALIVE, message},
};
use crate::tools::{check_range, deploy_edge_nodes::Arguments, whole};

const ROLLOUTS_MAX: u32 = 100;
const ROLLOUTS_DEFAULT: u32 = 20;
/// Every message of a stream but the last: one host as it is now. Those that change faster than they
/// are read are told once.
const MEMBER: &str = "member";

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
    let mut reader = Reader { views, told: Vec::new(), ready: VecDeque::new(), ended: false };
    let first = reader.views.borrow_and_update().clone();
    reader.take(&first);
    let events = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Reader {
    views: watch::Receiver<RolloutView>,
    /// The hosts as they were told last.
    told: Vec<MemberView>,
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
            // Its task ends with the rollout, and leaves the last view behind.
            let gone = self.views.changed().await.is_err();
            let view = self.views.borrow_and_update().clone();
            self.take(&view);
            self.ended |= gone;
        }
    }

    fn take(&mut self, view: &RolloutView) {
        let id = view.event.to_string();
        let changed = view.members.iter().enumerate().filter(|(at, now)| self.told.get(*at) != Some(*now));
        self.ready.extend(changed.map(|(_, member)| message(MEMBER, member).id(id.clone())));
        self.told = view.members.clone();
        if view.state.is_final() {
            self.ready.push_back(message(END, view).id(id));
            self.ended = true;
        }
    }
}
