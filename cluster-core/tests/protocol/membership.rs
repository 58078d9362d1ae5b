//! Membership over the wire: commands, goodbyes, removals, and the events that tell of them.

use cluster_core::{
    config::endpoint::Endpoint,
    core::{DrainOrder, RemovalOrder},
    rpc::{controller_client::ControllerClient, controller_line::LinkTls},
    types::{
        error::ErrorCode,
        heartbeat::Command,
        node::{DrainState, LinkKind, OnDeadline, PeerStatus, Role},
        node_event::NodeEventKind::{self, *},
    },
};

use crate::support::{Cluster, Node, refused};

const DRAIN: DrainOrder =
    DrainOrder { deadline: std::time::Duration::from_secs(60), on_deadline: OnDeadline::Cancel };

fn kinds(cluster: &Cluster, node: &str) -> Vec<NodeEventKind> {
    let events = cluster.events().into_iter();
    events.filter(|event| event.node_id.as_str() == node).map(|event| event.kind).collect()
}

#[tokio::test]
async fn the_events_tell_a_nodes_story() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    cluster.core().drain(&id, DRAIN).await.unwrap();
    cluster.core().resume(&id).await.unwrap();
    let (client, session) = (&mut node.client, node.session.as_ref().unwrap());
    client.goodbye(session, &id, "a reboot").await.unwrap();
    node.join(None).await.unwrap();
    cluster.core().remove(&id, RemovalOrder { deadline: DRAIN.deadline, force: false }).await.unwrap();
    assert_eq!(
        kinds(&cluster, "a"),
        [NodeJoined, NodeDraining, NodeResumed, NodeOffline, NodeRecovered, NodeRemoved]
    );
    let text = cluster.core().metrics().await.unwrap();
    assert!(text.contains("aegis_nodes{status=\"active\"} 0"), "{text}");
}

#[tokio::test]
async fn silence_is_told_and_the_next_heartbeat_heals_by_itself() {
    let cluster = Cluster::start_with(
        "role: controller\n    heartbeat_interval_secs: 1\n    stale_threshold_secs: 1\n    sweep_interval_secs: 1",
    )
    .await;
    let mut node = cluster.member("a").await;
    node.interval = std::time::Duration::from_secs(1);
    node.beat().await.unwrap();
    let events = cluster.core().await_node_event(
        cluster.events().last().unwrap().id.parse().unwrap(),
        std::time::Duration::from_secs(10),
    );
    events.await.unwrap();
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Unhealthy);
    node.beat().await.unwrap();
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Active);
    assert_eq!(kinds(&cluster, "a"), [NodeJoined, NodeUnhealthy, NodeRecovered]);
}

#[tokio::test]
async fn command_is_repeated_over_restarts_until_acknowledged() {
    let mut cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    cluster.core().drain(&id, DRAIN).await.unwrap();
    cluster.core().shut_down_node(&id).await.unwrap();
    cluster.core().shut_down_node(&id).await.unwrap();
    let given = node.beat().await.unwrap();
    let commands: Vec<_> = given.iter().map(|(_, command)| command.clone()).collect();
    assert_eq!(commands, [Command::Drain, Command::Shutdown], "ordered twice is once");
    cluster.restart().await;
    node.reconnect(&cluster).await;
    node.join(None).await.unwrap();
    assert_eq!(node.beat().await.unwrap(), given, "the same ids");
    let acknowledged = vec![given[0].0.clone(), given[1].0.clone()];
    node.draining = true;
    assert!(node.beat_acknowledging(acknowledged.clone()).await.unwrap().is_empty());
    assert!(node.beat_acknowledging(acknowledged).await.unwrap().is_empty());
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Draining, "the drain itself stays");
    // A node that has forgotten it is told again.
    node.draining = false;
    let again = node.beat().await.unwrap();
    assert!(matches!(again.as_slice(), [(_, Command::Drain)]), "{again:?}");
}

