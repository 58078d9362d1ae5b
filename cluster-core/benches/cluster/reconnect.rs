//! Rows 8 and 14: a controller with 1,000 nodes starts again, and all of them come back.

use std::time::{Duration, Instant};

use cluster_core::types::error::{ErrorCode, Result};
use futures::{StreamExt as _, stream};

use super::{
    line, percentile,
    support::{Cluster, Node},
};

const NODES: usize = 1_000;
/// While they join for the first time, which is not what is measured.
const JOINING_AT_ONCE: usize = 16;

pub async fn run() {
    let mut cluster = Cluster::start().await;
    let empty = Instant::now();
    cluster.restart().await;
    line(
        "14",
        "controller starts, no nodes (with its stop)",
        &format!("{} ms", empty.elapsed().as_millis()),
        "goal 150 ms",
        &format!("{:.2}", empty.elapsed().as_secs_f64() / 0.15),
    );
    let joining = stream::iter(0..NODES).map(|number| {
        let cluster = &cluster;
        async move { cluster.member(&format!("n{number}")).await }
    });
    let mut nodes: Vec<Node> = joining.buffer_unordered(JOINING_AT_ONCE).collect().await;

    let restart = Instant::now();
    cluster.restart().await;
    line(
        "14",
        "controller starts, 1,000 nodes (with its stop)",
        &format!("{} ms", restart.elapsed().as_millis()),
        "goal 500 ms",
        &format!("{:.2}", restart.elapsed().as_secs_f64() / 0.5),
    );

    // All at once: real workers spread over their backoff.
    let start = Instant::now();
    let cluster = &cluster;
    let back = nodes.iter_mut().map(|node| async move {
        let mut again = 0;
        while let Err(error) = come_back(node, cluster).await {
            assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
            again += 1;
        }
        (start.elapsed(), again)
    });
    let (mut times, again): (Vec<_>, Vec<u32>) = futures::future::join_all(back).await.into_iter().unzip();
    times.sort();
    let all = *times.last().unwrap();
    let again: u32 = again.iter().sum();
    line("8", "  of these, tried again", &again.to_string(), "goal 0", "");
    line(
        "8",
        "1,000 workers attest and register at once (p50)",
        &format!("{:.2} s ({:.2} s)", all.as_secs_f64(), percentile(&times, 0.5).as_secs_f64()),
        "goal 10 s",
        &format!("{:.2}", all.as_secs_f64() / 10.0),
    );

    // The floor: what one core signs, one token each way for every node.
    let signed = signatures_per_second();
    let floor = Duration::from_secs_f64(2.0 * NODES as f64 / signed);
    line(
        "8",
        "  its token signatures alone, one core",
        &format!("{:.2} s", floor.as_secs_f64()),
        &format!("{signed:.0} RS256/s"),
        &format!("{:.1} of the above", all.as_secs_f64() / floor.as_secs_f64()),
    );
}

async fn come_back(node: &mut Node, cluster: &Cluster) -> Result<()> {
    node.reconnect(cluster).await;
    node.join(None).await?;
    node.beat().await.map(drop)
}

fn signatures_per_second() -> f64 {
    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::{KeyPair, KeySize},
        signature::RSA_PKCS1_SHA256,
    };
    const SIGNATURES: u32 = 500;
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    let start = Instant::now();
    for _ in 0..SIGNATURES {
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &[7; 900], &mut signature).unwrap();
    }
    f64::from(SIGNATURES) / start.elapsed().as_secs_f64()
}
