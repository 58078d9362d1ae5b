//! Events of the engine about containers.

use std::collections::HashMap;

use aegis_types::{error::Result, execution::order::Attempt, ids::ExecutionId};
use bollard::{models::EventMessage, query_parameters::EventsOptionsBuilder};
use futures::{Stream, StreamExt as _};

use super::{Engine, LABEL_ATTEMPT, LABEL_EXECUTION, LABEL_OWNER, refused};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The container ended, with any result.
    Died,
    /// A process in the container was killed at the memory limit.
    OutOfMemory,
    /// The container was removed.
    Removed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    pub attempt: Attempt,
    pub change: Change,
    /// Unix time in nanoseconds, by the engine's clock.
    pub time_ns: i64,
}

impl Engine {
    /// Streams the events of an owner's containers from a time on, as far back as the engine remembers. Ends when the
    /// engine stops.
    pub fn events(
        &self,
        owner: &str,
        since_ns: i64,
    ) -> impl Stream<Item = Result<EngineEvent>> + Send + use<> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", vec!["die".to_owned(), "oom".to_owned(), "destroy".to_owned()]),
            ("label", vec![format!("{LABEL_OWNER}={owner}")]),
        ]);
        let since = format!("{}.{:09}", since_ns / 1_000_000_000, since_ns % 1_000_000_000);
        let options = EventsOptionsBuilder::new().since(&since).filters(&filters).build();
        self.docker.events(Some(options)).filter_map(async |message| match message {
            Ok(message) => read(message).map(Ok),
            Err(e) => Some(Err(refused("tell what becomes of containers", e))),
        })
    }
}

/// Converts an event; `None` if the event concerns no execution.
fn read(message: EventMessage) -> Option<EngineEvent> {
    let attributes = message.actor?.attributes?;
    let attempt = Attempt {
        execution_id: ExecutionId::parse(attributes.get(LABEL_EXECUTION)?.as_str()).ok()?,
        number: attributes.get(LABEL_ATTEMPT)?.parse().ok()?,
    };
    let change = match message.action?.as_str() {
        "die" => Change::Died,
        "oom" => Change::OutOfMemory,
        "destroy" => Change::Removed,
        _ => return None,
    };
    Some(EngineEvent { attempt, change, time_ns: message.time_nano.unwrap_or_default() })
}
