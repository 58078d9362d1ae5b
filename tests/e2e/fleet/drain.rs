//! Drains: what people want of a node outlives every process.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    fleet::{ONE, TWO, fleet},
    mcp::Client,
    poll::until,
    work::{counting, id_of, read_to_end, run, script, statuses},
};

const BACK_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

async fn becomes(client: &mut Client, node: &str, status: &str) {
    until(&format!("{node} is {status}"), BACK_LIMIT, async || {
        (statuses(client).await[node] == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn it_survives_restarts_of_the_controller_and_of_the_worker() {
    let mut fleet = fleet().await;
    let mut client = fleet.client().await;
    let started = client.call("submit_execution", script(&counting(20, 0), &["one"])).await;
    let id = id_of(&started, "execution_id");
    until("it runs", BACK_LIMIT, async || {
        let view = client.call("get_execution", json!({"execution_id": id})).await;
        (view["state"] == "running").then_some(())
    })
    .await;
    let drain = client.call("drain_node", json!({"node_id": ONE, "on_deadline": "leave"})).await;
    assert_eq!((&drain["state"], &drain["blockers"]), (&json!("draining"), &json!([id])));
    assert_eq!(drain["blockers_total"], 1, "{drain}");
    assert!(drain["next_step"].as_str().is_some_and(|text| text.contains("cancel_execution")), "{drain}");
    let words = ["node", "drain", ONE, "--on-deadline", "leave", "--output", "text"];
    let told = fleet.controller.cli(&words).await.succeeded();
    assert_eq!(told, format!("{ONE} drains; 1 still run: {id}\n"));

    fleet.controller.kill();
    fleet.controller.start_again().await;
    let mut client = fleet.client().await;
    becomes(&mut client, ONE, "draining").await;
    fleet.host_of(ONE).sh("kill -KILL $(pgrep -x aegis)");
    let ended = read_to_end(&mut client, &id).await;
    assert_eq!(ended.view["state"], "succeeded", "work that ran goes on: {:#}", ended.view);
    becomes(&mut client, ONE, "draining").await;
    let elsewhere = run(&mut client, script("true", &["edge"])).await;
    assert_eq!(elsewhere.view["node_id"], TWO, "{:#}", elsewhere.view);
    let drain = client.call("drain_node", json!({"node_id": ONE, "wait_seconds": 45})).await;
    assert_eq!(drain["state"], "drained", "{drain}");

    client.call("resume_node", json!({"node_id": ONE})).await;
    becomes(&mut client, ONE, "active").await;
    let back = run(&mut client, script("true", &["one"])).await;
    assert_eq!(back.view["state"], "succeeded", "{:#}", back.view);
}

#[tokio::test]
async fn its_deadline_ends_work_that_does_not_end_by_itself() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let started = client.call("submit_execution", script("echo on; sleep 600", &["two"])).await;
    let id = id_of(&started, "execution_id");
    until("it runs", BACK_LIMIT, async || {
        let view = client.call("get_execution", json!({"execution_id": id})).await;
        (view["state"] == "running").then_some(())
    })
    .await;
    let order = json!({"node_id": TWO, "deadline_seconds": 2, "on_deadline": "cancel", "wait_seconds": 45});
    let drain = client.call("drain_node", order).await;
    assert_eq!(drain["state"], "drained", "{drain}");
    let ended = read_to_end(&mut client, &id).await;
    assert_eq!((&ended.view["state"], ended.stdout.as_str()), (&json!("cancelled"), "on\n"));
    client.call("resume_node", json!({"node_id": TWO})).await;
    until("the node is active", DRAIN_LIMIT, async || {
        (statuses(&mut client).await[TWO] == "active").then_some(())
    })
    .await;
}
