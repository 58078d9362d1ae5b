//! Configuration files and the daemon's life, from the command line.

use std::net::TcpListener;

use serde_json::json;

use crate::support::{
    cli,
    controller::{Controller, Setup},
    raw::{Pipe, initialize},
};

const GOOD: &str = "apiVersion: 100monkeys.ai/v1\nkind: NodeConfig\nmetadata: {name: good}\nspec:\n  \
                    node: {id: good, type: hybrid}\n";

#[tokio::test]
async fn a_bad_file_is_refused_with_the_key_and_the_nearest_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("aegis.yaml");
    let path = file.to_str().expect("UTF-8");
    std::fs::write(&file, GOOD).expect("the file");
    let good =
        cli::run(directory.path(), &["config", "check", path, "--output", "json"], &[], b"").await.json();
    assert_eq!((&good["valid"], &good["role"]), (&json!(true), &json!("hybrid")), "{good:#}");
    for (bad, words) in [
        (format!("{GOOD}  clustr: {{}}\n"), ["spec.clustr", "cluster"]),
        (format!("{GOOD}  network: {{port: many}}\n"), ["spec.network.port", "many"]),
        (format!("{GOOD}  network: {{bind_address: 0.0.0.0}}\n"), ["bind_address", "loopback"]),
        (format!("{GOOD}  cluster: {{role: worker}}\n"), ["spec.cluster.controller.endpoint", "worker"]),
        (format!("{GOOD}  database: {{url: 'postgres://db'}}\n"), ["spec.database.url", "SQLite"]),
        (format!("{GOOD}  mcp: {{bind_address: 0.0.0.0}}\n"), ["spec.mcp.bind_address", "spec.mcp.tls"]),
        (format!("{GOOD}  mcp: {{audit: {{days: 0}}}}\n"), ["spec.mcp.audit.days", "1 to 3650"]),
        (format!("{GOOD}  mcp: {{tools: [rm_rf]}}\n"), ["spec.mcp.tools", "rm_rf"]),
        ("spec: [".to_owned(), ["aegis.yaml", "line"]),
    ] {
        std::fs::write(&file, &bad).expect("the file");
        let answer = cli::run(directory.path(), &["config", "check", path], &[], b"").await;
        assert_ne!(answer.status, 0, "{bad}: {answer:?}");
        assert_eq!(answer.stdout, "", "{bad}");
        for word in words {
            assert!(answer.stderr.contains(word), "{bad}: \"{word}\" is not in: {}", answer.stderr);
        }
        let served = cli::run(directory.path(), &["serve", "--config", path], &[], b"").await;
        assert_eq!(served.status, answer.status, "serve took what check refused: {bad} {served:?}");
    }
}

#[tokio::test]
async fn one_daemon_a_data_directory_and_it_stops_when_told() {
    let mut controller = Controller::start(&Setup::default()).await;
    let config = controller.config();
    let second = controller.cli(&["serve", "--config", config.to_str().expect("UTF-8")]).await;
    assert_eq!(second.status, 5, "{second:?}");
    assert!(second.stderr.contains("data"), "{second:?}");
    let status = controller.cli(&["status", "--output", "json"]).await.json();
    assert_eq!(status["health"]["node_id"], "home", "{status:#}");
    controller.stop().await;
    let gone = controller.cli(&["status"]).await;
    assert_eq!(gone.status, 9, "{gone:?}");
    assert!(gone.stderr.contains("aegis up"), "what to do is not said: {gone:?}");
    // The same data directory, the same node and cluster.
    controller.start_again().await;
    let again = controller.cli(&["status", "--output", "json"]).await.json();
    assert_eq!(again["cluster_id"], status["cluster_id"]);
    let stopped = controller.cli(&["stop", "--output", "json"]).await.json();
    assert_eq!(stopped["stopped"], true, "{stopped}");
}

#[tokio::test]
async fn assistant_starts_the_daemon_with_its_last_configuration() {
    let setup = Setup { mcp: "{confirm: human_only}", ..Setup::default() };
    let controller = Controller::prepare(&setup);
    let config = controller.config();
    controller.cli(&["up", "--config", config.to_str().expect("UTF-8")]).await.succeeded();
    let other = controller.cli(&["up", "--no-config"]).await;
    assert!(other.failed().contains("aegis stop"), "another configuration is asked for: {other:?}");
    controller.cli(&["stop"]).await.succeeded();

    // Nothing but the data directory names the configuration, as after a reboot.
    let mut pipe = Pipe::open(&controller);
    assert!(pipe.ask(&initialize()).await.get("result").is_some());
    pipe.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    let drain = json!({"jsonrpc": "2.0", "id": "drain", "method": "tools/call",
        "params": {"name": "drain_node", "arguments": {"node_id": "home"}}});
    let answer = pipe.ask(&drain).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("a person must confirm"), "the policy is forgotten: {answer}");
    drop(pipe);
    controller.cli(&["stop"]).await.succeeded();

    std::fs::rename(&config, config.with_extension("away")).expect("the file moves");
    let refused = controller.cli(&["up"]).await;
    assert!(refused.failed().contains("is missing"), "{refused:?}");
    assert!(refused.stderr.contains("--no-config"), "the way out is not said: {refused:?}");
}

#[tokio::test]
async fn taken_default_ports_are_replaced_by_free_ones() {
    // Where another program of this machine has a port already, it is taken as well.
    let _taken: Vec<_> = [8088, 50056].map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).into();
    let directory = tempfile::Builder::new().prefix("aegis-e2e-").tempdir().expect("a directory");
    let run = async |words: &'static [&'static str]| cli::run(directory.path(), words, &[], b"").await;
    run(&["up"]).await;
    let status = run(&["status"]).await.succeeded();
    let address = std::fs::read_to_string(directory.path().join("http.addr")).expect("the address");
    assert!(!address.trim().ends_with(":8088"), "{address}");
    assert!(status.contains(address.trim()), "{status}");
    let kept: Vec<_> = ["http.port", "cluster.port"]
        .map(|name| std::fs::read_to_string(directory.path().join(name)).expect("the port is recorded"))
        .into();
    run(&["stop"]).await.succeeded();
    run(&["up"]).await;
    for (name, port) in ["http.port", "cluster.port"].into_iter().zip(kept) {
        assert_eq!(std::fs::read_to_string(directory.path().join(name)).expect("it"), port, "{name} moved");
    }
    run(&["stop"]).await.succeeded();
}
