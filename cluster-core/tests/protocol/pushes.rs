//! Configuration on the wire: which callers may request it, and from whom a worker accepts it.

use std::time::Duration;

use aegis_proto::aegis::{
    agent::{v1 as agent, v1::worker_service_client::WorkerServiceClient},
    cluster::v1 as pb,
};
use cluster_core::{
    config::{self, layers::Scope},
    core::RemovalOrder,
    rpc::Sealer,
    types::{heartbeat::Command, ids::SessionId, node::Role},
};
use serde_json::json;

use crate::{
    served::{Forge, Served},
    support::{Cluster, Node, raw, reason},
};

const LIMIT: Duration = Duration::from_secs(10);

fn interval(seconds: u64) -> serde_json::Value {
    json!({"spec": {"cluster": {"heartbeat_interval_secs": seconds}}})
}

fn sync(node: &Node, of: &str, tenant: Option<&str>) -> tonic::Request<pb::SyncConfigRequest> {
    let inner = pb::SyncConfigInner {
        node_id: of.to_owned(),
        current_config_version: String::new(),
        tenant_id: tenant.map(str::to_owned),
        seal: None,
    };
    node.session().sealer.seal(inner, |e| pb::SyncConfigRequest { envelope: Some(e) }).unwrap()
}

#[tokio::test]
async fn a_node_reads_its_own_configuration_and_no_other() {
    let cluster = Cluster::start().await;
    let (node, other) = (cluster.member("a").await, cluster.member("b").await);
    let (a, b) = (&node.applicant.node_id, &other.applicant.node_id);
    let core = cluster.core();
    core.put_config_layer(Scope::Node(a.clone()), &interval(11), None).await.unwrap();
    core.put_config_layer("tenant/acme".parse().unwrap(), &interval(12), None).await.unwrap();
    core.assign_tenant(b, Some("acme".parse().unwrap())).await.unwrap();
    let mut rpc = raw(&cluster).await;
    for (of, tenant, what) in [
        ("b", None, "another node's"),
        ("home", None, "the controller's"),
        ("nobody", None, "that of a node that is none"),
        ("a", Some("acme"), "another tenant's"),
        ("a", Some("nobody"), "that of a tenant that is none"),
        ("b", Some("acme"), "another node's in its tenant"),
    ] {
        let status = rpc.sync_config(sync(&node, of, tenant)).await.unwrap_err();
        assert_eq!(reason(&status), "NotYours", "{what}");
        assert!(!status.message().contains("11"), "{status}");
    }
    let own = rpc.sync_config(sync(&node, "a", None)).await.unwrap().into_inner();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&own.config_delta).unwrap(), interval(11));
    let own = rpc.sync_config(sync(&other, "b", Some("acme"))).await.unwrap().into_inner();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&own.config_delta).unwrap(), interval(12));
}

#[tokio::test]
async fn a_push_that_waits_survives_the_controllers_restart() {
    let mut cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let layer = cluster.core().put_config_layer(Scope::Global, &interval(13), None).await.unwrap();
    let before = node.beat().await.unwrap();
    cluster.restart().await;
    node.reconnect(&cluster).await;
    node.join(None).await.unwrap();
    let after = node.beat().await.unwrap();
    let [(id, Command::PushConfig { version, body })] = after.as_slice() else { panic!("{after:?}") };
    assert_eq!(before, after, "the same id, and the body again");
    assert_eq!((version, body), (&layer.version, &interval(13).to_string().into_bytes()));
    assert!(node.beat_acknowledging(vec![id.clone()]).await.unwrap().is_empty());
}

#[tokio::test]
async fn next_bearer_of_a_name_gets_nothing_of_the_last() {
    let cluster = Cluster::start().await;
    let node = cluster.member("a").await;
    let id = node.applicant.node_id.clone();
    let core = cluster.core();
    core.put_config_layer(Scope::Node(id.clone()), &interval(11), None).await.unwrap();
    core.put_config_layer("tenant/acme".parse().unwrap(), &interval(12), None).await.unwrap();
    core.assign_tenant(&id, Some("acme".parse().unwrap())).await.unwrap();
    let order = RemovalOrder { deadline: LIMIT, force: true };
    core.remove(&id, order).await.unwrap();
    let other = cluster.member("a").await;
    let mut rpc = raw(&cluster).await;
    let got = rpc.sync_config(sync(&other, "a", None)).await.unwrap().into_inner();
    assert_eq!(got.config_delta, b"{}".to_vec());
    assert_eq!(reason(&rpc.sync_config(sync(&other, "a", Some("acme"))).await.unwrap_err()), "NotYours");
}

#[tokio::test]
async fn layers_that_no_node_could_merge_are_refused() {
    let cluster = Cluster::start().await;
    let node = cluster.member("a").await;
    let scope = Scope::Node(node.applicant.node_id.clone());
    let large = |key: &str| json!({"metadata": {"labels": {key: "x".repeat(150 * 1024)}}});
    cluster.core().put_config_layer(Scope::Global, &large("one"), None).await.unwrap();
    let refused = cluster.core().put_config_layer(scope.clone(), &large("two"), None).await.unwrap_err();
    assert!(refused.message().contains('a') && refused.message().contains("bytes"), "{refused}");
    cluster.core().put_config_layer(scope, &large("one"), None).await.unwrap();
}

