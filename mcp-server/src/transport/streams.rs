//! Requests in progress of each caller, and event streams that end with the token of their caller.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{body::Body, response::Response};
use cluster_core::{
    controller::access::Validity,
    types::error::{Error, ErrorCode, Result},
};
use futures::StreamExt as _;
use http::{HeaderMap, header};

/// Requests in progress of one caller, event streams among them. Half of the connections that are served at a time,
/// so that one token cannot take all of them.
pub const REQUESTS_PER_CALLER_MAX: usize = 128;

/// Counts of requests in progress, by caller.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<HashMap<String, usize>>>);

/// One request in progress.
#[derive(Debug)]
pub struct Ticket {
    requests: Requests,
    caller: String,
}

impl Requests {
    /// Counts a request of `caller` until the ticket is dropped.
    ///
    /// # Errors
    ///
    /// Returns `ResourceExhausted` at [`REQUESTS_PER_CALLER_MAX`].
    pub fn begin(&self, caller: String) -> Result<Ticket> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(caller.clone()).or_default();
        if *count >= REQUESTS_PER_CALLER_MAX {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("{caller} has {REQUESTS_PER_CALLER_MAX} requests in progress"),
            )
            .remedy("close event streams that are no longer read, or use another token"));
        }
        *count += 1;
        drop(counts);
        Ok(Ticket { requests: self.clone(), caller })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.requests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

/// Keeps the ticket of an event stream until the stream ends, and ends the stream with the caller's token.
pub fn until_invalid(response: Response, ticket: Ticket, validity: Validity) -> Response {
    if !is_event_stream(response.headers()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let ended = Box::pin(async move { validity.ended().await });
    let stream = body.into_data_stream().take_until(ended).map(move |part| {
        let _kept = &ticket;
        part
    });
    Response::from_parts(parts, Body::from_stream(stream))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_cannot_take_the_places_of_another() {
        let requests = Requests::default();
        let begin = |caller: &str| requests.begin(caller.to_owned());
        let mut tickets: Vec<_> =
            (0..REQUESTS_PER_CALLER_MAX).map(|_| begin("token looks").unwrap()).collect();
        assert_eq!(begin("token looks").unwrap_err().code(), ErrorCode::ResourceExhausted);
        assert!(begin("token works").is_ok());
        tickets.pop();
        assert!(begin("token looks").is_ok());
        drop(tickets);
        assert!(requests.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn event_stream_holds_its_ticket_until_it_ends() {
        let requests = Requests::default();
        let endless = || {
            let parts = futures::stream::pending::<std::io::Result<Vec<u8>>>();
            Response::builder()
                .header(header::CONTENT_TYPE, "text/event-stream")
                .body(Body::from_stream(parts))
                .unwrap()
        };
        let ticket = requests.begin("a".to_owned()).unwrap();
        let stream = until_invalid(endless(), ticket, Validity::default());
        assert_eq!(requests.0.lock().unwrap().len(), 1);
        drop(stream);
        assert!(requests.0.lock().unwrap().is_empty());
        let ticket = requests.begin("a".to_owned()).unwrap();
        let plain = until_invalid(Response::new(Body::from("x")), ticket, Validity::default());
        assert!(requests.0.lock().unwrap().is_empty(), "a plain answer ends with its handler");
        drop(plain);
    }
}
