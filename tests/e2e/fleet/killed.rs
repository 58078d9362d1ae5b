//! Processes killed with `kill -9`, and network cuts, while a container runs. The execution is never lost, and runs
//! once.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    fleet::{ONE, fleet},
    mcp::Client,
    poll::until,
    testbed::{Disturbed, Host, containers_of},
    work::{counted, counting, id_of, read_to_end, script, statuses},
};

const LINES: u32 = 16;
const EXIT_CODE: u32 = 5;
const RUNNING_LIMIT: Duration = Duration::from_secs(20);
const BACK_LIMIT: Duration = Duration::from_secs(60);

/// Submits work that counts for some seconds. Returns when its first lines have been read.
async fn begin_counting(client: &mut Client) -> String {
    let started = client.call("submit_execution", script(&counting(LINES, EXIT_CODE), &["one"])).await;
    let id = id_of(&started, "execution_id");
    until("the container has written something", RUNNING_LIMIT, async || {
        let view = client.call("get_execution", json!({"execution_id": id})).await;
        view["output"]["stdout"].as_str()?.contains("line 2").then_some(())
    })
    .await;
    id
}

async fn assert_whole(client: &mut Client, execution_id: &str) {
    let ended = read_to_end(client, execution_id).await;
    assert_eq!(ended.view["state"], "failed", "{:#}", ended.view);
    assert_eq!(ended.view["exit_code"], EXIT_CODE, "{:#}", ended.view);
    assert_eq!(ended.view["attempt"], 1, "{:#}", ended.view);
    assert_eq!(ended.stdout, counted(LINES), "every line once, in order");
}

/// Kills the worker's process in its container, which the engine restarts.
pub fn kill_worker(host: &Host) -> String {
    host.sh("pid=$(pgrep -x aegis) && kill -KILL $pid && echo $pid")
}

pub async fn worker_is_back(client: &mut Client, host: &Host, killed: &str) {
    until("the worker is started again", BACK_LIMIT, async || {
        host.holds(&format!("pid=$(pgrep -x aegis) && [ \"$pid\" != {} ]", killed.trim())).then_some(())
    })
    .await;
    until("the node is active again", BACK_LIMIT, async || {
        (statuses(client).await[ONE] == "active").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_controller_while_an_execution_runs() {
    let mut fleet = fleet().await;
    let mut client = fleet.client().await;
    let id = begin_counting(&mut client).await;
    let host = fleet.host_of(ONE).clone();
    let before = containers_of(&host, &id);
    assert_eq!(before.len(), 1);
    fleet.controller.kill();
    fleet.controller.start_again().await;
    let mut client = fleet.client().await;
    assert_eq!(containers_of(&host, &id), before);
    assert_whole(&mut client, &id).await;
    until("both nodes are active again", BACK_LIMIT, async || {
        let nodes = statuses(&mut client).await;
        nodes.values().all(|status| status == "active").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_controller_while_an_execution_ends() {
    let mut fleet = fleet().await;
    let mut client = fleet.client().await;
    let id = begin_counting(&mut client).await;
    let host = fleet.host_of(ONE).clone();
    fleet.controller.kill();
    // The end comes while nobody is there to hear of it.
    until("the container has ended", BACK_LIMIT, async || {
        let filter = format!("label=aegis.execution_id={id}");
        host.sh(&format!("docker ps -q --filter {filter}")).is_empty().then_some(())
    })
    .await;
    fleet.controller.start_again().await;
    let mut client = fleet.client().await;
    assert_whole(&mut client, &id).await;
    until("both nodes are active again", BACK_LIMIT, async || {
        let nodes = statuses(&mut client).await;
        nodes.values().all(|status| status == "active").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_worker_while_an_execution_runs() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let id = begin_counting(&mut client).await;
    let before = containers_of(host, &id);
    let killed = kill_worker(host);
    worker_is_back(&mut client, host, &killed).await;
    let after = containers_of(host, &id);
    assert!(after == before || after.is_empty(), "another container: {before:?} {after:?}");
    assert_whole(&mut client, &id).await;
}

#[tokio::test]
async fn the_worker_and_then_the_container() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let id = begin_counting(&mut client).await;
    let container = containers_of(host, &id).remove(0);
    let killed = kill_worker(host);
    host.sh(&format!("docker kill {container}"));
    worker_is_back(&mut client, host, &killed).await;
    let ended = read_to_end(&mut client, &id).await;
    assert_eq!((&ended.view["state"], &ended.view["exit_code"]), (&json!("failed"), &json!(137)));
    assert!(ended.stdout.starts_with("line 1\nline 2\n"), "{}", ended.stdout);
}

/// Followers of a removed container get an end.
#[tokio::test]
async fn the_worker_and_then_the_container_is_removed() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let id = begin_counting(&mut client).await;
    let container = containers_of(host, &id).remove(0);
    // The engine does not start again what a person killed.
    let worker =
        host.sh("docker kill $(docker ps -q --filter label=com.docker.compose.project=aitheros-edge)");
    host.sh(&format!("docker rm -f {container}; docker start {worker}"));
    let ended = read_to_end(&mut client, &id).await;
    let failure = &ended.view["failure"];
    assert_eq!((&ended.view["state"], &failure["code"]), (&json!("failed"), &json!("Lost")), "{failure}");
    assert!(ended.stdout.starts_with("line 1\nline 2\n"), "{}", ended.stdout);
    assert_eq!(containers_of(host, &id), [""; 0]);
    until("the node is active again", BACK_LIMIT, async || {
        (statuses(&mut client).await[ONE] == "active").then_some(())
    })
    .await;
}

/// Cuts silently in both directions: neither side is notified.
#[tokio::test]
async fn the_network_while_an_execution_runs() {
    cut_while_an_execution_runs(
        "iptables -I INPUT -p tcp --dport 22 -j DROP; iptables -I OUTPUT -p tcp --sport 22 -j DROP",
        "iptables -D INPUT -p tcp --dport 22 -j DROP; iptables -D OUTPUT -p tcp --sport 22 -j DROP",
    )
    .await;
}

/// Cuts in the middle of the stream: received events are not requested again, and no event is left out.
#[tokio::test]
async fn the_connection_by_a_reset_while_an_execution_runs() {
    cut_while_an_execution_runs(
        "iptables -I INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset",
        "iptables -D INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset",
    )
    .await;
}

async fn cut_while_an_execution_runs(cut: &str, undo: &'static str) {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let id = begin_counting(&mut client).await;
    let before = containers_of(host, &id);
    let cut = Disturbed::new(host, cut, undo);
    until("the cut is noticed", BACK_LIMIT, async || {
        let peers = client.call("list_peers", json!({"tags": ["one"], "response_format": "detailed"})).await;
        (peers["peers"][0]["link_up"] == false).then_some(())
    })
    .await;
    drop(cut);
    until("the node is active again", BACK_LIMIT, async || {
        (statuses(&mut client).await[ONE] == "active").then_some(())
    })
    .await;
    assert_whole(&mut client, &id).await;
    let after = containers_of(host, &id);
    assert!(after == before || after.is_empty(), "another container: {before:?} {after:?}");
    until("its link is up again", BACK_LIMIT, async || {
        let peers = client.call("list_peers", json!({"tags": ["one"], "response_format": "detailed"})).await;
        (peers["peers"][0]["link_up"] == true).then_some(())
    })
    .await;
}
