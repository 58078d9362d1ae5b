//! Configuration files and the daemon's life, from the command line.

use serde_json::json;

use crate::support::{
    cli,
    controller::{Controller, Setup},
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
