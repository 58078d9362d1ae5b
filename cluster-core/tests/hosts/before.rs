//! Hosts with a stack of another owner, and with files that were edited by hand.

use std::sync::Arc;

use cluster_core::{
    deploy::{DeploySettings, DeploymentRequest, DeploymentState, DeploymentView, DriftKind, StepName},
    types::principal::Origin,
};

use crate::{
    bench::{BASE, Bench, bench, with_settings},
    support::{BROKEN_NODE, GOOD_NODE, StandInCluster, host, run, stand_in_node},
};

const THEIRS: &str = "/srv/comet";

/// Starts a stack under the project's name from a directory that is not ours.
const START_THEIRS: &str = r#"
mkdir -p "$1" && cd "$1" || exit 1
printf 'services:\n  web:\n    image: busybox:testbed\n    init: true\n    command: [sleep, "1000000"]\n' > docker-compose.yml
docker compose -p aitheros-edge up -d 2>&1
"#;
const REMOVE_THEIRS: &str = r#"cd "$1" && docker compose -p aitheros-edge down -t 0 2>&1; rm -rf -- "$1""#;
const WEB: &str = r#"docker ps --no-trunc --format '{{.ID}}' --filter label=com.docker.compose.project=aitheros-edge \
  --filter label=com.docker.compose.service=web"#;

async fn by_a_person(bench: &Bench, take_over: bool) -> DeploymentView {
    let request = DeploymentRequest { take_over, ..bench.request() };
    let view = bench.deployments.start(&request, Origin::Person).await.unwrap();
    bench.end_of(&view.deployment_id).await
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn foreign_stack_survives_deployments_that_fail() {
    let dir = tempfile::tempdir().unwrap();
    let good = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    good.clean().await;
    let root = good.host.connect().await;
    run(&root, START_THEIRS, &[THEIRS]).await;
    let web = run(&root, WEB, &[]).await;
    assert_eq!(web.lines().count(), 1);

    let plan = good.deployments.plan(&good.request(), Origin::Assistant).await.unwrap();
    let found = plan.findings.iter().find(|finding| finding.code == "foreign_stack").unwrap();
    assert!(!plan.can_deploy && found.message.contains(THEIRS), "{found}");
    let refused = by_a_person(&good, false).await;
    assert_eq!(refused.state, DeploymentState::Failed);
    assert!(refused.failure.unwrap().message.contains("nothing was changed"));
    assert_eq!(run(&root, WEB, &[]).await, web);

    // Cancelled before anything is started: the very same container runs.
    let broken = good.upgraded(stand_in_node(dir.path(), "broken", BROKEN_NODE));
    let request = DeploymentRequest { take_over: true, ..broken.request() };
    let view = broken.deployments.start(&request, Origin::Person).await.unwrap();
    let mut views = broken.deployments.watch(&view.deployment_id).await.unwrap();
    let at_images = |view: &DeploymentView| view.step_has_begun(StepName::Images);
    views.wait_for(at_images).await.unwrap();
    broken.deployments.cancel(&view.deployment_id).await.unwrap();
    let cancelled = broken.end_of(&view.deployment_id).await;
    assert_eq!(cancelled.state, DeploymentState::Cancelled, "{:?}", cancelled.failure);
    if !cancelled.step_has_begun(StepName::Start) {
        assert_eq!(run(&root, WEB, &[]).await, web);
    }
    run(&root, r#"[ ! -e "$1" ]"#, &[BASE]).await;

    // One that gets as far as to replace it gives it back.
    let failed = by_a_person(&broken, true).await;
    assert_eq!(failed.state, DeploymentState::Failed, "{:?}", failed.failure);
    let message = failed.failure.unwrap().message;
    assert!(message.contains("was started again"), "{message}");
    assert_eq!(run(&root, WEB, &[]).await.lines().count(), 1, "their service runs");
    assert!(good.cluster.admitted.lock().unwrap().is_empty());

    let taken = by_a_person(&good, true).await;
    assert_eq!(taken.state, DeploymentState::Ready, "{:?}", taken.failure);
    assert_eq!(run(&root, WEB, &[]).await, "");
    good.cluster.links.lock().await.clear();
    good.clean().await;
    // It ran before, so the removal started it.
    assert_eq!(run(&root, WEB, &[]).await.lines().count(), 1);
    run(&root, REMOVE_THEIRS, &[THEIRS]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn edit_on_the_host_is_drift_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    bench.clean().await;
    let first = bench.deploy(&bench.request()).await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);
    let root = bench.host.connect().await;
    run(&root, r#"cd "$1" && sed -i 's/restart: .*/restart: "no"/' docker-compose.yml && [ ! -L docker-compose.yml ]"#, &[BASE])
        .await;

    let plan = bench.deployments.plan(&bench.request(), Origin::Assistant).await.unwrap();
    assert_eq!(plan.plan.drift[0].kind, DriftKind::FileReplaced, "{:?}", plan.plan.drift);
    assert!(plan.plan.to_string().contains("docker-compose.yml"), "{}", plan.plan);
    let again = bench.deploy(&bench.request()).await;
    assert_eq!(again.state, DeploymentState::Ready, "{:?}", again.failure);
    let kept = r#"cd "$1" && [ "$(readlink docker-compose.yml)" = current/docker-compose.yml ] && cat docker-compose.yml.edited-1"#;
    assert!(run(&root, kept, &[BASE]).await.contains("restart: \"no\""));
    let plan = bench.deployments.plan(&bench.request(), Origin::Assistant).await.unwrap();
    assert_eq!(plan.plan.drift, []);
    run(&root, r#"rm "$1"/*.edited-1"#, &[BASE]).await;
    bench.clean().await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn failed_take_over_gives_the_other_clusters_release_back() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    theirs.clean().await;
    let first = theirs.deploy(&theirs.request()).await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);

    let broken = stand_in_node(dir.path(), "broken", BROKEN_NODE);
    let settings = DeploySettings { owner: "ours".into(), ..theirs.upgraded(broken).settings };
    let cluster = Arc::new(StandInCluster::new(theirs.host.clone()));
    let ours = with_settings(theirs.host.clone(), settings, Arc::default(), cluster);
    let refused = by_a_person(&ours, false).await;
    assert!(refused.failure.unwrap().message.contains("another cluster, test"));
    let failed = by_a_person(&ours, true).await;
    assert_eq!(failed.state, DeploymentState::RolledBack, "{:?}", failed.failure);
    let message = failed.failure.unwrap().message;
    assert!(
        message.contains(first.deployment_id.as_str()) && message.contains("of cluster test"),
        "{message}"
    );
    assert!(ours.cluster.admitted.lock().unwrap().is_empty());

    // Nothing is left to do for its owner.
    let again = theirs.deploy(&theirs.request()).await;
    assert_eq!(again.state, DeploymentState::Ready, "{:?}", again.failure);
    let unchanged = |step: &cluster_core::deploy::StepView| {
        step.name != StepName::Upload
            || step.evidence.as_deref().is_some_and(|text| text.contains("nothing changed"))
    };
    assert!(again.steps.iter().all(unchanged), "{:?}", again.steps);
    theirs.clean().await;
}
