//! Row 3: concurrent executions from submission to stored assignment, through a real controller. The floor is the same
//! rows written by the same store alone.
//!
//! There are no workers. Nodes accept connections and never answer, so that assigned executions wait.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cluster_core::{
    fs::DataDirectory,
    rpc::controller_client::AdvertisedAddress,
    store::{ExecutionWrite, Store, Write},
    types::{
        caller::Identity,
        execution::{
            lifecycle::State,
            record::NewExecution,
            request::{ExecutionRequest, ResourceRequest, Submission, Submitter},
        },
        ids::{ExecutionId, NodeId},
        node::Role,
    },
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::net::TcpListener;

use super::{
    line, percentile,
    support::{Cluster, Node},
};

/// Submissions of each round. Each round also measures the floor: shared machines change from second to second.
const SUBMISSIONS: usize = 1_600;
const ROUNDS: usize = 5;
const SUBMITTERS: usize = 256;
/// Each node has room for 80 executions.
const NODES: usize = 110;
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

pub async fn run() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Arc::new(DataDirectory::own(directory.path()).unwrap())).await.unwrap();
    let cluster = Cluster::start().await;
    let address = mute().await;
    for number in 0..NODES {
        let name = format!("n{number}");
        let token = cluster.token(Some(&name)).await.token;
        let mut node = Node::new(&cluster, &name, Role::Worker).await;
        node.applicant.address = AdvertisedAddress::Fixed(address.clone());
        node.join(Some(&token)).await.unwrap();
        node.beat().await.unwrap();
    }
    let (mut ours, mut floor, mut acknowledged) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floor.push(store_alone(&store).await);
        let (last_acknowledged, placed) = placements(&cluster).await;
        acknowledged.push(last_acknowledged);
        ours.push(placed);
    }
    for times in [&mut ours, &mut floor, &mut acknowledged] {
        times.sort();
    }
    let rate = |times: &[Duration]| SUBMISSIONS as f64 / percentile(times, 0.5).as_secs_f64();
    let (ours, floor, acknowledged) = (rate(&ours), rate(&floor), rate(&acknowledged));
    line(
        "3",
        &format!("durable placements, {SUBMITTERS} submitters"),
        &format!("{ours:.0}/s"),
        &format!("{floor:.0}/s the rows alone; goal 5000/s"),
        &format!("{:.2} of the floor; {:.2}", ours / floor, 5_000.0 / ours),
    );
    line("", "  acknowledged", &format!("{acknowledged:.0}/s"), "", "");
}

/// Returns the times until all are acknowledged, and until all are assigned.
async fn placements(cluster: &Cluster) -> (Duration, Duration) {
    let start = Instant::now();
    let submitting =
        stream::iter(0..SUBMISSIONS).map(|number| cluster.core().submit(request(), submitter(number)));
    let ids: Vec<ExecutionId> =
        submitting.buffer_unordered(SUBMITTERS).map_ok(|view| view.execution_id).try_collect().await.unwrap();
    let acknowledged = start.elapsed();
    for id in &ids {
        while cluster.core().execution(id).await.unwrap().state == State::Pending {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    (acknowledged, start.elapsed())
}

/// A single caller may not have all executions open.
fn submitter(number: usize) -> Submitter {
    let identity = Identity::LocalUser(if number.is_multiple_of(2) { 1 } else { 2 });
    Submitter { identity, ..Submitter::this_process() }
}

fn request() -> ExecutionRequest {
    ExecutionRequest {
        image: Some("busybox:testbed".into()),
        command: vec!["true".into()],
        resources: ResourceRequest { cpu: Some(0.05), memory_mb: Some(6), ..Default::default() },
        queue: true,
        ..Default::default()
    }
}

/// Writes the rows of as many executions: each is created, then assigned.
async fn store_alone(store: &Store) -> Duration {
    let node_id = NodeId::parse("n0").unwrap();
    let start = Instant::now();
    let writing = stream::iter(0..SUBMISSIONS).map(|_| {
        let (store, node_id) = (store.clone(), node_id.clone());
        async move {
            let submission = Submission::check(request()).unwrap();
            let new = NewExecution::new(submission, String::new(), String::new(), 0);
            let execution_id = new.record.execution_id.clone();
            let create = ExecutionWrite::Create(Box::new(new));
            assert_eq!(store.write(Write::Execution(create)).await.unwrap(), 1);
            let assign = ExecutionWrite::Assign { execution_id, node_id, attempt: 1 };
            assert_eq!(store.write(Write::Execution(assign)).await.unwrap(), 1);
        }
    });
    writing.buffer_unordered(SUBMITTERS).for_each(async |()| {}).await;
    start.elapsed()
}

/// Starts a listener that accepts connections, holds them, and never answers.
async fn mute() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    address
}
