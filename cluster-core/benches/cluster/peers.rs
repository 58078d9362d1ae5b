//! A page of `list_peers`, as the owner of the membership builds it, compared with the views of all nodes.

use std::time::{Duration, Instant};

use cluster_core::{
    controller::membership::{Change, Membership, PeerFilter},
    types::{
        ids::NodeId,
        node::{LinkKind, NodeRecord, Observed, Role},
    },
};

use super::{line, percentile};

const PAGE: usize = 20;
const CALLS: usize = 500;

pub fn run() {
    for nodes in [100, 1_000, 5_000] {
        let membership = membership(nodes);
        let ours = measure(|| {
            let page = membership.page(&PeerFilter::default(), None, PAGE, 0);
            assert_eq!((page.peers.len(), page.total), (PAGE, nodes));
        });
        let floor = measure(|| assert_eq!(membership.views(0).len(), nodes));
        line(
            "",
            &format!("page of {PAGE} nodes among {nodes}, p50"),
            &format!("{:.1} µs", ours.as_secs_f64() * 1e6),
            &format!("{:.1} µs for all views", floor.as_secs_f64() * 1e6),
            &format!("{:.3}", ours.as_secs_f64() / floor.as_secs_f64()),
        );
    }
}

fn measure(call: impl Fn()) -> Duration {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        call();
        times.push(start.elapsed());
    }
    times.sort();
    percentile(&times, 0.5)
}

fn membership(nodes: usize) -> Membership {
    let mut membership = Membership::default();
    for number in 0..nodes {
        let id = NodeId::parse(format!("n{number}")).unwrap();
        let mut record = NodeRecord::expected(id, Role::Worker, [1; 32], LinkKind::Direct);
        record.observed = Observed::Active;
        membership.apply(Change::Put(Box::new(record)), 0);
    }
    membership
}
