//! Decides how many bytes a node may have on their way to the controller ([`Pace`]), and the controller to a node
//! ([`Uploads`]).
//!
//! Everything of a deployed node shares one SSH connection, and its sshd queues what it is given in the order in which
//! it came. Heartbeats and answers therefore wait behind all output that was sent before them. The controller bounds
//! that by the windows of its streams: one busy stream may have a second of the measured rate on its way, many
//! together less than two. A plain function of bytes and time; [`super::paced_channel`] measures and obeys.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Data that all busy streams may have on their way, as a time of the measured rate. A share is left for a stream that
/// begins, so that one alone has half of it. A round trip longer than that half would starve it.
const HORIZON: Duration = Duration::from_secs(2);
/// A rate is measured over so long, or until half of the budget has come.
const ROUND: Duration = Duration::from_secs(1);
/// One second of 64 kbit/s, the slowest link that is aimed at.
const BUDGET_BYTES_MIN: u32 = 8 * 1024;
/// One stream then fills a link of 80 Mbit/s with a round trip of 200 ms.
const BUDGET_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// The window of a stream on a connection of which nothing is known.
pub const WINDOW_BYTES_START: u32 = BUDGET_BYTES_MIN / 2;
/// Smallest window of a stream, however many there are: below it the frames are mostly headers.
const WINDOW_BYTES_MIN: u32 = 1024;
/// A stream that filled its window shares in the budget for so long: on a slow link others have their turn between.
const BUSY_FOR: Duration = Duration::from_secs(10);
/// After so long without data, what was measured says nothing about the link.
pub const IDLE_AFTER: Duration = Duration::from_secs(3);

/// The rate of one connection, measured in rounds, and its busy streams.
#[derive(Debug)]
pub struct Pace {
    /// Bytes that may be on their way, of all streams together.
    budget: u32,
    /// Window of each stream.
    window: u32,
    round: Option<Round>,
    streams: BTreeMap<u32, Usage>,
    last_at: Option<Instant>,
}

#[derive(Debug)]
struct Round {
    since: Instant,
    bytes: u64,
}

/// Data of one stream in the [`ROUND`] that began with `since`.
#[derive(Debug)]
struct Usage {
    since: Instant,
    bytes: u64,
    busy_at: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        let (budget, window) = (BUDGET_BYTES_MIN, WINDOW_BYTES_START);
        Self { budget, window, round: None, streams: BTreeMap::new(), last_at: None }
    }
}

impl Pace {
    /// Returns the window that each stream should have.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Takes note of data that was read from a stream.
    pub fn received(&mut self, stream: u32, bytes: usize, now: Instant) {
        let bytes = bytes as u64;
        self.last_at = Some(now);
        let joined = self.use_window(stream, bytes, now);
        let Some(round) = &mut self.round else {
            // How long this first piece took is not known.
            self.round = Some(Round { since: now, bytes: 0 });
            return;
        };
        round.bytes += bytes;
        let elapsed = now.duration_since(round.since);
        if round.bytes >= u64::from(self.budget / 2) || elapsed >= ROUND {
            self.budget = next_budget(self.budget, round.bytes, elapsed);
            *round = Round { since: now, bytes: 0 };
        } else if !joined {
            return;
        }
        let is_busy = |at: Instant| now.duration_since(at) < BUSY_FOR;
        let busy = self.streams.values().filter(|usage| usage.busy_at.is_some_and(is_busy)).count();
        let shares = u32::try_from(busy.max(1) + 1).unwrap_or(u32::MAX);
        self.window = (self.budget / shares).max(WINDOW_BYTES_MIN);
    }

    /// Takes note of a stream's use, and returns whether it has just become busy. One that trickles does not.
    fn use_window(&mut self, stream: u32, bytes: u64, now: Instant) -> bool {
        let usage = self.streams.entry(stream).or_insert(Usage { since: now, bytes: 0, busy_at: None });
        if now.duration_since(usage.since) >= ROUND {
            (usage.since, usage.bytes) = (now, 0);
        }
        usage.bytes += bytes;
        if usage.bytes < u64::from(self.window / 2) {
            return false;
        }
        usage.busy_at.replace(now).is_none()
    }

