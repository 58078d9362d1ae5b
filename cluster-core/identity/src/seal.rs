//! Seal of a call: binds a signed payload to one call of one session.
//!
//! Protobuf bytes carry no type, so a signature over them alone does not name their destination. The context inside the
//! payload does, and this module checks it.

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{NodeId, SessionId},
};

/// Tolerance of the issue time, after correction by the measured offset.
const ISSUE_TIME_TOLERANCE_MS: u64 = 60_000;
/// Number of calls by which calls of one session may overtake each other.
const WINDOW: u64 = 1024;
const WORDS: usize = 16;
/// Senders count by one; a larger jump is no valid counter, and would close the window.
const SEQUENCE_JUMP_MAX: u64 = 1 << 32;

/// Context in a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealContext {
    /// Full gRPC path.
    pub method: String,
    pub sender: NodeId,
    /// The receiver's node id or the cluster id.
    pub audience: String,
    pub session_id: SessionId,
    pub sequence: u64,
    pub issued_at_ms: i64,
    /// The controller's epoch.
    pub epoch: u64,
    pub token_sha256: [u8; 32],
}

/// Expectations of a call's receiver.
#[derive(Debug, Clone)]
pub struct SealExpectation<'a> {
    pub method: &'a str,
    /// All names by which this receiver may be addressed.
    pub audiences: &'a [&'a str],
    pub token_sha256: [u8; 32],
    /// The sender's clock minus the local clock, measured at attestation.
    pub clock_offset_ms: i64,
    pub now_ms: i64,
}

impl SealContext {
    /// Checks path, audience, token and time. The session checks the sequence afterwards.
    pub fn check(&self, expected: &SealExpectation<'_>) -> Result<()> {
        let refused = |why: String| {
            Error::new(
                ErrorCode::InvalidSignature,
                format!("the sealed context does not fit this call: {why}"),
            )
            .remedy("seal each call for its own method, receiver and token")
        };
        if self.method != expected.method {
            return Err(refused(format!("it was sealed for {}", aegis_types::text::shown(&self.method))));
        }
        if !expected.audiences.contains(&self.audience.as_str()) {
            return Err(refused(format!("it was sealed for {}", aegis_types::text::shown(&self.audience))));
        }
        if self.token_sha256 != expected.token_sha256 {
            return Err(refused("it was sealed with another token".into()));
        }
        let issued_ms = self.issued_at_ms.saturating_sub(expected.clock_offset_ms);
        let apart_ms = expected.now_ms.abs_diff(issued_ms);
        if apart_ms > ISSUE_TIME_TOLERANCE_MS {
            return Err(Error::new(
                ErrorCode::ClockSkew,
                format!("the call was sealed {} s away from this node's time", apart_ms / 1000),
            )
            .remedy("compare the clocks of both machines; attesting again measures the offset anew"));
        }
        Ok(())
    }
}

/// Sequence numbers seen in one session: the highest, and a bitmap of the numbers just below.
#[derive(Debug, Clone, Default)]
pub struct SequenceWindow {
    highest: u64,
    /// Ring buffer: the bit of a number is at the number modulo the window.
    seen: [u64; WORDS],
}

impl SequenceWindow {
    /// Accepts a number once. Numbers start at 1.
    pub fn accept(&mut self, sequence: u64) -> Result<()> {
        let refused = |why: &str| {
            Error::new(ErrorCode::NonceReplay, format!("sequence {sequence} is refused: {why}"))
                .remedy("attest again for a new session")
        };
        if sequence == 0 {
            return Err(refused("numbers start at 1"));
        }
        if sequence > self.highest {
            let step = sequence - self.highest;
            if step > SEQUENCE_JUMP_MAX {
                return Err(refused("it jumps too far"));
            }
            if step >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                // Numbers that leave the window free their bits for numbers that were skipped.
                (self.highest + 1..sequence).for_each(|passed| self.set(passed, false));
            }
            self.set(sequence, true);
            self.highest = sequence;
            return Ok(());
        }
        let back = self.highest - sequence;
        if back >= WINDOW {
            return Err(refused("it is too old"));
        }
        if self.is_seen(sequence) {
            return Err(refused("it was seen before"));
        }
        self.set(sequence, true);
        Ok(())
    }

    fn is_seen(&self, sequence: u64) -> bool {
        let (word, bit) = place(sequence);
        self.seen.get(word).is_some_and(|seen| seen & bit != 0)
    }

    fn set(&mut self, sequence: u64, is_seen: bool) {
        let (word, bit) = place(sequence);
        if let Some(seen) = self.seen.get_mut(word) {
            *seen = if is_seen { *seen | bit } else { *seen & !bit };
        }
    }
}

