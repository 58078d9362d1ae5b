//! The cluster's figures, each with a floor that is measured in the same run: only ratios count.
//!
//! `cargo bench -p cluster-core --bench cluster`; it prints one line a figure. Nothing leaves loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "cluster/events.rs"]
mod events;
#[path = "cluster/heartbeats.rs"]
mod heartbeats;
#[path = "cluster/orders.rs"]
mod orders;
#[path = "cluster/peers.rs"]
mod peers;
#[path = "cluster/placement.rs"]
mod placement;
#[path = "cluster/reconnect.rs"]
mod reconnect;
#[path = "../tests/protocol/served.rs"]
#[allow(dead_code)]
mod served;
#[path = "cluster/submissions.rs"]
mod submissions;
#[path = "../tests/protocol/support.rs"]
#[allow(dead_code)]
mod support;

use std::time::Duration;

/// One line of the table.
pub fn line(row: &str, what: &str, ours: &str, floor: &str, ratio: &str) {
    println!("{row:>3} | {what:<46} | {ours:>16} | {floor:>30} | {ratio}");
}

/// The value below which this share of them lies.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let index = (sorted.len() as f64 * share) as usize;
    sorted[index.min(sorted.len() - 1)]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    line("row", "figure", "ours", "floor or goal", "ratio");
    if is_wanted("events") {
        events::run().await;
    }
    if is_wanted("submissions") {
        submissions::run().await;
    }
    if is_wanted("orders") {
        orders::run().await;
    }
    if is_wanted("placement") {
        placement::run();
    }
    if is_wanted("peers") {
        peers::run();
    }
    if is_wanted("heartbeats") {
        heartbeats::run().await;
    }
    if is_wanted("reconnect") {
        reconnect::run().await;
    }
}

/// Returns whether the figures of `name` are asked for: `cargo bench … -- NAME…` measures only those.
fn is_wanted(name: &str) -> bool {
    let mut names = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    names.peek().is_none() || names.any(|argument| argument == name)
}