    /// Forgets a stream.
    pub fn ended(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    /// Begins again where no data has come for [`IDLE_AFTER`].
    pub fn idle(&mut self, now: Instant) {
        if self.last_at.is_none_or(|last| now.duration_since(last) >= IDLE_AFTER) {
            *self = Self::default();
        }
    }
}

/// Returns the bytes of one [`HORIZON`] at the measured rate; at most twice or half of what it was, since a single
/// round may be a burst or a pause.
fn next_budget(budget: u32, bytes: u64, elapsed: Duration) -> u32 {
    let measured = u128::from(bytes) * HORIZON.as_micros() / elapsed.as_micros().max(1);
    let measured = u32::try_from(measured).unwrap_or(u32::MAX);
    measured.clamp(budget / 2, budget.saturating_mul(2)).clamp(BUDGET_BYTES_MIN, BUDGET_BYTES_MAX)
}

/// The other direction: bytes of requests that the controller may have on their way to a node. They go in bursts, with
/// a ping after each. A ping may pass the burst before it, and comes behind the one before that.
#[derive(Debug)]
pub struct Uploads {
    burst: u32,
    /// The size was changed with the last burst, of which nothing is known yet.
    is_new: bool,
}

/// A burst grows while pings are answered within this time: it then takes twice as long at most.
const BURST_TIME_SHORT: Duration = Duration::from_millis(500);
/// A burst shrinks when a ping takes longer. The answer may wait behind output of the node for up to [`HORIZON`].
const BURST_TIME_LONG: Duration = Duration::from_secs(2);
const BURST_BYTES_MIN: u32 = 8 * 1024;
/// Size of the stream window that a worker announces.
const BURST_BYTES_MAX: u32 = 1024 * 1024;
/// A request that is smaller is sent at once.
pub const UNPACED_BYTES: usize = 8 * 1024;

impl Default for Uploads {
    fn default() -> Self {
        Self { burst: BURST_BYTES_MIN, is_new: true }
    }
}

impl Uploads {
    /// Returns the bytes that may be sent now.
    pub fn burst(&self) -> usize {
        self.burst as usize
    }

