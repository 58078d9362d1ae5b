//! Orders per second that one worker accepts from its controller: sealed, sent, opened, written to the journal and
//! synced.
//!
//! The worker's engine never answers, so only the acceptance of orders is measured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use cluster_core::{
    rpc::{
        wire::{ByteStream, Connector},
        worker_client::WorkerClient,
    },
    types::{
        execution::{
            order::{Order, SecretEnv},
            request::{ExecutionRequest, Submission},
        },
        ids::ExecutionId,
    },
};
use futures::{StreamExt as _, stream};
use tokio::net::TcpStream;

use super::{
    line, percentile,
    served::{Forge, Served},
    support::Cluster,
};

/// Orders of each round.
const ORDERS: usize = 800;
const ROUNDS: usize = 3;
const AT_ONCE: usize = 256;

pub async fn run() {
    let cluster = Cluster::start().await;
    let served = Served::start(&cluster).await;
    let session = &served.session;
    let forge = Forge::of(&cluster, session);
    let sealer = forge.sealer(session, "a", session.sealer.session_id().clone(), session.epoch).await;
    let address = served.address.trim_start_matches("http://").to_owned();
    let dial: Connector = Arc::new(move || {
        let address = address.clone();
        Box::pin(async move {
            let connection = TcpStream::connect(address).await?;
            connection.set_nodelay(true)?;
            Ok(Box::new(connection) as Box<dyn ByteStream>)
        })
    });
    let (refused, mut times) = (AtomicUsize::new(0), Vec::new());
    for _ in 0..ROUNDS {
        // The events of an order are a stream, and a connection carries a bounded number of streams.
        let client = WorkerClient::new(session.controller_id.clone(), dial.clone());
        let begun = Instant::now();
        let sending = stream::iter(0..ORDERS).map(|_| async {
            match client.forward(&sealer, &order(), 0, None).await {
                Ok(events) => Some(events),
                Err(error) => {
                    if refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        eprintln!("the first refused order: {}", error.chain());
                    }
                    None
                }
            }
        });
        let events: Vec<_> = sending.buffer_unordered(AT_ONCE).collect().await;
        times.push(begun.elapsed());
        drop(events);
    }
    times.sort();
    let rate = ORDERS as f64 / percentile(&times, 0.5).as_secs_f64();
    line(
        "",
        &format!("orders taken by one worker, {AT_ONCE} at once"),
        &format!("{rate:.0}/s"),
        "goal 1000/s, none refused",
        &format!("{:.2}; {} refused", 1_000.0 / rate, refused.into_inner()),
    );
}

fn order() -> Order {
    let request = ExecutionRequest { image: Some("busybox:testbed".into()), ..Default::default() };
    let submission = Submission::check(request).unwrap();
    Order {
        execution_id: ExecutionId::mint(),
        attempt: 1,
        manifest: submission.manifest,
        input: submission.input,
        secrets: SecretEnv::default(),
        login: None,
    }
}
