//! Events of nodes as a stream (SSE), from an event on.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use cluster_core::{
    controller::events::{EventId, NodeEvent},
    core::Core,
    types::error::Result,
};
use futures::Stream;
use http::HeaderMap;
use serde::Deserialize;

use super::{
    Api,
    body::Asked,
    error::Answer,
    events::{EVENT, KEEP_ALIVE, last_event_id, message},
};

const BATCH_MAX: usize = 64;
const WAIT: Duration = Duration::from_secs(15);

/// Events before the next one were dropped: list the nodes for their current state.
const GAP: &str = "gap";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Events after this id. The default 0-0 starts from the oldest kept event.
    after: Option<EventIdText>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct EventIdText(EventId);

impl TryFrom<String> for EventIdText {
    type Error = cluster_core::types::error::Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse().map(Self)
    }
}

pub async fn stream(
    State(api): State<Api>,
    Asked(query): Asked<Query>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let resumed = last_event_id::<EventId>(&headers)?;
    let start = EventId { epoch: 0, sequence: 0 };
    let after = resumed.or(query.after.map(|text| text.0)).unwrap_or(start);
    // Reported as a status, not inside the stream.
    api.core.node_events(after, 0)?;
    let reader = Reader { core: api.core, after, ready: VecDeque::new() };
    let events = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Reader {
    core: Core,
    after: EventId,
    ready: VecDeque<NodeEvent>,
}

impl Reader {
    /// Returns the next event; `None` if the controller is gone.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.after = event.id.parse().unwrap_or(self.after);
                return Some(message(EVENT, &event).id(event.id));
            }
            let batch = self.core.node_events(self.after, BATCH_MAX).ok()?;
            self.ready = batch.events.into();
            if batch.gap && !self.ready.is_empty() {
                return Some(message(GAP, &serde_json::json!({ "after": self.after.to_string() })));
            }
            if self.ready.is_empty() {
                self.core.await_node_event(self.after, WAIT).await.ok()?;
            }
        }
    }
}
