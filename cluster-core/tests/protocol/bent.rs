//! Sealed calls whose context is bent: made with the node's own key, so that nothing but the context is wrong.

use std::time::Duration;

use aegis_proto::aegis::cluster::v1 as pb;
use cluster_core::types::clock::now_ms;
use prost::Message as _;
use tonic::Request;

use crate::support::{Cluster, Node, raw, reason, sealed_heartbeat};

type Heartbeat = Request<pb::NodeHeartbeatRequest>;

/// A heartbeat of this node whose context is changed before it is signed.
pub fn bent(node: &Node, change: impl FnOnce(&mut pb::SealContext)) -> Heartbeat {
    let mut call = sealed_heartbeat(node);
    let envelope = call.get_mut().envelope.as_mut().unwrap();
    let mut inner = pb::NodeHeartbeatInner::decode(envelope.payload.as_slice()).unwrap();
    change(inner.seal.as_mut().unwrap());
    envelope.payload = inner.encode_to_vec();
    envelope.signature = node.applicant.keys.current().sign(&envelope.payload).to_vec();
    call
}

fn numbered(node: &Node, sequence: u64) -> Heartbeat {
    bent(node, |context| context.sequence = sequence)
}

#[tokio::test]
async fn a_call_from_another_time_is_refused() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let mut rpc = raw(&cluster).await;
    let hour = Duration::from_secs(3_600).as_millis() as i64;
    for at in [0, 1, i64::MIN, i64::MAX, now_ms() - hour, now_ms() + hour] {
        let call = bent(&node, |context| context.issued_at_ms = at);
        assert_eq!(reason(&rpc.heartbeat(call).await.unwrap_err()), "ClockSkew", "{at}");
    }
    node.beat().await.expect("its own clock is as good as before");
}

#[tokio::test]
async fn wild_numbers_are_refused_and_leave_the_window() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let mut rpc = raw(&cluster).await;
    let captured = sealed_heartbeat(&node);
    let sequence_of = |call: &Heartbeat| {
        let envelope = call.get_ref().envelope.as_ref().unwrap();
        let inner = pb::NodeHeartbeatInner::decode(envelope.payload.as_slice()).unwrap();
        inner.seal.unwrap().sequence
    };
    let number = sequence_of(&captured);
    rpc.heartbeat(captured).await.unwrap();
    for wild in [u64::MAX, u64::MAX - 1, number + (1 << 63), 1 << 63, number + (1 << 33), 0] {
        let status = rpc.heartbeat(numbered(&node, wild)).await.unwrap_err();
        assert_eq!(reason(&status), "NonceReplay", "{wild}");
    }
    // What is counted as it should be is taken once, in order or not, and nothing twice.
    rpc.heartbeat(numbered(&node, number + 60)).await.unwrap();
    rpc.heartbeat(numbered(&node, number + 59)).await.unwrap();
    for seen in [number, number + 59, number + 60] {
        let status = rpc.heartbeat(numbered(&node, seen)).await.unwrap_err();
        assert_eq!(reason(&status), "NonceReplay", "{seen}");
    }
    rpc.heartbeat(numbered(&node, number + 60 + 1100)).await.unwrap();
    let status = rpc.heartbeat(numbered(&node, number + 61)).await.unwrap_err();
    assert_eq!(reason(&status), "NonceReplay", "too old to tell");
    node.join(None).await.expect("a new session counts anew");
    node.beat().await.unwrap();
}

#[tokio::test]
async fn a_call_for_another_life_of_the_controller_is_refused() {
    let mut cluster = Cluster::start().await;
    cluster.member("a").await;
    cluster.restart().await;
    let mut node = cluster.member("b").await;
    let mut rpc = raw(&cluster).await;
    for change in [-1, 1] {
        let call = bent(&node, |context| context.epoch = context.epoch.checked_add_signed(change).unwrap());
        assert_eq!(reason(&rpc.heartbeat(call).await.unwrap_err()), "SessionUnknown", "{change}");
    }
    for epoch in [0, u64::MAX] {
        let call = bent(&node, |context| context.epoch = epoch);
        assert_eq!(reason(&rpc.heartbeat(call).await.unwrap_err()), "SessionUnknown", "{epoch}");
    }
    node.beat().await.expect("nothing of that has ended its session");
}