#[tokio::test]
async fn the_published_port_serves_the_same_calls() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cluster = Cluster::start_with(&format!("role: controller\n  network: {{grpc_port: {free}}}")).await;
    let token = cluster.token(Some("a")).await.token;
    let mut node = Node::new(&cluster, "a", Role::Worker).await;
    let published = format!("http://127.0.0.1:{free}").parse().unwrap();
    node.client = ControllerClient::connect(&Endpoint::Http(published), &LinkTls::Off).await.unwrap();
    node.join(Some(&token)).await.unwrap();
    node.beat().await.unwrap();
}

#[tokio::test]
async fn a_node_cannot_acknowledge_another_nodes_commands() {
    let cluster = Cluster::start().await;
    let (mut node, mut other) = (cluster.member("a").await, cluster.member("b").await);
    cluster.core().drain(&node.applicant.node_id, DRAIN).await.unwrap();
    let given = node.beat().await.unwrap();
    other.beat_acknowledging(vec![given[0].0.clone()]).await.unwrap();
    assert_eq!(node.beat().await.unwrap(), given);
}

#[tokio::test]
async fn a_goodbye_keeps_the_key_and_leaving_does_not() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    assert_eq!(cluster.peer("a").await.unwrap().link, LinkKind::Direct);
    node.client.goodbye(node.session.as_ref().unwrap(), &id, "a reboot").await.unwrap();
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Offline);
    node.join(None).await.unwrap();
    assert!(node.client.leave(node.session.as_ref().unwrap(), &id, "for good").await.unwrap());
    assert!(cluster.peer("a").await.is_none());
    assert_eq!(refused(node.join(None).await), ErrorCode::NodeRemoved);
    let token = cluster.token(Some("a")).await.token;
    assert_eq!(refused(node.join(Some(&token)).await), ErrorCode::NodeRemoved, "its key was revoked");
    let mut again = Node::new(&cluster, "a", Role::Worker).await;
    again.join(Some(&token)).await.expect("a new enrolment brings it back, with a new key");
    assert_eq!(kinds(&cluster, "a").last(), Some(&NodeJoined));
}

#[tokio::test]
async fn revoked_keys_outlive_the_controller() {
    let mut cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    cluster
        .core()
        .remove(&id, RemovalOrder { deadline: std::time::Duration::ZERO, force: false })
        .await
        .unwrap();
    cluster.restart().await;
    node.reconnect(&cluster).await;
    for bound in [Some("a"), None] {
        let token = cluster.token(bound).await.token;
        assert_eq!(refused(node.join(Some(&token)).await), ErrorCode::NodeRemoved);
    }
}

#[tokio::test]
async fn drain_survives_registration_and_controller_restart() {
    let mut cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    cluster.core().drain(&id, DRAIN).await.unwrap();
    node.join(None).await.unwrap();
    cluster.restart().await;
    node.reconnect(&cluster).await;
    node.join(None).await.unwrap();
    assert_eq!(cluster.core().drain_status(&id).await.unwrap().state, DrainState::Drained);
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Draining);
}

#[tokio::test]
async fn drain_is_sent_until_the_node_acknowledges() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    cluster.core().drain(&id, DRAIN).await.unwrap();
    let given = node.beat().await.unwrap();
    assert!(matches!(given.as_slice(), [(_, Command::Drain)]), "{given:?}");
    for _ in 0..3 {
        assert_eq!(node.beat().await.unwrap(), given, "the same until it is acknowledged");
    }
    node.draining = true;
    assert_eq!(node.beat().await.unwrap(), given, "doing it is not saying so");
    assert!(node.beat_acknowledging(vec![given[0].0.clone()]).await.unwrap().is_empty());
    for _ in 0..3 {
        assert!(node.beat().await.unwrap().is_empty());
    }
    let view = cluster.core().drain_status(&id).await.unwrap();
    assert_eq!((view.state, view.acknowledged), (DrainState::Drained, true));
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Draining);
}
