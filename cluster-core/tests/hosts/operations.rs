//! Operations on a host after its first deployment, and cancelled deployments.

use std::time::Duration;

use cluster_core::{
    deploy::{
        DeploymentRequest, DeploymentState, LogsAsked, NodeOrder, Removal, StepName, host::HostSession,
    },
    types::{
        error::ErrorCode,
        ids::{DeploymentId, NodeId},
        principal::Origin,
    },
};

use crate::{
    bench::{BASE, Bench, WAITS, bench},
    support::{BROKEN_NODE, GOOD_NODE, ends_when_told, host, run, stand_in_node},
};

/// Always answers its health check with an error.
const UNWELL_NODE: &str = concat!(
    ends_when_told!(),
    r#"
use std::{fs, io::{Read, Write}, net::TcpListener};
fn main() {
    end_when_told();
    if std::env::args().nth(1).as_deref() == Some("probe") { std::process::exit(1); }
    fs::write("/run/aegis/node.pub", "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap();
    for stream in TcpListener::bind("127.0.0.1:8090").unwrap().incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 503 Not Well\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
}
"#
);

fn tagged(bench: &Bench, tag: &str) -> DeploymentRequest {
    DeploymentRequest { tags: vec![tag.into()], identity: Some("edge-x".into()), ..bench.request() }
}

fn order() -> NodeOrder {
    NodeOrder { node: NodeId::parse("edge-x").unwrap(), lock_wait_seconds: None, idempotency_key: None }
}

async fn tag_on_host(bench: &Bench) -> String {
    let connection = bench.host.connect().await;
    run(&connection, r#"sed -n '/tags:/,/^  *[a-z]*:/p' "$1/aegis-config.yaml""#, &[BASE]).await
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn an_earlier_release_comes_back_and_five_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let mut ids = Vec::new();
    for tag in ["a", "b", "c", "d", "e", "f"] {
        let view = bench.deploy(&tagged(&bench, tag)).await;
        assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
        ids.push(view.deployment_id);
    }
    let releases = bench.deployments.releases(&order().node, Origin::Person).await.unwrap();
    assert_eq!(releases.len(), 5);
    assert!(releases.iter().all(|release| release.ready.as_ref().unwrap().images.len() == 1), "{releases:?}");

    let roll_back = async |to: Option<&DeploymentId>| {
        let view = bench.deployments.roll_back(order(), to.cloned(), Origin::Assistant).await.unwrap();
        bench.end_of(&view.deployment_id).await
    };
    let back = roll_back(None).await;
    assert_eq!(back.state, DeploymentState::Ready, "{:?}", back.failure);
    assert_eq!(back.release.as_ref(), Some(&ids[4]), "the newest before the current one");
    assert!(tag_on_host(&bench).await.contains("- e"), "{}", tag_on_host(&bench).await);
    // A second one goes further back, not forward to the release just left.
    let further = roll_back(None).await;
    assert_eq!(further.state, DeploymentState::Ready, "{:?}", further.failure);
    assert_eq!(further.release.as_ref(), Some(&ids[3]));
    let named = roll_back(Some(&ids[1])).await;
    assert_eq!(named.state, DeploymentState::Ready, "{:?}", named.failure);
    assert!(tag_on_host(&bench).await.contains("- b"));

    let gone = roll_back(Some(&ids[0])).await;
    let failure = gone.failure.unwrap();
    assert!(
        failure.message.contains("keeps no release") && failure.remedy.unwrap().contains(ids[3].as_str())
    );
    assert!(failure.message.contains("nothing was changed"), "{}", failure.message);
    // A failed deployment goes back to what was gone back to.
    let broken = stand_in_node(dir.path(), "broken", BROKEN_NODE);
    let failed = bench.upgraded(broken).deploy(&tagged(&bench, "g")).await;
    assert_eq!(failed.state, DeploymentState::RolledBack, "{:?}", failed.failure);
    let message = failed.failure.unwrap().message;
    assert!(message.contains(ids[1].as_str()) && message.contains("answers 200"), "{message}");
    assert!(tag_on_host(&bench).await.contains("- b"));
    bench.clean().await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_deployment_is_called_off_and_the_host_is_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let good = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    good.clean().await;
    let unwell = good.upgraded(stand_in_node(dir.path(), "unwell", UNWELL_NODE));
    let called_off = async |bench: &Bench, at: StepName| {
        let view = bench.deployments.start(&tagged(bench, "off"), Origin::Assistant).await.unwrap();
        let mut views = bench.deployments.watch(&view.deployment_id).await.unwrap();
        let running = |step: &cluster_core::deploy::StepView| step.name == at && step.started_at_ms.is_some();
        views.wait_for(|view| view.steps.iter().any(running)).await.unwrap();
        let noted = bench.deployments.cancel(&view.deployment_id).await.unwrap();
        assert!(noted.cancel_requested || noted.state.is_final(), "{noted:?}");
        bench.end_of(&view.deployment_id).await
    };
    let connection = good.host.connect().await;
    for step in [StepName::Connect, StepName::Images, StepName::Start, StepName::Health] {
        let ended = called_off(&unwell, step).await;
        assert_eq!(ended.state, DeploymentState::Cancelled, "{step}: {:?}", ended.failure);
        run(&connection, r#"[ ! -e "$1" ] && [ -z "$(docker ps -aq)" ]"#, &[BASE]).await;
    }
    let first = good.deploy(&tagged(&good, "a")).await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);
    let ended = called_off(&unwell, StepName::Health).await;
    assert_eq!(ended.state, DeploymentState::Cancelled, "{:?}", ended.failure);
    assert!(ended.failure.unwrap().message.contains("the previous release runs again"));
    assert!(tag_on_host(&good).await.contains("- a"));
    let late = good.deployments.cancel(&first.deployment_id).await.unwrap();
    assert_eq!(late.state, DeploymentState::Ready, "what has ended stays as it is");
    good.clean().await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn plan_is_carried_out_or_refused_after_wait_for_busy_host() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let plan = bench.deployments.plan(&tagged(&bench, "a"), Origin::Assistant).await.unwrap().plan;
    let planned =
        DeploymentRequest { plan_digest: Some(plan.digest[..12].to_owned()), ..tagged(&bench, "a") };

    // Somebody has the host; it is waited for, and the plan still holds.
    let connection = bench.host.connect().await;
    let theirs = DeploymentId::mint(2, 2);
    let held = HostSession { connection: &connection, base: BASE }
        .lock(&theirs, "another controller", Duration::ZERO)
        .await
        .unwrap();
    let waiting = DeploymentRequest { lock_wait_seconds: Some(60), ..planned.clone() };
    let view = bench.deployments.start(&waiting, Origin::Assistant).await.unwrap();
    let mut views = bench.deployments.watch(&view.deployment_id).await.unwrap();
    let uploading =
        |step: &cluster_core::deploy::StepView| step.name == StepName::Upload && step.started_at_ms.is_some();
    views.wait_for(|view| view.steps.iter().any(uploading)).await.unwrap();
    run(&bench.host.connect().await, WAITS, &[view.deployment_id.as_str()]).await;
    drop(held);
    let ended = bench.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Ready, "{:?}", ended.failure);
    assert_eq!(ended.plan_digest, Some(plan.digest.clone()));

    let stale = bench.deploy(&planned).await;
    let failure = stale.failure.unwrap();
    assert_eq!((stale.state, failure.code), (DeploymentState::Failed, ErrorCode::FailedPrecondition));
    assert!(failure.message.contains("redeployment of edge-x"), "it shows the new plan: {}", failure.message);
    bench.clean().await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn removal_takes_the_stack_and_volumes_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let connection = bench.host.connect().await;
    let removal = |volumes, seconds| Removal::new(volumes, Duration::from_secs(seconds), false).unwrap();
    let deployed = async || {
        let view = bench.deploy(&tagged(&bench, "a")).await;
        assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
    };
    deployed().await;
    let logs = LogsAsked::new(vec!["node".into()], Some(10), None).unwrap();
    let text = bench.deployments.logs(&order().node, &logs, Origin::Assistant).await.unwrap();
    assert!(text.contains("llm http://primary:8150") && !text.contains("[2K"), "{text}");
    let unknown = LogsAsked::new(vec!["nobody".into()], None, None).unwrap();
    assert!(bench.deployments.logs(&order().node, &unknown, Origin::Assistant).await.is_err());

    // Cancelled while work still runs there: the node is in service again, and its stack runs.
    let view = bench.deployments.remove(order(), removal(false, 3600), Origin::Assistant).await.unwrap();
    let mut views = bench.deployments.watch(&view.deployment_id).await.unwrap();
    let draining =
        |step: &cluster_core::deploy::StepView| step.name == StepName::Drain && step.started_at_ms.is_some();
    views.wait_for(|view| view.steps.iter().any(draining)).await.unwrap();
    bench.deployments.cancel(&view.deployment_id).await.unwrap();
    let ended = bench.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Cancelled, "{:?}", ended.failure);
    assert_eq!(*bench.cluster.resumed.lock().unwrap(), [order().node]);
    run(&connection, r#"docker ps --format '{{.Names}}' | grep -q node"#, &[]).await;

    let view = bench.deployments.remove(order(), removal(false, 0), Origin::Assistant).await.unwrap();
    let ended = bench.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Removed, "{:?}", ended.failure);
    let nothing =
        r#"[ ! -e "$1" ] && [ -z "$(docker ps -aq)" ] && [ -z "$(docker image ls -q aegis-node)" ]"#;
    run(&connection, nothing, &[BASE]).await;
    run(&connection, "docker volume inspect aitheros-edge_node_data >/dev/null", &[]).await;
    assert!(bench.cluster.admitted.lock().unwrap().is_empty());
    let unknown = bench.deployments.remove(order(), removal(false, 0), Origin::Assistant).await;
    assert_eq!(unknown.unwrap_err().code(), ErrorCode::NotFound);

    // Of a machine that is said to be gone nothing is asked, and nothing is done there.
    deployed().await;
    let gone = Removal::new(false, Duration::ZERO, true).unwrap();
    let view = bench.deployments.remove(order(), gone, Origin::Assistant).await.unwrap();
    let ended = bench.end_of(&view.deployment_id).await;
    assert_eq!(ended.state, DeploymentState::Removed, "{:?}", ended.failure);
    assert_eq!(
        ended.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
        [StepName::Plan, StepName::Drain, StepName::Forget]
    );
    run(&connection, r#"docker ps --format '{{.Names}}' | grep -q node"#, &[]).await;
    assert!(bench.cluster.admitted.lock().unwrap().is_empty());

    deployed().await;
    let refused = bench.deployments.remove(order(), removal(true, 0), Origin::Assistant).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Forbidden);
    let view = bench.deployments.remove(order(), removal(true, 0), Origin::Person).await.unwrap();
    assert_eq!(bench.end_of(&view.deployment_id).await.state, DeploymentState::Removed);
    run(&connection, "! docker volume inspect aitheros-edge_node_data >/dev/null 2>&1", &[]).await;
}
