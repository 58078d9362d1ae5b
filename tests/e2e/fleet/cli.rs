//! The command line on a cluster that works: for people, and for scripts.

use serde_json::{Value, json};

use crate::support::{
    IMAGE, cli,
    fleet::{ONE, TWO, fleet},
};

#[tokio::test]
async fn status_and_peers_in_words_and_as_json() {
    let fleet = fleet().await;
    let status = fleet.controller.cli(&["status", "--output", "json"]).await.json();
    assert_eq!(status["health"]["ready"], true, "{status:#}");
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3), "{status:#}");
    let peers = fleet.controller.cli(&["node", "peers", "--output", "json"]).await.json();
    let nodes: Vec<_> = peers["nodes"].as_array().unwrap().iter().map(|node| &node["node_id"]).collect();
    assert_eq!(nodes, [&json!(ONE), &json!(TWO), &json!("home")]);
    for words in [&["status"][..], &["node", "peers"]] {
        let text = fleet.controller.cli(words).await.succeeded();
        assert!([ONE, TWO, "home", "active"].iter().all(|word| text.contains(word)), "{text}");
    }
    let hosts = fleet.controller.cli(&["host", "list", "--output", "json"]).await.json();
    let admitted: Vec<_> = hosts["hosts"].as_array().unwrap().iter().map(|host| &host["host"]).collect();
    assert_eq!(admitted, [&json!(fleet.hosts[0].ip), &json!(fleet.hosts[1].ip)]);
}

#[tokio::test]
async fn run_is_the_container_as_far_as_a_script_can_tell() {
    let fleet = fleet().await;
    let text = "cat; printf 'no newline at the end'; echo talk >&2; exit 42";
    let words = ["run", "--image", IMAGE, "--tag", "one", "--input", "-", "--", "sh", "-c", text];
    let input = "a\ttab, \u{e4} and a last line\n".as_bytes();
    let answer = cli::run(&fleet.controller.data, &words, &[], input).await;
    assert_eq!(answer.status, 42, "{answer:?}");
    assert_eq!(answer.stdout, "a\ttab, \u{e4} and a last line\nno newline at the end");
    assert!(answer.stderr.contains("talk\n"), "{answer:?}");

    let words = ["run", "--output", "json", "--image", IMAGE, "--node", TWO, "--", "true"];
    let ended = fleet.controller.cli(&words).await.json();
    assert_eq!((&ended["state"], &ended["node_id"]), (&json!("succeeded"), &json!(TWO)));
    let words = ["run", "--image", IMAGE, "--node", "no-such-node", "--", "true"];
    let answer = fleet.controller.cli(&words).await;
    assert!(answer.status == 4 || answer.status == 30, "{answer:?}");
    assert!(answer.stdout.is_empty() && answer.stderr.contains("no-such-node"), "{answer:?}");
}

#[tokio::test]
async fn a_person_deploys_again_and_nothing_is_made_anew() {
    let fleet = fleet().await;
    let host = &fleet.hosts[0];
    let container = || host.sh("docker ps -q --no-trunc --filter label=com.docker.compose.service=node");
    let before = container();
    let port = host.port.to_string();
    let key = host.key();
    let words = [
        "deploy",
        &host.ip,
        "--ssh-port",
        &port,
        "--ssh-user",
        &host.user,
        "--ssh-key",
        &key,
        "--identity",
        ONE,
        "--tag",
        "edge",
        "--tag",
        "one",
        "--services",
        "node",
        "--output",
        "json",
    ];
    let view: Value = fleet.controller.cli(&words).await.json();
    assert_eq!((&view["state"], &view["node_id"]), (&json!("ready"), &json!(ONE)), "{view:#}");
    assert_eq!(container(), before, "a deployment that changes nothing made the node anew");
    let mut planned = words.to_vec();
    planned.push("--plan");
    let plan = fleet.controller.cli(&planned).await.json();
    assert_eq!(plan["findings"], json!([]), "{plan:#}");
    let mut wrong = words.to_vec();
    wrong[5] = "root;reboot";
    let answer = fleet.controller.cli(&wrong).await;
    assert_eq!(answer.status, 2, "{answer:?}");
    // A machine reads the reason on stdout, a person on stderr.
    let reason: Value = serde_json::from_str(&answer.stdout).expect("one document");
    assert_eq!(reason["error"]["code"], "InvalidArgument", "{answer:?}");
    assert!(answer.stderr.contains("root;reboot"), "{answer:?}");
}

#[tokio::test]
async fn drain_and_resume() {
    let fleet = fleet().await;
    let words = ["node", "drain", TWO, "--wait", "--output", "json"];
    let drained = fleet.controller.cli(&words).await.json();
    assert_eq!(drained["state"], "drained", "{drained:#}");
    let resumed = fleet.controller.cli(&["node", "resume", TWO, "--output", "json"]).await.json();
    assert_eq!((&resumed["node_id"], &resumed["status"]), (&json!(TWO), &json!("active")));
    let answer = fleet.controller.cli(&["node", "drain", "no-such-node"]).await;
    assert_eq!((answer.status, answer.stdout.as_str()), (4, ""), "{answer:?}");
    assert!(answer.stderr.contains("no-such-node"), "{answer:?}");
}