    /// Takes note of a ping that was answered after a burst. A burst that was not full says less of the link than of its
    /// sender.
    pub fn answered(&mut self, bytes: usize, took: Duration) {
        let may_grow = !std::mem::take(&mut self.is_new) && bytes >= self.burst();
        let next = match took {
            _ if took > BURST_TIME_LONG => self.burst / 2,
            _ if took < BURST_TIME_SHORT && may_grow => self.burst * 2,
            _ => return,
        };
        self.burst = next.clamp(BURST_BYTES_MIN, BURST_BYTES_MAX);
        self.is_new = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link with this rate in bytes per second, and a round trip. Streams always have data to send.
    struct Link {
        rate: f64,
        round_trip: Duration,
        now: Instant,
    }

    impl Link {
        fn new(kbit: f64, round_trip_ms: u64) -> Self {
            let round_trip = Duration::from_millis(round_trip_ms);
            Self { rate: kbit * 1000.0 / 8.0, round_trip, now: Instant::now() }
        }

        /// Sends full windows for `seconds`; returns the bytes that came.
        fn run(&mut self, pace: &mut Pace, streams: u32, seconds: u64) -> u64 {
            let (end, mut came) = (self.now + Duration::from_secs(seconds), 0);
            while self.now < end {
                let window = pace.window();
                let on_the_way = f64::from(window) * f64::from(streams);
                let taken = Duration::from_secs_f64(on_the_way / self.rate).max(self.round_trip);
                for stream in 0..streams {
                    self.now += taken / streams;
                    pace.received(stream, window as usize, self.now);
                    came += u64::from(window);
                }
            }
            came
        }
    }

    #[test]
    fn slow_link_has_one_second_on_its_way() {
        for (kbit, expected) in [(64.0, 8_000), (256.0, 32_000), (1000.0, 125_000)] {
            let (mut pace, mut link) = (Pace::default(), Link::new(kbit, 50));
            link.run(&mut pace, 1, 60);
            let window = f64::from(pace.window());
            assert!((window / f64::from(expected) - 1.0).abs() < 0.1, "{kbit} kbit/s: {window}");
        }
    }

    #[test]
    fn fast_link_gets_the_largest_window_within_rounds() {
        for (kbit, round_trip_ms) in [(1_000_000.0, 1), (1_000_000.0, 50), (100_000.0, 200)] {
            let (mut pace, mut link) = (Pace::default(), Link::new(kbit, round_trip_ms));
            link.run(&mut pace, 1, 5);
            assert_eq!(pace.window(), BUDGET_BYTES_MAX / 2, "{kbit} kbit/s, {round_trip_ms} ms");
        }
    }

    #[test]
    fn long_round_trip_does_not_starve_a_stream() {
        // Of a satellite: half of what the link carries is asked for, at least.
        let (mut pace, mut link) = (Pace::default(), Link::new(2_000.0, 600));
        link.run(&mut pace, 1, 30);
        let came = link.run(&mut pace, 1, 30);
        assert!(came > 30 * 125_000, "{came}");
    }

    #[test]
    fn streams_share_the_budget() {
        let (mut pace, mut link) = (Pace::default(), Link::new(1000.0, 50));
        link.run(&mut pace, 4, 60);
        let window = pace.window();
        assert!((45_000..55_000).contains(&window), "{window}");
        link.run(&mut pace, 100, 120);
        assert!((2_000..3_000).contains(&pace.window()), "{}", pace.window());
        (1..100).for_each(|stream| pace.ended(stream));
        link.run(&mut pace, 1, 60);
        let window = pace.window();
        assert!((115_000..135_000).contains(&window), "{window}");
    }

    #[test]
    fn many_streams_on_a_slow_link_all_go_on() {
        let (mut pace, mut link) = (Pace::default(), Link::new(64.0, 50));
        link.run(&mut pace, 100, 300);
        assert_eq!(pace.window(), WINDOW_BYTES_MIN);
    }

    #[test]
    fn trickling_streams_do_not_share() {
        let (mut pace, mut link) = (Pace::default(), Link::new(100_000.0, 10));
        for _ in 0..20 {
            for stream in 1..100 {
                pace.received(stream, 10, link.now);
            }
            link.run(&mut pace, 1, 1);
        }
        assert_eq!(pace.window(), BUDGET_BYTES_MAX / 2);
    }

    #[test]
    fn window_follows_a_link_that_becomes_slow() {
        let (mut pace, mut link) = (Pace::default(), Link::new(100_000.0, 10));
        link.run(&mut pace, 1, 5);
        link.rate = 8_000.0;
        link.run(&mut pace, 1, 600);
        assert!(pace.window() <= 9_000, "{}", pace.window());
    }

    #[test]
    fn trickle_and_silence_forget_a_fast_link() {
        let (mut pace, mut link) = (Pace::default(), Link::new(100_000.0, 10));
        link.run(&mut pace, 1, 5);
        for _ in 0..20 {
            link.now += ROUND;
            pace.received(1, 100, link.now);
        }
        assert_eq!(pace.window(), WINDOW_BYTES_START);
        link.run(&mut pace, 1, 5);
        pace.idle(link.now + IDLE_AFTER / 2);
        assert_eq!(pace.window(), BUDGET_BYTES_MAX / 2);
        pace.idle(link.now + IDLE_AFTER);
        assert_eq!(pace.window(), WINDOW_BYTES_START);
    }
}
