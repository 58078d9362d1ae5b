//! Orders as a stand-in for a worker gets them, and a member that tells more events than any container writes.

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aegis_proto::aegis::{
    cluster::{
        v1 as pb,
        v1::node_cluster_service_server::{NodeClusterService, NodeClusterServiceServer},
    },
    runtime::{v1 as runtime, v1::execution_event::Event},
};
use cluster_core::{
    rpc::controller_client::AdvertisedAddress,
    types::{
        execution::{
            lifecycle::State,
            request::{ExecutionRequest, Submitter},
            view::{EventKind, EventView},
        },
        ids::{ExecutionId, NodeId},
        node::Role,
    },
};
use futures::{StreamExt as _, stream::BoxStream};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    stand_in::unserved,
    support::{Cluster, Node},
};

const CHUNKS: u64 = 200;
const CHUNK_BYTES: usize = 256 * 1024;
const BUDGET_BYTES: u64 = 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(60);
/// "answers a member within 1 s"
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Starts every order, and writes this many chunks.
#[derive(Clone)]
struct StandIn {
    chunks: u64,
    orders: Arc<Mutex<Vec<pb::ForwardExecutionInner>>>,
}

fn event(sequence: u64, attempt: u32, event: Event) -> runtime::ExecutionEvent {
    let time_ms = cluster_core::types::clock::now_ms();
    runtime::ExecutionEvent { event: Some(event), sequence, attempt, time_ms }
}

#[tonic::async_trait]
impl NodeClusterService for StandIn {
    type ForwardExecutionStream = BoxStream<'static, Result<runtime::ExecutionEvent, Status>>;
    type ConnectEdgeStream = BoxStream<'static, Result<pb::EdgeCommand, Status>>;

    async fn forward_execution(
        &self,
        request: Request<pb::ForwardExecutionRequest>,
    ) -> Result<Response<Self::ForwardExecutionStream>, Status> {
        let envelope = request.into_inner().envelope.expect("a sealed order");
        let order = pb::ForwardExecutionInner::decode(envelope.payload.as_slice()).expect("an order");
        self.orders.lock().unwrap().push(order.clone());
        let (execution_id, attempt, chunks) = (order.execution_id, order.attempt, self.chunks);
        let started = Event::ExecutionStarted(runtime::ExecutionStarted {
            execution_id: execution_id.clone(),
            ..Default::default()
        });
        let completed = Event::ExecutionCompleted(runtime::ExecutionCompleted {
            execution_id,
            exit_code: Some(0),
            ..Default::default()
        });
        let output = move |sequence| {
            let data = vec![b'x'; CHUNK_BYTES];
            let stream = runtime::OutputStream::Stdout.into();
            event(
                sequence,
                attempt,
                Event::Output(runtime::OutputChunk { stream, data, ..Default::default() }),
            )
        };
        let first = event(1, attempt, started);
        let last = event(chunks + 2, attempt, completed);
        let all = futures::stream::iter([first])
            .chain(futures::stream::iter((2..chunks + 2).map(output)))
            .chain(futures::stream::iter([last]));
        Ok(Response::new(all.skip(usize::try_from(order.after_sequence).unwrap()).map(Ok).boxed()))
    }

    unserved! {
        attest_node: pb::AttestNodeRequest => pb::AttestNodeResponse;
        challenge_node: pb::ChallengeNodeRequest => pb::ChallengeNodeResponse;
        register_node: pb::RegisterNodeRequest => pb::RegisterNodeResponse;
        heartbeat: pb::NodeHeartbeatRequest => pb::NodeHeartbeatResponse;
        deregister_node: pb::DeregisterNodeRequest => pb::DeregisterNodeResponse;
        route_execution: pb::RouteExecutionRequest => pb::RouteExecutionResponse;
        sync_config: pb::SyncConfigRequest => pb::SyncConfigResponse;
        push_config: pb::PushConfigRequest => pb::PushConfigResponse;
        list_peers: pb::ListPeersRequest => pb::ListPeersResponse;
        connect_edge: tonic::Streaming<pb::EdgeEvent> => Self::ConnectEdgeStream;
        rotate_edge_key: pb::RotateEdgeKeyRequest => pb::RotateEdgeKeyResponse;
        issue_enrollment_token: pb::IssueEnrollmentTokenRequest => pb::IssueEnrollmentTokenResponse;
    }
}

/// A member whose address is that of a stand-in.
async fn member_at(cluster: &Cluster, stand_in: &StandIn) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = NodeClusterServiceServer::new(stand_in.clone());
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let mut node = Node::new(cluster, "stand-in", Role::Worker).await;
    node.applicant.address = AdvertisedAddress::Fixed(address);
    let token = cluster.token(Some("stand-in")).await.token;
    node.join(Some(&token)).await.unwrap();
    node.beat().await.unwrap();
    node
}

