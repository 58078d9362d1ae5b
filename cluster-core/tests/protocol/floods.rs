//! Callers without credentials that open, send and ask much, and members that call too often: what is left for
//! the others.

use std::{net::SocketAddr, time::Duration};

use aegis_proto::aegis::cluster::v1 as pb;
use cluster_core::types::{error::ErrorCode, execution::order::Held, ids::ExecutionId, node::Role};
use futures::future::join_all;
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinSet};

use crate::support::{Cluster, Node, raw, sealed_heartbeat_with, url_of};

const LIMIT: Duration = Duration::from_secs(20);
/// Unproven connections that one address may hold.
const SHARE: usize = 128;

fn address(cluster: &Cluster) -> SocketAddr {
    url_of(cluster).socket_addrs(|| None).unwrap()[0]
}

/// Connections that say nothing; a task each resolves when the controller closes it.
async fn idle(cluster: &Cluster, count: usize) -> JoinSet<()> {
    let address = address(cluster);
    let mut open = JoinSet::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        open.spawn(async move {
            let mut buffer = [0; 256];
            while let Ok(1..) = stream.read(&mut buffer).await {}
        });
    }
    open
}

/// Joins as a worker does: a connection that the flood pushed out before it was proven is opened again.
async fn join(cluster: &Cluster, name: &str) -> Node {
    let token = cluster.token_for(Role::Worker, Some(name)).await.token;
    let mut node = Node::new(cluster, name, Role::Worker).await;
    let joined = async {
        while let Err(error) = node.join(Some(&token)).await {
            assert_eq!(error.code(), ErrorCode::Unavailable, "{name}: {error}");
        }
    };
    tokio::time::timeout(LIMIT, joined).await.expect("it joins in time");
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_make_way_for_members() {
    let cluster = Cluster::start().await;
    let mut settled = cluster.member("settled").await;
    let mut open = idle(&cluster, 500).await;
    for _ in 0..500 - SHARE {
        let closed = tokio::time::timeout(LIMIT, open.join_next()).await;
        closed.expect("the oldest are closed").unwrap().unwrap();
    }
    // More come while others join.
    let flood = async {
        let mut waves = Vec::new();
        for _ in 0..20 {
            waves.push(idle(&cluster, 20).await);
        }
        waves
    };
    let joining = join_all((0..10).map(|number| {
        let cluster = &cluster;
        async move { join(cluster, &format!("n{number}")).await }
    }));
    let (_waves, mut members) = tokio::join!(flood, joining);
    settled.beat().await.unwrap();
    for member in &mut members {
        member.beat().await.unwrap();
    }
}

#[tokio::test]
async fn large_calls_are_for_members_alone() {
    let cluster = Cluster::start().await;
    let models = vec!["m".repeat(1_000); 100];
    let attestation = pb::AttestNodeRequest {
        node_id: "a".into(),
        capabilities: Some(pb::NodeCapabilities { models, ..Default::default() }),
        ..Default::default()
    };
    assert!(prost::Message::encoded_len(&attestation) > 64 * 1024);
    let mut rpc = raw(&cluster).await;
    let status = rpc.attest_node(attestation).await.unwrap_err();
    assert!(status.message().contains("length limit"), "{status}");
    let text = cluster.core().metrics().await.unwrap();
    assert!(!text.contains("call=\"AttestNode\""), "it has not come so far: {text}");

    let node = cluster.member("a").await;
    let held = |_| Held { execution_id: ExecutionId::mint(), attempt: 1, last_sequence: 1, gpus: Vec::new() };
    let many: Vec<_> = (0..4_000).map(held).collect();
    let heartbeat = sealed_heartbeat_with(&node, &many);
    assert!(prost::Message::encoded_len(heartbeat.get_ref()) > 64 * 1024);
    rpc.heartbeat(heartbeat).await.unwrap();
}

#[tokio::test]
async fn member_that_calls_too_often_is_refused_alone() {
    let cluster = Cluster::start().await;
    let (mut noisy, mut quiet) = (cluster.member("noisy").await, cluster.member("quiet").await);
    let mut refusal = None;
    for _ in 0..2_000 {
        refusal = noisy.beat().await.err();
        if refusal.is_some() {
            break;
        }
    }
    assert_eq!(refusal.expect("it has a budget").code(), ErrorCode::ResourceExhausted);
    quiet.beat().await.unwrap();
    let mut newcomer = Node::new(&cluster, "new", Role::Worker).await;
    let token = cluster.token(Some("new")).await.token;
    newcomer.join(Some(&token)).await.unwrap();
}