/// Returns the index of a number's word in the window, and its bit in the word.
fn place(sequence: u64) -> (usize, u64) {
    let within = sequence % WINDOW;
    (usize::try_from(within / 64).unwrap_or(WORDS), 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> SealContext {
        SealContext {
            method: "/s/Heartbeat".into(),
            sender: NodeId::parse("edge-1").unwrap(),
            audience: "c1".into(),
            session_id: SessionId::mint(),
            sequence: 1,
            issued_at_ms: 1_000_000,
            epoch: 1,
            token_sha256: [1; 32],
        }
    }

    fn expectation() -> SealExpectation<'static> {
        SealExpectation {
            method: "/s/Heartbeat",
            audiences: &["c1", "ctrl"],
            token_sha256: [1; 32],
            clock_offset_ms: 0,
            now_ms: 1_000_000,
        }
    }

    #[test]
    fn a_context_fits_only_its_own_call() {
        context().check(&expectation()).unwrap();
        let bad = [
            SealContext { method: "/s/Deregister".into(), ..context() },
            SealContext { audience: "c2".into(), ..context() },
            SealContext { token_sha256: [2; 32], ..context() },
        ];
        for context in bad {
            assert_eq!(context.check(&expectation()).unwrap_err().code(), ErrorCode::InvalidSignature);
        }
    }

    #[test]
    fn the_issue_time_is_corrected_by_the_measured_offset() {
        let ten_minutes_ahead = SealContext { issued_at_ms: 1_600_000, ..context() };
        assert_eq!(ten_minutes_ahead.check(&expectation()).unwrap_err().code(), ErrorCode::ClockSkew);
        let corrected = SealExpectation { clock_offset_ms: 600_000, ..expectation() };
        ten_minutes_ahead.check(&corrected).unwrap();
        let ancient = SealContext { issued_at_ms: i64::MIN, ..context() };
        assert_eq!(ancient.check(&corrected).unwrap_err().code(), ErrorCode::ClockSkew);
    }

    #[test]
    fn each_sequence_is_accepted_once_within_the_window() {
        let mut window = SequenceWindow::default();
        for sequence in [1, 3, 2, 10, 100, 99] {
            window.accept(sequence).unwrap();
        }
        window.accept(1100).unwrap();
        for again in [1, 2, 3, 10, 100, 99, 0, 76, 1100, u64::MAX, 1100 + (1 << 63)] {
            assert_eq!(window.accept(again).unwrap_err().code(), ErrorCode::NonceReplay, "{again}");
        }
        window.accept(77).unwrap();
        window.accept(1101).unwrap();
    }

    #[test]
    fn overtaken_numbers_within_the_window_are_taken_once() {
        // Large calls are overtaken by many small calls.
        let mut window = SequenceWindow::default();
        let (slow, fast): (Vec<u64>, Vec<u64>) = (1..=5000).partition(|number| number % 100 == 7);
        let mut waiting = slow.into_iter().peekable();
        for number in fast {
            window.accept(number).unwrap();
            while let Some(late) = waiting.next_if(|late| late + 900 <= number) {
                window.accept(late).unwrap();
                window.accept(late).unwrap_err();
            }
            window.accept(number).unwrap_err();
        }
    }
}