async fn all_events(cluster: &Cluster, id: &ExecutionId) -> Vec<EventView> {
    let mut all: Vec<EventView> = Vec::new();
    loop {
        let after = all.last().map_or(0, |event| event.sequence);
        let more = cluster.core().execution_events(id, after, 100).await.unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

#[tokio::test]
async fn member_that_floods_events_fills_no_disk() {
    let cluster =
        Cluster::start_with("role: controller\n  runtime: {retention: {execution_events_mb: 1}}").await;
    let _flood = member_at(&cluster, &StandIn { chunks: CHUNKS, orders: Arc::default() }).await;
    let mut other = cluster.member("other").await;
    let request = ExecutionRequest {
        image: Some("busybox:testbed".into()),
        node_id: Some(NodeId::parse("stand-in").unwrap()),
        ..Default::default()
    };
    let id = cluster.core().submit(request, Submitter::this_process()).await.unwrap().execution_id;
    let ended = cluster.core().await_execution_end(&id, LIMIT);
    let mut ended = std::pin::pin!(ended);
    let mut slowest = Duration::ZERO;
    let view = loop {
        let asked = Instant::now();
        tokio::select! {
            view = &mut ended => break view.unwrap(),
            beat = async { other.beat().await } => {
                beat.unwrap();
                slowest = slowest.max(asked.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!("the slowest heartbeat of the other member took {slowest:?}");
    assert!(slowest < ANSWER_LIMIT, "{slowest:?}");
    assert_eq!((view.state, view.last_sequence), (State::Succeeded, CHUNKS + 2));

    let events = all_events(&cluster, &id).await;
    let bytes_of = |event: &EventView| match &event.kind {
        EventKind::Output { data, .. } => data.len() as u64,
        _ => 0,
    };
    let stored: u64 = events.iter().map(bytes_of).sum();
    assert!(stored <= BUDGET_BYTES, "{stored} bytes of output");
    let kinds: Vec<_> = events.iter().rev().take(3).map(|event| &event.kind).collect();
    assert!(matches!(kinds[0], EventKind::Completed { .. }), "{:?}", kinds[0]);
    assert!(matches!(kinds[1], EventKind::Gap { last, .. } if *last == CHUNKS + 1), "{:?}", kinds[1]);
    assert!(matches!(kinds[2], EventKind::Output { truncated: true, .. }), "the mark");
    let database = ["aegis.db", "aegis.db-wal"].map(|name| cluster.data().join(name));
    let on_disk: u64 = database.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
    assert!((BUDGET_BYTES..8 * BUDGET_BYTES).contains(&on_disk), "{on_disk} bytes on the disk");
    let metrics = cluster.core().metrics().await.unwrap();
    for counted in [
        r#"aegis_executions{state="running"} 0"#,
        r#"aegis_executions_ended_total{state="succeeded",code=""} 1"#,
        "aegis_execution_wait_seconds_count 1",
    ] {
        assert!(metrics.lines().any(|line| line == counted), "{counted} is not in\n{metrics}");
    }
    let problem = cluster.peer("stand-in").await.unwrap().problem.expect("it is shown");
    assert!(problem.message.contains(id.as_str()), "{problem:?}");
}

#[tokio::test]
async fn order_carries_the_login_of_its_images_registry() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "marker-login\n").unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    let cluster = Cluster::start_with(&format!(
        "role: controller\n  deploy: {{registries: {{r.example: {{username: puller, password: 'file:{}'}}}}}}",
        password.display()
    ))
    .await;
    let stand_in = StandIn { chunks: 0, orders: Arc::default() };
    let _node = member_at(&cluster, &stand_in).await;
    for image in ["r.example/x/agent:1", "busybox:testbed", "other.example/x/agent:1"] {
        let request = ExecutionRequest { image: Some(image.into()), queue: true, ..Default::default() };
        let id = cluster.core().submit(request, Submitter::this_process()).await.unwrap().execution_id;
        let view = cluster.core().await_execution_end(&id, LIMIT).await.unwrap();
        assert_eq!(view.state, State::Succeeded, "{:?}", view.failure);
        assert!(!serde_json::to_string(&view).unwrap().contains("marker-login"));
    }
    let orders = stand_in.orders.lock().unwrap();
    let logins: Vec<_> = orders.iter().map(|order| order.registry_login.clone()).collect();
    let login = pb::RegistryLogin { username: "puller".into(), password: "marker-login".into() };
    assert_eq!(logins, [Some(login), None, None]);
    assert!(!orders[0].manifest_json.contains("marker-login"));
}
