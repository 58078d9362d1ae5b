//! View that changes as a stream (SSE): each part as it changes, then the final view. Changes that are faster than the
//! reader are merged.

use std::{collections::VecDeque, convert::Infallible};

use axum::response::sse::{Event, KeepAlive, Sse};
use cluster_core::{
    deploy::{DeploymentView, MemberView, RolloutView, StepView},
    types::error::Result,
};
use futures::Stream;
use serde::Serialize;
use tokio::sync::watch;

use super::events::{END, KEEP_ALIVE, message};

/// View that is streamed part by part.
pub trait Parts: Clone + Serialize + Send + Sync + 'static {
    type Part: Clone + PartialEq + Serialize + Send;
    /// Name of a part's message.
    const NAME: &'static str;

    fn parts(&self) -> &[Self::Part];
    /// Grows with every change.
    fn event(&self) -> u64;
    fn is_final(&self) -> bool;
}

impl Parts for DeploymentView {
    type Part = StepView;
    const NAME: &'static str = "step";

    fn parts(&self) -> &[StepView] {
        &self.steps
    }

    fn event(&self) -> u64 {
        self.event
    }

    fn is_final(&self) -> bool {
        self.state.is_final()
    }
}

impl Parts for RolloutView {
    type Part = MemberView;
    const NAME: &'static str = "member";

    fn parts(&self) -> &[MemberView] {
        &self.members
    }

    fn event(&self) -> u64 {
        self.event
    }

    fn is_final(&self) -> bool {
        self.state.is_final()
    }
}

/// Streams from a state that the reader knows (its event number; 0 for no state). If something changed since, every
/// part is sent first. Then each part is sent as it changes.
pub fn stream<V: Parts>(
    views: watch::Receiver<V>,
    known: u64,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut reader = Reader { views, told: Vec::new(), ready: VecDeque::new(), ended: false };
    let first = reader.views.borrow_and_update().clone();
    if first.event() > known || first.is_final() {
        reader.take(&first);
    } else {
        reader.told = first.parts().to_vec();
    }
    let events = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

struct Reader<V: Parts> {
    views: watch::Receiver<V>,
    /// Parts as last sent, in order.
    told: Vec<V::Part>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl<V: Parts> Reader<V> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            // The task ended with the view, and left the last view behind.
            let gone = self.views.changed().await.is_err();
            let view = self.views.borrow_and_update().clone();
            self.take(&view);
            self.ended |= gone;
        }
    }

    fn take(&mut self, view: &V) {
        let id = view.event().to_string();
        let changed = view.parts().iter().enumerate().filter(|(at, now)| self.told.get(*at) != Some(*now));
        self.ready.extend(changed.map(|(_, part)| message(V::NAME, part).id(id.clone())));
        self.told = view.parts().to_vec();
        if view.is_final() {
            self.ready.push_back(message(END, view).id(id));
            self.ended = true;
        }
    }
}
