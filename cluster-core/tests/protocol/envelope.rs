//! Sealed calls as an attacker would modify them. Each is rejected before anything acts, with its reason, and counted.

use aegis_proto::aegis::cluster::v1 as pb;
use cluster_core::types::{
    error::ErrorCode,
    node::{PeerStatus, Role},
    node_event::NodeEventKind,
};
use tonic::Request;

use crate::support::{Cluster, Node, raw, reason, refused, sealed_heartbeat};

async fn count(cluster: &Cluster, call: &str, outcome: &str) -> u64 {
    let line = format!("aegis_cluster_calls_total{{call=\"{call}\",outcome=\"{outcome}\"}} ");
    let text = cluster.core().metrics().await.unwrap();
    text.lines().find_map(|known| known.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
}

/// Copies a call, as an eavesdropper would replay it.
fn replay<T: Clone>(request: &Request<T>) -> Request<T> {
    let mut copy = Request::new(request.get_ref().clone());
    *copy.metadata_mut() = request.metadata().clone();
    copy
}

#[tokio::test]
async fn the_same_bytes_again_are_a_replay() {
    let cluster = Cluster::start().await;
    let node = cluster.member("a").await;
    let mut rpc = raw(&cluster).await;
    let call = sealed_heartbeat(&node);
    rpc.heartbeat(replay(&call)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(reason(&rpc.heartbeat(replay(&call)).await.unwrap_err()), "NonceReplay");
    }
    assert_eq!(count(&cluster, "Heartbeat", "NonceReplay").await, 2);
    assert_eq!(count(&cluster, "Heartbeat", "ok").await, 1);
}

#[tokio::test]
async fn a_call_sealed_for_one_method_is_no_call_of_another() {
    let cluster = Cluster::start().await;
    let node = cluster.member("a").await;
    let mut rpc = raw(&cluster).await;
    let call = sealed_heartbeat(&node);
    let metadata = call.metadata().clone();
    let envelope = call.into_inner().envelope;
    let mut moved = Request::new(pb::DeregisterNodeRequest { envelope });
    *moved.metadata_mut() = metadata;
    assert_eq!(reason(&rpc.deregister_node(moved).await.unwrap_err()), "InvalidSignature");
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Active);
}

#[tokio::test]
async fn calls_without_a_proven_sender_are_refused() {
    let cluster = Cluster::start().await;
    let (node, other) = (cluster.member("a").await, cluster.member("b").await);
    let mut rpc = raw(&cluster).await;
    let good = sealed_heartbeat(&node);
    let expect = async |rpc: &mut _, call: Request<pb::NodeHeartbeatRequest>, why: &str, what: &str| {
        let rpc: &mut pb::node_cluster_service_client::NodeClusterServiceClient<_> = rpc;
        assert_eq!(reason(&rpc.heartbeat(call).await.unwrap_err()), why, "{what}");
    };

    let empty = Request::new(pb::NodeHeartbeatRequest { envelope: None });
    expect(&mut rpc, empty, "Unauthenticated", "no envelope").await;
    let bare = Request::new(good.get_ref().clone());
    expect(&mut rpc, bare, "Unauthenticated", "no token in the metadata").await;

    let edit = |change: &dyn Fn(&mut pb::SealNodeEnvelope)| {
        let mut call = replay(&good);
        change(call.get_mut().envelope.as_mut().unwrap());
        call
    };
    let stranger = sealed_heartbeat(&other).into_inner().envelope.unwrap();
    let call = edit(&|envelope| envelope.signature = vec![0; 64]);
    expect(&mut rpc, call, "InvalidSignature", "a made-up signature").await;
    let call = edit(&|envelope| envelope.signature.truncate(63));
    expect(&mut rpc, call, "InvalidSignature", "a short signature").await;
    let call = edit(&|envelope| envelope.payload.extend([0x18, 7]));
    expect(&mut rpc, call, "InvalidSignature", "a changed payload").await;
    let call = edit(&|envelope| envelope.payload = stranger.payload.clone());
    expect(&mut rpc, call, "SessionUnknown", "another node's payload").await;
    let call = edit(&|envelope| envelope.node_security_token = stranger.node_security_token.clone());
    expect(&mut rpc, call, "SessionUnknown", "another node's token").await;
    let call = edit(&|envelope| envelope.node_security_token.push('x'));
    expect(&mut rpc, call, "Unauthenticated", "a token changed at its end").await;
    let call = edit(&|envelope| envelope.node_security_token = "x".repeat(1_000_000));
    expect(&mut rpc, call, "Unauthenticated", "a token of a megabyte").await;
    rpc.heartbeat(good).await.expect("nothing of that has spent its number");
}

