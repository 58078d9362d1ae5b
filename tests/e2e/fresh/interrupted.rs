//! The controller is killed in the middle of a deployment. Started again, it ends with a host that is
//! as it says.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    poll::until,
    testbed::Host,
    work::{DEPLOY_LIMIT, deploy_ready, deployment_of, follow, id_of, run, script, statuses},
};

const STEP_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn killed_while_images_are_loaded() {
    killed_at("images").await;
}

#[tokio::test]
async fn killed_while_the_stack_starts() {
    killed_at("start").await;
}

#[tokio::test]
async fn killed_while_the_node_joins() {
    killed_at("join").await;
}

#[tokio::test]
#[ignore = "long; run by tests/run --all"]
async fn killed_at_every_other_step() {
    for step in ["connect", "check", "upload", "health", "proof", "settle"] {
        killed_at(step).await;
    }
}

/// A removal is resumed and completed, whenever the controller was killed.
#[tokio::test]
#[ignore = "long; run by tests/run --all"]
async fn killed_at_every_step_of_a_removal() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let mut controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(host).await;
    for step in ["connect", "drain", "stop", "forget"] {
        let mut client = Client::stdio(&controller, Era::Session, "interrupted").await;
        deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await;
        let order = json!({ "node_id": ONE, "deadline_seconds": 0, "wait_seconds": 0 });
        let id = id_of(&client.call("remove_edge_node", order).await, "deployment_id");
        let path = format!("/deployments/{id}");
        until(&format!("the step {step} begins"), STEP_LIMIT, async || {
            has_begun(&controller.api(&path).await.ok()?, step).then_some(())
        })
        .await;
        controller.kill();
        drop(client);
        controller.start_again().await;
        let mut client = Client::stdio(&controller, Era::Session, "interrupted").await;
        let view = follow(&mut client, &id).await;
        assert_eq!(view["state"], "removed", "killed at {step}: {view:#}");
        assert_eq!(running(host), "");
        assert!(!statuses(&mut client).await.contains_key(ONE));
    }
}

async fn killed_at(step: &str) {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let mut controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "interrupted").await;
    let started = client.call("deploy_edge_node", deployment_of(host, ONE, &["edge"])).await;
    let id = id_of(&started, "deployment_id");
    let path = format!("/deployments/{id}");
    until(&format!("the step {step} begins"), STEP_LIMIT, async || {
        let view = controller.api(&path).await.ok()?;
        assert!(matches!(view["state"].as_str(), Some("planned" | "running")), "it ended before: {view:#}");
        has_begun(&view, step).then_some(())
    })
    .await;
    controller.kill();
    drop(client);

    controller.start_again().await;
    let mut client = Client::stdio(&controller, Era::Session, "interrupted").await;
    let view = follow(&mut client, &id).await;
    match view["state"].as_str() {
        Some("ready") => {}
        Some("failed" | "rolled_back" | "interrupted") => {
            assert!(view["failure"]["message"].is_string(), "{view:#}");
            assert_eq!(running(host), "", "it says {} and a stack runs: {view:#}", view["state"]);
            // It says what to do; that works.
            deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await;
        }
        other => panic!("{other:?} is no end: {view:#}"),
    }
    assert_eq!(running(host).lines().count(), 1, "one stack with one service");
    until("the node is active", DEPLOY_LIMIT, async || {
        (statuses(&mut client).await.get(ONE)? == "active").then_some(())
    })
    .await;
    let ended = run(&mut client, script("echo works", &["edge"])).await;
    assert_eq!((ended.stdout.as_str(), &ended.view["node_id"]), ("works\n", &json!(ONE)));
    // The host is free for the next one, which finds nothing to change.
    let before = running(host);
    deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await;
    assert_eq!(running(host), before, "a deployment that changes nothing made the node anew");
}

fn has_begun(view: &Value, step: &str) -> bool {
    let steps = view["steps"].as_array().expect("steps");
    steps.iter().any(|known| known["name"] == step && known["state"] != "pending")
}

fn running(host: &Host) -> String {
    host.sh("docker ps --no-trunc --filter label=com.docker.compose.project=aitheros-edge --format '{{.ID}}'")
}