#[tokio::test]
async fn a_push_to_the_controller_is_refused() {
    let cluster = Cluster::start().await;
    let (worker, hybrid) = (cluster.member("a").await, cluster.member_as("h", Role::Hybrid).await);
    let mut rpc = raw(&cluster).await;
    for (node, target) in [(&worker, "home"), (&worker, "h"), (&hybrid, "home"), (&hybrid, "a")] {
        let call = push(&node.session().sealer, target, 14);
        assert_eq!(reason(&rpc.push_config(call).await.unwrap_err()), "NotYours", "{target}");
    }
    let bare = pb::PushConfigRequest { envelope: None };
    assert_eq!(reason(&rpc.push_config(bare).await.unwrap_err()), "Unauthenticated");
}

fn push(sealer: &Sealer, target: &str, seconds: u64) -> tonic::Request<pb::PushConfigRequest> {
    let merged = config::layers::MergedConfig::of([&interval(seconds)]);
    let inner = pb::PushConfigInner {
        target_node_id: target.to_owned(),
        config_version: merged.version,
        config_payload: merged.json.to_string().into_bytes(),
        seal: None,
    };
    sealer.seal(inner, |e| pb::PushConfigRequest { envelope: Some(e) }).unwrap()
}

#[tokio::test]
async fn a_worker_takes_its_configuration_from_its_controller_alone() {
    let cluster = Cluster::start().await;
    let served = Served::start(&cluster).await;
    let mut configured = served.applied.watch();
    let layer = cluster.core().put_config_layer(Scope::Global, &interval(15), None).await.unwrap();
    tokio::time::timeout(LIMIT, configured.changed()).await.expect("it is pushed").unwrap();
    assert_eq!(served.version(), layer.version);

    let (worker, hybrid) = (cluster.member("b").await, cluster.member_as("h", Role::Hybrid).await);
    let elsewhere = Cluster::start().await;
    let stranger = elsewhere.member("a").await;
    let mut rpc = served.raw().await;
    for (sealer, why, what) in [
        (&worker.session().sealer, "NotYours", "another worker"),
        (&hybrid.session().sealer, "NotYours", "a hybrid, which is no controller of this node"),
        (&served.session.sealer, "NotYours", "the node itself"),
        (&stranger.session().sealer, "Unauthenticated", "a member of another cluster"),
    ] {
        let status = rpc.push_config(push(sealer, "a", 16)).await.unwrap_err();
        assert_eq!(reason(&status), why, "{what}");
    }
    let bare = pb::PushConfigRequest { envelope: None };
    assert_eq!(reason(&rpc.push_config(bare).await.unwrap_err()), "Unauthenticated");
    assert_eq!(served.version(), layer.version, "it runs what it ran");
}

#[tokio::test]
async fn worker_rejects_calls_of_earlier_epochs_and_for_other_nodes() {
    let mut cluster = Cluster::start().await;
    cluster.restart().await;
    let served = Served::start(&cluster).await;
    let forge = Forge::of(&cluster, &served.session);
    let mut rpc = served.raw().await;
    let current = || served.session.sealer.session_id().clone();
    let epoch = served.session.epoch;
    let good = forge.sealer(&served.session, "a", current(), epoch).await;
    assert!(rpc.push_config(push(&good, "a", 17)).await.unwrap().into_inner().accepted);
    let version = served.version();

    let elsewhere = push(&good, "b", 18);
    assert_eq!(reason(&rpc.push_config(elsewhere).await.unwrap_err()), "NotYours");
    let older = forge.sealer(&served.session, "a", current(), epoch - 1).await;
    assert_eq!(reason(&rpc.push_config(push(&older, "a", 18)).await.unwrap_err()), "Fenced");
    let mut worker = WorkerServiceClient::connect(served.address.clone()).await.unwrap();
    let nudge = |sealer: &Sealer| {
        let inner = agent::NudgeInner { seal: None };
        sealer.seal(inner, |e| agent::NudgeRequest { envelope: Some(e) }).unwrap()
    };
    assert_eq!(reason(&worker.nudge(nudge(&older)).await.unwrap_err()), "Fenced");
    let misled = forge.sealer(&served.session, "b", current(), epoch).await;
    assert_eq!(reason(&worker.nudge(nudge(&misled)).await.unwrap_err()), "InvalidSignature");
    let lost = forge.sealer(&served.session, "a", SessionId::mint(), epoch).await;
    assert_eq!(reason(&worker.nudge(nudge(&lost)).await.unwrap_err()), "SessionUnknown");
    let again = rpc.push_config(push(&good, "a", 17)).await.unwrap().into_inner();
    assert!(again.accepted, "the controller of now is heard as before");
    assert_eq!(served.version(), version);
}
