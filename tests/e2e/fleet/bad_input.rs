//! Mistakes of an assistant about nodes and executions: the error says what, where, and how to fix it.

use serde_json::json;

use crate::support::{
    fleet::{ONE, TWO, fleet},
    testbed::Host,
    work::{deployment_of, run, script, with},
};

/// Returns containers, images and files of a host.
fn state_of(host: &Host) -> String {
    host.sh("docker ps -a --format '{{.ID}}'; docker image ls -q; ls -lA --time-style=full-iso /opt/*")
}

#[tokio::test]
async fn arguments_out_of_their_grammar_touch_nothing() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let before: Vec<String> = fleet.hosts.iter().map(state_of).collect();
    let good = deployment_of(&fleet.hosts[0], ONE, &["edge", "one"]);
    let long = "x".repeat(300);
    for (changes, word) in [
        (json!({"host": ""}), "host"),
        (json!({"host": null}), "host"),
        (json!({"host": "-oProxyCommand=sh"}), "host"),
        (json!({"host": "$(id)"}), "host"),
        (json!({"host": "a;b"}), "host"),
        (json!({"host": "edg\u{435}.example"}), "host"),
        (json!({"host": long}), "host"),
        (json!({"host": "169.254.169.254"}), "host"),
        (json!({"ssh_port": 0}), "ssh_port"),
        (json!({"ssh_port": 65_536}), "ssh_port"),
        (json!({"ssh_port": "22"}), "ssh_port"),
        (json!({"ssh_user": "root;reboot"}), "user"),
        (json!({"ssh_user": "-l"}), "user"),
        (json!({"ssh_user": "a\nb"}), "user"),
        (json!({"ssh_user": "u".repeat(100)}), "user"),
        (json!({"identity": "Not_A_Label"}), "node id"),
        (json!({"identity": "../x"}), "node id"),
        (json!({"identity": "x".repeat(64)}), "node id"),
        (json!({"tags": ["NOT GOOD"]}), "tag"),
        (json!({"tags": [3]}), "tags"),
        (json!({"services": "node,mysql"}), "mysql"),
        (json!({"ssh_key_path": "../../etc/shadow"}), "ssh_key_path"),
        (json!({"remote_llm_url": "file:///etc/passwd"}), "remote_llm_url"),
        (json!({"remote_llm_url": "http://169.254.169.254/"}), "remote_llm_url"),
        (json!({"remote_llm_url": "http://user:pw@llm"}), "remote_llm_url"),
        (json!({"image": "Not An Image"}), "image"),
        (json!({"link": "carrier-pigeon"}), "link"),
        (json!({"wait_seconds": 46}), "wait_seconds"),
        (json!({"hots": "10.0.0.1"}), "hots"),
    ] {
        let text = client.refused("deploy_edge_node", with(good.clone(), changes.clone())).await;
        assert!(text.contains(word), "{changes}: \"{word}\" is not in: {text}");
        assert!(text.contains("What to do"), "{changes}: {text}");
        assert!(!text.contains("pw@"), "{text}");
    }
    let after: Vec<String> = fleet.hosts.iter().map(state_of).collect();
    assert_eq!(after, before);
}

#[tokio::test]
async fn ids_that_nobody_knows() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let unknown_deployment = "comet-edge-node-1711446000000-1";
    for (tool, arguments, word) in [
        ("get_deployment_status", json!({"deployment_id": unknown_deployment}), unknown_deployment),
        ("get_deployment_status", json!({"deployment_id": "../x"}), "deployment_id"),
        ("get_execution", json!({"execution_id": "no-such-execution"}), "no-such-execution"),
        ("cancel_execution", json!({"execution_id": "no-such-execution"}), "no-such-execution"),
        ("drain_node", json!({"node_id": "no-such-node"}), "no-such-node"),
        ("drain_node", json!({"node_id": "EDGE-ONE"}), "node_id"),
        ("resume_node", json!({"node_id": "no-such-node"}), "no-such-node"),
        ("submit_execution", with(script("true", &[]), json!({"node_id": "no-such-node"})), "no-such-node"),
    ] {
        let text = client.refused(tool, arguments.clone()).await;
        assert!(text.contains(word), "{tool} {arguments}: \"{word}\" is not in: {text}");
        assert!(text.contains("What to do"), "{tool} {arguments}: {text}");
    }
}

#[tokio::test]
async fn work_that_cannot_run_anywhere() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    // Nothing that may change stands between: told at once, with the reason of each node, in a queue
    // or not.
    for queue in [true, false] {
        let nowhere = with(script("true", &["gpu"]), json!({"queue": queue}));
        let text = client.refused("submit_execution", nowhere).await;
        assert!([ONE, TWO, "gpu", "What to do"].iter().all(|word| text.contains(word)), "{text}");
    }
    let large = with(script("true", &["edge"]), json!({"resources": {"memory_mb": 16_000_000}}));
    let text = client.refused("submit_execution", large).await;
    assert!([ONE, TWO, "memory"].iter().all(|word| text.contains(word)), "{text}");

    let missing = with(script("true", &["edge"]), json!({"image": "busybox:no-such-tag"}));
    let ended = run(&mut client, missing).await;
    assert_eq!(ended.view["state"], "failed", "{:#}", ended.view);
    let failure = ended.view["failure"].to_string();
    assert!(failure.contains("busybox:no-such-tag"), "{failure}");
    assert!(ended.view["failure"]["remedy"].is_string(), "{failure}");
    for (changes, word) in [
        (json!({"image": "Not An Image"}), "image"),
        (json!({"image": ""}), "image"),
        (json!({"command": ["a\u{0}b"]}), "command"),
        (json!({"command": [""]}), "command"),
        (json!({"resources": {"memory_mb": 1}}), "memory_mb"),
        (json!({"resources": {"cpu": 0}}), "cpu"),
        (json!({"timeout_seconds": 0}), "timeout_seconds"),
        (json!({"timeout_seconds": 100_000_000}), "timeout_seconds"),
        (json!({"env": {"AEGIS_NODE_ID": "x"}}), "AEGIS_NODE_ID"),
        (json!({"target_tags": ["NOT GOOD"]}), "target_tags"),
    ] {
        let text = client.refused("submit_execution", with(script("true", &["edge"]), changes.clone())).await;
        assert!(text.contains(word), "{changes}: \"{word}\" is not in: {text}");
    }
}
