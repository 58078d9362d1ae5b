//! Row 4: a placement decision with 10,000 nodes, under each strategy.

use std::time::{Duration, Instant};

use cluster_core::{
    controller::membership::{Change, Membership},
    types::{
        execution::manifest::PlacementRequest,
        ids::{ExecutionId, NodeId, Tag},
        node::{Capabilities, LinkKind, NodeRecord, Observed, Role},
        placement::PlacementStrategy,
        resources::Amounts,
    },
};

use super::{line, percentile};

const NODES: usize = 10_000;
const DECISIONS: usize = 10_000;
/// One node in this many has the preferred tag.
const PREFERRED_EVERY: usize = 100;

pub fn run() {
    use PlacementStrategy::{BinPack, LeastLoaded, RoundRobin, Spread};
    for (name, strategy, preferring) in [
        ("round_robin", RoundRobin, false),
        ("round_robin, a preferred tag", RoundRobin, true),
        ("least_loaded", LeastLoaded, false),
        ("bin_pack", BinPack, false),
        ("spread", Spread, false),
        ("spread, a preferred tag", Spread, true),
    ] {
        let times = measure(strategy, preferring);
        let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
        let ratio = p99.as_secs_f64() / 200e-6;
        line(
            "4",
            &format!("placement among 10,000 nodes, {name}, p99 (p50)"),
            &format!("{} µs ({} µs)", p99.as_micros(), p50.as_micros()),
            "goal 200 µs",
            &format!("{ratio:.2}"),
        );
    }
}

fn measure(strategy: PlacementStrategy, preferring: bool) -> Vec<Duration> {
    let tag = Tag::parse("fast").unwrap();
    let mut membership = Membership::default();
    membership.set_strategy(strategy);
    for number in 0..NODES {
        let id = NodeId::parse(format!("n{number}")).unwrap();
        let mut record = NodeRecord::expected(id, Role::Worker, [1; 32], LinkKind::Direct);
        record.observed = Observed::Active;
        let tags = if number % PREFERRED_EVERY == 0 { vec![tag.clone()] } else { Vec::new() };
        record.capabilities = Capabilities {
            total: Amounts { cpu_millicores: 64_000, memory_mb: 65_536, gpus: 0, vram_gb: 0 },
            engine: "docker 26".into(),
            tags,
            ..Default::default()
        };
        let id = record.node_id.clone();
        membership.apply(Change::Put(Box::new(record)), 0);
        membership.set_link(&id, true);
    }
    let amounts = Amounts { cpu_millicores: 1_000, memory_mb: 128, ..Default::default() };
    let preferred_tags = if preferring { vec![tag] } else { Vec::new() };
    let demand = PlacementRequest {
        tags: vec![],
        preferred_tags,
        node_id: None,
        amounts,
        wait_seconds: None,
        priority: 0,
    };
    let mut times = Vec::with_capacity(DECISIONS);
    for _ in 0..DECISIONS {
        let execution_id = ExecutionId::mint();
        let start = Instant::now();
        membership.place(&execution_id, &demand).unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    times
}
