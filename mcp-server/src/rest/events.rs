//! Events of an execution as a stream (SSE), from a sequence on.
//!
//! Each reader pulls by itself, so a slow reader delays neither the container nor other readers.

use std::{collections::VecDeque, convert::Infallible, str::FromStr, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use cluster_core::{
    core::Core,
    types::{
        error::{Error, Failure, Result},
        execution::view::{EventView, ExecutionView},
        ids::ExecutionId,
    },
};
use futures::Stream;
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Asked, Named},
    error::Answer,
};

/// Events read from the store at a time, and therefore held for a slow reader.
const BATCH_MAX: u32 = 64;
const WAIT: Duration = Duration::from_secs(15);
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Name of the stream's last message, which holds the final execution.
pub const END: &str = "end";
/// Name of every other message: one event.
pub const EVENT: &str = "event";
/// The stream failed on the server; the reader can resume from the last id.
pub const ERROR: &str = "error";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Events after this sequence.
    after: Option<u64>,
}

pub async fn stream(
    State(api): State<Api>,
    Named(id): Named<ExecutionId>,
    Asked(query): Asked<Query>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let resumed = last_event_id(&headers)?;
    let after: u64 = resumed.or(query.after).unwrap_or(0);
    // Reported as a status, not inside the stream.
    api.core.execution(&id).await?;
    let reader = Reader { core: api.core, id, after, ready: VecDeque::new(), ended: false };
    let events = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Returns the last event that a reconnecting reader saw, which overrides its original start.
pub fn last_event_id<T: FromStr>(headers: &HeaderMap) -> Result<Option<T>> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| Error::invalid("Last-Event-ID: it is not the id of an event"))
}

struct Reader {
    core: Core,
    id: ExecutionId,
    after: u64,
    ready: VecDeque<EventView>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        match self.pull().await {
            Ok(Pulled::Event(event)) => {
                self.after = event.sequence;
                Some(message(EVENT, &event).id(event.sequence.to_string()))
            }
            Ok(Pulled::End(execution)) => {
                self.ended = true;
                Some(message(END, &execution))
            }
            Err(error) => {
                tracing::warn!(execution_id = %self.id, error = %error.chain(), "an event stream broke");
                self.ended = true;
                Some(message(ERROR, &Failure::from(&error)))
            }
        }
    }

    async fn pull(&mut self) -> Result<Pulled> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Pulled::Event(event));
            }
            self.ready = self.core.execution_events(&self.id, self.after, BATCH_MAX).await?.into();
            if !self.ready.is_empty() {
                continue;
            }
            let execution = self.core.await_execution_change(&self.id, self.after, WAIT).await?;
            if execution.state.is_settled() && execution.last_sequence <= self.after {
                return Ok(Pulled::End(Box::new(execution)));
            }
        }
    }
}

enum Pulled {
    Event(EventView),
    End(Box<ExecutionView>),
}

pub fn message(name: &str, data: &impl Serialize) -> Event {
    // JSON of these types never fails; a reader of an empty object asks again.
    let json = serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned());
    Event::default().event(name).data(json)
}
