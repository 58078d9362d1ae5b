//! The main job, as an assistant does it: from two bare machines to work on both.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, TWO, fresh},
    mcp::{Client, Era},
    poll::until,
    testbed::Host,
    work::{deployment_of, follow, id_of, read_to_end, run, script, statuses, wait_for_a_node, with},
};

/// A drain of an idle node, told to it with the answer to a heartbeat at the latest.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

#[tokio::test]
async fn from_two_machines_to_work_on_both_over_stdio() {
    let Fresh { hosts, _machines } = fresh().await;
    let by_hand = hosts[0].by_hand();
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    let mut client = Client::stdio(&controller, Era::Session, "stdio").await;
    journey(&mut client, &controller, &hosts).await;
    client.transcript.note(&format!(
        "one deployment by hand, of a 2 MB image that is there already: {} s (again: {} s)",
        by_hand["fresh_seconds"], by_hand["unchanged_seconds"]
    ));
    client.transcript.keep();
}

#[tokio::test]
async fn from_two_machines_to_work_on_both_over_http() {
    let Fresh { hosts, _machines } = fresh().await;
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    let mut client = Client::http(&controller, Era::Stateless, "http").await;
    assert_eq!(client.protocol_version(), "2026-07-28");
    journey(&mut client, &controller, &hosts).await;
    client.transcript.keep();
}

async fn journey(client: &mut Client, controller: &Controller, hosts: &[Host; 2]) {
    deploy_both(client, controller, hosts).await;
    run_on_both(client).await;
    drain_and_resume(client).await;
}

async fn deploy_both(client: &mut Client, controller: &Controller, hosts: &[Host; 2]) {
    let started = Instant::now();
    let mut ids = Vec::new();
    for (host, node, tag) in [(&hosts[0], ONE, "one"), (&hosts[1], TWO, "two")] {
        controller.approve(host).await;
        let request = with(deployment_of(host, node, &["edge", tag]), json!({"idempotency_key": node}));
        let answer = client.call("deploy_edge_node", request.clone()).await;
        // The call returns at once; the work goes on.
        assert!(matches!(answer["state"].as_str(), Some("planned" | "running")), "{answer}");
        let id = id_of(&answer, "deployment_id");
        // A retry names no plan and asks nobody again.
        let again = client.unconfirmed("deploy_edge_node", request).await;
        assert_eq!(id_of(&again, "deployment_id"), id);
        ids.push(id);
    }
    for (id, node) in ids.iter().zip([ONE, TWO]) {
        assert!(id.starts_with("comet-edge-node-"), "{id}");
        let view = follow(client, id).await;
        assert_eq!(view["state"], "ready", "{view:#}");
        assert_eq!(view["node_id"], node);
        let steps = view["steps"].as_array().expect("steps");
        assert!(steps.iter().all(|step| step["state"] == "done"), "{view:#}");
        let names: Vec<_> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
        let pipeline =
            ["plan", "connect", "check", "upload", "images", "start", "health", "join", "proof", "settle"];
        assert_eq!(names, pipeline);
    }
    client.transcript.note(&format!("both ready after {:.1} s", started.elapsed().as_secs_f64()));
    let peers = client.call("list_peers", json!({"tags": ["edge"]})).await;
    assert_eq!(peers["total"], 2, "{peers}");
    for (peer, (node, tag)) in peers["peers"].as_array().unwrap().iter().zip([(ONE, "one"), (TWO, "two")]) {
        assert_eq!((&peer["node_id"], &peer["status"]), (&json!(node), &json!("active")), "{peer}");
        assert_eq!(peer["tags"], json!(["edge", tag]), "{peer}");
    }
}

async fn run_on_both(client: &mut Client) {
    // Reads its input, writes to both streams, says where it is, ends with a code of its own.
    let text = "read word; echo \"$word on $AEGIS_NODE_ID\"; echo talk >&2; echo $AEGIS_INPUT; exit 7";
    let arguments = with(script(text, &["two"]), json!({"input": "hello\n"}));
    let ended = run(client, arguments).await;
    assert_eq!(ended.view["node_id"], TWO, "{:#}", ended.view);
    assert_eq!((&ended.view["state"], &ended.view["exit_code"]), (&json!("failed"), &json!(7)));
    assert_eq!(ended.stdout, format!("hello on {TWO}\nhello\n"));
    assert_eq!(ended.stderr, "talk\n");
    // Round-robin among equals: two in a row are not on one node.
    let first = run(client, script("echo said; echo '[1]'", &["edge"])).await;
    let second = run(client, script("echo said; echo '[1]'", &["edge"])).await;
    for ended in [&first, &second] {
        assert_eq!((&ended.view["state"], &ended.view["exit_code"]), (&json!("succeeded"), &json!(0)));
        assert_eq!(ended.view["untrusted_result"], "[1]");
    }
    assert_ne!(first.view["node_id"], second.view["node_id"]);
}

async fn drain_and_resume(client: &mut Client) {
    let drained = client.call("drain_node", json!({"node_id": ONE, "wait_seconds": 20})).await;
    assert_eq!(drained["state"], "drained", "{drained}");
    assert_eq!(statuses(client).await[ONE], "draining");
    for _ in 0..2 {
        let ended = run(client, script("echo elsewhere", &["edge"])).await;
        assert_eq!(ended.view["node_id"], TWO, "{:#}", ended.view);
    }
    let (id, why) = wait_for_a_node(client, script("echo there", &["one"])).await;
    assert!(why.contains(ONE) && why.contains("drain"), "{why}");
    client.call("resume_node", json!({"node_id": ONE})).await;
    let ended = read_to_end(client, &id).await;
    assert_eq!((&ended.view["node_id"], ended.stdout.as_str()), (&json!(ONE), "there\n"));
    until("the resumed node is active", DRAIN_LIMIT, async || {
        (statuses(client).await[ONE] == "active").then_some(())
    })
    .await;
}
