//! Node ids as strangers write them.

use aegis_proto::aegis::cluster::v1 as pb;
use cluster_core::{
    controller::handle::TokenState,
    identity::NodeKey,
    types::{error::ErrorCode, node::Role},
};

use crate::support::{Cluster, Node, raw, reason, refused};

/// Each but for the long one looks like "edge-1", or like a path to it.
fn no_ids() -> Vec<String> {
    let mut ids: Vec<String> = [
        "",
        " ",
        "../",
        "../edge-1",
        "edge-1/../home",
        "edge-1\0",
        "\0",
        "edge-1\n",
        " edge-1",
        "edge-1 ",
        "edge-1.",
        "Edge-1",
        "EDGE-1",
        "-edge-1",
        "edge-1-",
        "edge_1",
        "*",
        // Cyrillic е, full width, a combining mark, a soft hyphen, a zero width space, another hyphen.
        "\u{435}dge-1",
        "\u{ff45}dge-1",
        "e\u{301}dge-1",
        "\u{e9}dge-1",
        "edge\u{ad}-1",
        "edge-1\u{200b}",
        "edge\u{2010}1",
        "\u{202e}1-egde",
    ]
    .map(str::to_owned)
    .into();
    ids.push("a".repeat(64));
    ids.push("a".repeat(10 * 1024));
    ids
}

#[tokio::test]
async fn what_is_no_node_id_is_refused_before_anything_is_spent_on_it() {
    let cluster = Cluster::start().await;
    let member = cluster.member("edge-1").await;
    let grant = cluster.token(None).await;
    let key = NodeKey::generate().unwrap();
    let mut rpc = raw(&cluster).await;
    for id in no_ids() {
        let ask = pb::AttestNodeRequest {
            node_id: id.clone(),
            role: pb::NodeRole::Worker.into(),
            public_key: key.public().as_bytes().to_vec(),
            enrolment_token: grant.token.to_string(),
            ..Default::default()
        };
        let status = rpc.attest_node(ask).await.unwrap_err();
        assert_eq!(reason(&status), "InvalidArgument", "{id:?}");
        assert!(status.message().len() < 1_000 && !status.message().contains(['\0', '\n']), "{status}");
        let answer = pb::ChallengeNodeRequest { node_id: id.clone(), ..Default::default() };
        let status = rpc.challenge_node(answer).await.unwrap_err();
        assert_eq!(reason(&status), "InvalidArgument", "{id:?}");
    }
    let tokens = cluster.core().enrolment_tokens().await.unwrap();
    let state = |id: &_| tokens.iter().find(|token| token.token_id == *id).unwrap().state;
    assert_eq!(state(&grant.token_id), TokenState::Open);
    let peers = cluster.core().peers(Default::default()).await.unwrap();
    assert_eq!(peers.len(), 1, "{peers:?}");
    drop(member);
}

#[tokio::test]
async fn ids_that_differ_by_one_byte_are_two_nodes() {
    let cluster = Cluster::start().await;
    cluster.member("edge-1").await;
    for near in ["edge-l", "edge-11", "edge1", "edge--1"] {
        let mut node = Node::new(&cluster, near, Role::Worker).await;
        assert_eq!(refused(node.attest(None).await), ErrorCode::EnrolmentInvalid, "{near}");
        let token = cluster.token(Some("edge-1")).await;
        assert_eq!(refused(node.attest(Some(&token.token)).await), ErrorCode::EnrolmentInvalid, "{near}");
    }
}