#[tokio::test]
async fn nothing_captured_before_a_restart_is_accepted_after_it() {
    let mut cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let captured = sealed_heartbeat(&node);
    cluster.restart().await;
    let mut rpc = raw(&cluster).await;
    assert_eq!(reason(&rpc.heartbeat(captured).await.unwrap_err()), "SessionUnknown");
    node.reconnect(&cluster).await;
    node.join(None).await.expect("its key is all that it needs");
    node.beat().await.unwrap();
}

#[tokio::test]
async fn a_removed_node_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let order = cluster_core::core::RemovalOrder { deadline: std::time::Duration::ZERO, force: false };
    cluster.core().remove(&node.applicant.node_id, order).await.unwrap();
    assert_eq!(refused(node.beat().await), ErrorCode::NodeRemoved);
    assert_eq!(refused(node.attest(None).await), ErrorCode::NodeRemoved);
    assert!(cluster.peer("a").await.is_none());
}

#[tokio::test]
async fn nodes_read_and_route_as_their_role_allows() {
    let cluster = Cluster::start().await;
    let (worker, hybrid) = (cluster.member("a").await, cluster.member_as("h", Role::Hybrid).await);
    let mut rpc = raw(&cluster).await;
    let list = async |rpc: &mut pb::node_cluster_service_client::NodeClusterServiceClient<_>,
                      node: &Node,
                      filter: Vec<i32>| {
        let inner = pb::ListPeersInner { filter_role: filter, ..Default::default() };
        let sealed = node.session().sealer.seal(inner, |e| pb::ListPeersRequest { envelope: Some(e) });
        let answer = rpc.list_peers(sealed.unwrap()).await.unwrap().into_inner();
        answer.nodes.into_iter().map(|node| node.node_id).collect::<Vec<_>>()
    };
    assert_eq!(list(&mut rpc, &worker, vec![]).await, ["a"], "a plain worker sees itself alone");
    assert_eq!(list(&mut rpc, &hybrid, vec![]).await, ["a", "h"]);
    assert_eq!(list(&mut rpc, &hybrid, vec![pb::NodeRole::Hybrid.into()]).await, ["h"]);

    let route = |node: &Node| {
        let inner = pb::RouteExecutionInner { preferred_tags: vec!["gpu".into()], ..Default::default() };
        node.session().sealer.seal(inner, |e| pb::RouteExecutionRequest { envelope: Some(e) }).unwrap()
    };
    assert_eq!(reason(&rpc.route_execution(route(&worker)).await.unwrap_err()), "NotYours");
    let routed = rpc.route_execution(route(&hybrid)).await.unwrap().into_inner();
    assert!(["a", "h"].contains(&routed.target_node_id.as_str()), "a preference is no condition");
    assert_eq!(routed.worker_grpc_address, format!("http://{}", cluster.node_address));

    let forward = pb::ForwardExecutionInner::default();
    let forward =
        hybrid.session().sealer.seal(forward, |e| pb::ForwardExecutionRequest { envelope: Some(e) });
    let status = rpc.forward_execution(forward.unwrap()).await.unwrap_err();
    assert_eq!(reason(&status), "NotYours", "a node forwards nothing to its controller");
    let edge = rpc.connect_edge(futures::stream::empty()).await.unwrap_err();
    assert!(reason(&edge) == "NotOffered" && edge.message().contains("ConnectEdge"));
}

#[tokio::test]
async fn a_newer_session_fences_and_two_that_alternate_raise_an_alarm() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let mut copy = node.copy(&cluster).await;
    copy.attest(None).await.unwrap();
    node.beat().await.expect("calls under way may finish");
    // The overlap's end is what is waited for.
    let overlap = std::time::Duration::from_millis(10_100);
    tokio::time::sleep(overlap).await;
    assert_eq!(refused(node.beat().await), ErrorCode::SessionUnknown);
    assert!(cluster.peer("a").await.unwrap().problem.is_none(), "a late call is no alarm");
    node.attest(None).await.unwrap();
    tokio::time::sleep(overlap).await;
    assert_eq!(refused(copy.beat().await), ErrorCode::SessionUnknown);
    let problem = cluster.peer("a").await.unwrap().problem.expect("an alarm");
    assert!(problem.message.contains("copy of the key"), "{}", problem.message);
    let alarms = cluster.events().into_iter().filter(|event| event.kind == NodeEventKind::NodeContended);
    assert_eq!(alarms.count(), 1);
}
