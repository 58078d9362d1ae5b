//! Bounds the events of one execution that the controller stores. Its node bounds its output already; a node that
//! tells more than that, by a fault or on purpose, must not fill the controller's disk. Plain functions.

use aegis_types::execution::{
    lifecycle::State,
    view::{EventKind, EventView, Stream},
};
use bytes::Bytes;

/// Room that is left for the events of one execution, and the events that were left out.
#[derive(Debug)]
pub(super) struct EventBudget {
    left: u64,
    /// First and last number that is left out, behind the mark that says so.
    skipped: Option<(u64, u64)>,
    is_over: bool,
}

/// Decision about the storage of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Whole,
    /// A mark in its place: nothing follows but the end.
    Mark(EventView),
    Nothing,
    /// The end, behind the gap before it.
    AfterGap(EventView),
}

impl EventBudget {
    /// `stored`: bytes of the execution's events so far.
    pub fn new(bytes_max: u64, stored: u64) -> Self {
        Self { left: bytes_max.saturating_sub(stored), skipped: None, is_over: false }
    }

    /// Decides what is stored of an event of so many bytes. An end is always stored.
    pub fn admit(&mut self, event: &EventView, bytes: usize) -> Admission {
        let EventView { sequence, attempt, time_ms, .. } = *event;
        let other = |sequence, kind| EventView { sequence, attempt, time_ms, kind };
        if event.kind.state().is_some_and(State::is_final) {
            return match self.skipped.take() {
                Some((first, last)) => Admission::AfterGap(other(last, EventKind::Gap { first, last })),
                None => Admission::Whole,
            };
        }
        if !self.is_over {
            match self.left.checked_sub(bytes as u64) {
                Some(left) => {
                    self.left = left;
                    return Admission::Whole;
                }
                None => self.is_over = true,
            }
            let mark = EventKind::Output { stream: Stream::Stdout, data: Bytes::new(), truncated: true };
            return Admission::Mark(other(sequence, mark));
        }
        let first = self.skipped.map_or(sequence, |(first, _)| first);
        self.skipped = Some((first, sequence));
        Admission::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, kind: EventKind) -> EventView {
        EventView { sequence, attempt: 1, time_ms: 7, kind }
    }

    fn output(sequence: u64) -> EventView {
        let data = Bytes::from_static(b"x");
        event(sequence, EventKind::Output { stream: Stream::Stderr, data, truncated: false })
    }

    #[test]
    fn events_beyond_the_budget_become_a_mark_and_a_gap() {
        let mut budget = EventBudget::new(100, 40);
        assert_eq!(budget.admit(&event(1, EventKind::Started), 10), Admission::Whole);
        assert_eq!(budget.admit(&output(2), 50), Admission::Whole);
        let Admission::Mark(mark) = budget.admit(&output(3), 1) else { panic!("no mark") };
        assert!(matches!(mark.kind, EventKind::Output { truncated: true, ref data, .. } if data.is_empty()));
        assert_eq!(mark.sequence, 3);
        for sequence in 4..1000 {
            // Those that would fit, and those of other kinds, too.
            let other = event(sequence, EventKind::ImageProgress { message: "pulling".into() });
            assert_eq!(budget.admit(&other, 0), Admission::Nothing);
        }
        let end = event(1000, EventKind::Completed { result: None });
        let gap = event(999, EventKind::Gap { first: 4, last: 999 });
        assert_eq!(budget.admit(&end, 1_000_000), Admission::AfterGap(gap));
        assert_eq!(budget.admit(&end, 1_000_000), Admission::Whole);
    }

    #[test]
    fn end_within_the_budget_follows_no_gap() {
        let mut budget = EventBudget::new(10, 20);
        let end = event(1, EventKind::Cancelled { reason: String::new() });
        assert_eq!(budget.admit(&end, 500), Admission::Whole);
        assert!(matches!(budget.admit(&output(2), 1), Admission::Mark(_)), "more was stored than fits");
    }
}
