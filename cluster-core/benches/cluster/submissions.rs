//! Row 3: executions from their submission to their stored assignment, many at a time, through a
//! controller as it runs; beside the same rows written by the same store with nothing around it.
//!
//! There are no workers: nodes take connections and say nothing, so that what is handed to them waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cluster_core::{
    access::Identity,
    cluster::peer::Role,
    execution::{
        lifecycle::State,
        request::{ExecutionRequest, ResourceRequest, Submission, Submitter},
    },
    ids::{ExecutionId, NodeId},
    rpc::controller_client::OwnAddress,
    store::{DataDirectory, ExecutionWrite, NewExecution, Store, Write},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::net::TcpListener;

use super::{
    line,
    support::{Cluster, Node},
};

const SUBMISSIONS: usize = 8_000;
const SUBMITTERS: usize = 256;
/// Each has room for 80 of them.
const NODES: usize = 110;
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

pub async fn run() {
    let floor = store_alone().await;
    let cluster = Cluster::start().await;
    let address = mute().await;
    for number in 0..NODES {
        let name = format!("n{number}");
        let token = cluster.token(Some(&name)).await.token;
        let mut node = Node::new(&cluster, &name, Role::Worker).await;
        node.applicant.address = OwnAddress::Fixed(address.clone());
        node.join(Some(&token)).await.unwrap();
        node.beat().await.unwrap();
    }

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
    let took = start.elapsed().as_secs_f64();
    let ours = SUBMISSIONS as f64 / took;
    line(
        "3",
        &format!("durable placements, {SUBMITTERS} submitters"),
        &format!("{ours:.0}/s"),
        &format!("{floor:.0}/s the rows alone; goal 5000/s"),
        &format!("{:.2} of the floor; {:.2}", ours / floor, 5_000.0 / ours),
    );
    line(
        "",
        "  until the last was acknowledged",
        &format!("{:.2} s", acknowledged.as_secs_f64()),
        &format!("{took:.2} s until assigned"),
        "",
    );
}

/// One caller may not have all of them open.
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

/// What one execution takes of the store: one row made, then changed.
async fn store_alone() -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Arc::new(DataDirectory::own(directory.path()).unwrap())).await.unwrap();
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
    SUBMISSIONS as f64 / start.elapsed().as_secs_f64()
}

/// Where connections are taken, held, and never answered.
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
