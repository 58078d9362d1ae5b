//! Layers that a controller pushes: to nodes that run, that were away, and that cannot take them.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    pair::Pair,
    poll::until,
};

const LIMIT: Duration = Duration::from_secs(30);

fn file(controller: &Controller, text: &str) -> PathBuf {
    let path = controller.data.with_file_name("layer.yaml");
    std::fs::write(&path, text).expect("the layer");
    path
}

/// Stores a layer and returns its version.
async fn push(controller: &Controller, target: &[&str], text: &str) -> String {
    let path = file(controller, text);
    let words = [&["config", "push", path.to_str().expect("UTF-8"), "--output", "json"], target].concat();
    let layer = controller.cli(&words).await.json();
    layer["version"].as_str().unwrap_or_else(|| panic!("no version: {layer}")).to_owned()
}

async fn node_config(controller: &Controller, node: &str) -> Value {
    controller.cli(&["config", "show", "--node", node, "--output", "json"]).await.json()
}

/// Waits until the node runs what it should, and returns that.
async fn settled(controller: &Controller, node: &str) -> Value {
    until("the node runs what it should", LIMIT, async || {
        let view = node_config(controller, node).await;
        (view["applied_version"].is_string() && view["applied_version"] == view["version"]).then_some(view)
    })
    .await
}

async fn await_tags(controller: &Controller, node: &str, tags: Value) {
    until("the tags are in the list of peers", LIMIT, async || {
        let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
        let nodes = peers["nodes"].as_array()?.clone();
        let found = nodes.into_iter().find(|known| known["node_id"] == node)?;
        (found["tags"] == tags).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_layer_reaches_nodes_that_run_and_the_file_wins() {
    let Pair { controller, worker } = Pair::joined().await;
    let version = push(&controller, &["--global"], "spec: {node: {tags: [pushed], region: eu}}").await;
    await_tags(&controller, "by-hand", json!(["pushed"])).await;
    let view = settled(&controller, "by-hand").await;
    assert_eq!((&view["version"], &view["layers"]), (&json!(version), &json!(["global"])), "{view:#}");
    // The controller's own node takes it too, below its own file.
    settled(&controller, "home").await;
    await_tags(&controller, "home", json!(["home"])).await;
    let own = controller.cli(&["config", "show", "--effective", "--output", "json"]).await.json();
    assert_eq!(own["effective"]["spec"]["node"]["region"], "eu", "{own:#}");
    assert_eq!(own["effective"]["spec"]["node"]["tags"], json!(["home"]), "{own:#}");

    // The log says more as soon as it is told to.
    push(&controller, &["--node", "by-hand"], "spec: {observability: {logging: {level: debug}}}").await;
    until("the worker's log is at debug", LIMIT, async || worker.log().contains("DEBUG").then_some(())).await;
    controller.cli(&["config", "remove", "--node", "by-hand"]).await.succeeded();

    // Tenant above global, node above tenant.
    push(&controller, &["--tenant", "acme"], "spec: {node: {tags: [acme], resources: {cpu_cores: 3}}}").await;
    let assign = ["config", "assign", "by-hand", "--tenant", "acme", "--output", "json"];
    assert_eq!(controller.cli(&assign).await.json()["tenant"], "acme");
    await_tags(&controller, "by-hand", json!(["acme"])).await;
    push(&controller, &["--node", "by-hand"], "spec: {node: {tags: [own-layer]}}").await;
    await_tags(&controller, "by-hand", json!(["own-layer"])).await;
    let view = settled(&controller, "by-hand").await;
    assert_eq!(view["layers"], json!(["global", "tenant/acme", "node/by-hand"]), "{view:#}");
    assert_eq!(
        view["merged"]["spec"]["node"],
        json!({"tags": ["own-layer"], "region": "eu", "resources": {"cpu_cores": 3}})
    );
    let shown = worker.cli(&["config", "show", "--effective", "--output", "json"]).await.json();
    assert_eq!(shown["version"], view["version"], "{shown:#}");
    assert!(!shown.to_string().contains(&worker_token(&worker)), "the enrolment token is shown");

    // Removed, each gives way to the one below it.
    controller.cli(&["config", "remove", "--node", "by-hand"]).await.succeeded();
    await_tags(&controller, "by-hand", json!(["acme"])).await;
    let layers = controller.cli(&["config", "layers", "--output", "json"]).await.json();
    let scopes: Vec<_> = layers["layers"].as_array().expect("layers").iter().map(|l| &l["scope"]).collect();
    assert_eq!(scopes, ["global", "tenant/acme"]);
}

fn worker_token(worker: &Controller) -> String {
    let text = std::fs::read_to_string(worker.config()).expect("the configuration");
    let (_, rest) = text.split_once("token: '").expect("a token");
    rest.split_once('\'').expect("its end").0.to_owned()
}

#[tokio::test]
async fn a_bad_layer_is_refused_by_its_path_and_nothing_changes() {
    let Pair { controller, worker: _worker } = Pair::joined().await;
    let version = push(&controller, &["--global"], "spec: {node: {tags: [good]}}").await;
    await_tags(&controller, "by-hand", json!(["good"])).await;
    for (bad, words) in [
        ("spec: {node: {tags: many}}", ["spec.node.tags", "invalid type"]),
        ("spec: {node: {tag: [a]}}", ["spec.node.tag", "tags"]),
        ("spec: {node: {id: other}}", ["spec.node.id", "cannot be pushed"]),
        ("spec: {cluster: {role: controller}}", ["spec.cluster.role", "cannot be pushed"]),
        ("spec: {cluster: {heartbeat_interval_secs: 3600}}", ["heartbeat_interval_secs", "unhealthy"]),
        ("spec: {cluster: {token_refresh_margin_secs: 4000}}", ["token_refresh_margin_secs", "1800"]),
        ("spec: {llm_providers: [{api_key: sk-very-secret}]}", ["api_key", "env:NAME"]),
    ] {
        let path = file(&controller, bad);
        let answer = controller.cli(&["config", "push", "--global", path.to_str().expect("UTF-8")]).await;
        assert_ne!(answer.status, 0, "{bad}");
        for word in words {
            assert!(answer.stderr.contains(word), "{bad}: \"{word}\" is not in {}", answer.stderr);
        }
        assert!(!answer.stderr.contains("sk-very-secret"), "{}", answer.stderr);
    }
    let path = file(&controller, "spec: {node: {tags: [newer]}}");
    let path = path.to_str().expect("UTF-8");
    let stale = ["config", "push", "--global", path, "--if-version", "0123456789ab"];
    let answer = controller.cli(&stale).await;
    assert!(answer.stderr.contains(&version), "the version there is: {answer:?}");
    let unknown = controller.cli(&["config", "push", "--node", "nobody", path]).await;
    assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
    let view = settled(&controller, "by-hand").await;
    assert_eq!((&view["version"], &view["error"]), (&json!(version), &Value::Null), "{view:#}");
    await_tags(&controller, "by-hand", json!(["good"])).await;
    for (path, content) in controller.everything_written() {
        if path.file_name().is_some_and(|name| name != "layer.yaml") {
            assert!(!crate::support::files::holds(&content, "sk-very-secret"), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn absent_node_catches_up_even_after_controller_was_killed() {
    let Pair { mut controller, mut worker } = Pair::joined().await;
    worker.stop().await;
    push(&controller, &["--global"], "spec: {node: {tags: [while-away]}}").await;
    worker.launch();
    await_tags(&controller, "by-hand", json!(["while-away"])).await;

    // Killed before it could acknowledge: the command outlives both.
    worker.kill();
    let version = push(&controller, &["--node", "by-hand"], "spec: {node: {tags: [after]}}").await;
    controller.kill();
    controller.start_again().await;
    let waiting = node_config(&controller, "by-hand").await;
    assert_ne!(waiting["applied_version"], waiting["version"], "{waiting:#}");
    worker.launch();
    await_tags(&controller, "by-hand", json!(["after"])).await;
    let view = settled(&controller, "by-hand").await;
    assert_eq!(view["version"], json!(version), "the node's layer hides the global one's only key");

    // What it keeps is there at its next start, without its controller.
    controller.stop().await;
    worker.stop().await;
    worker.launch();
    let shown = until("the worker answers", LIMIT, async || {
        let shown = worker.cli(&["config", "show", "--effective", "--output", "json"]).await;
        (shown.status == 0).then(|| shown.json())
    })
    .await;
    assert_eq!(shown["effective"]["spec"]["node"]["tags"], json!(["after"]), "{shown:#}");
}

#[tokio::test]
async fn a_damaged_kept_configuration_does_not_stop_a_worker() {
    let Pair { controller, mut worker } = Pair::joined().await;
    push(&controller, &["--global"], "spec: {node: {tags: [kept]}}").await;
    await_tags(&controller, "by-hand", json!(["kept"])).await;
    let kept = worker.data.join("pushed-config.json");
    worker.stop().await;
    for damaged in ["{", r#"{"json": {"spec": {"later": 1}}, "version": "0123456789ab"}"#] {
        std::fs::write(&kept, damaged).expect("the file");
        worker.launch();
        settled(&controller, "by-hand").await;
        await_tags(&controller, "by-hand", json!(["kept"])).await;
        // What the controller shows of it may still be from before.
        until("it says so", LIMIT, async || {
            worker.log().contains("starts with its file alone").then_some(())
        })
        .await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn layers_are_read_by_all_and_changed_by_people() {
    let controller = Controller::start(&Setup::default()).await;
    let address = controller.address().expect("HTTP is served");
    let token = format!("Bearer {}", controller.token());
    let headers =
        [("host", address.as_str()), ("authorization", &token), ("content-type", "application/json")];
    let body = json!({"config": {"spec": {"node": {"tags": ["a"]}}}}).to_string();
    for (method, path, status) in [
        (http::Method::GET, "/v1/config/layers", 200),
        (http::Method::GET, "/v1/config/layers/global", 404),
        (http::Method::GET, "/v1/cluster/nodes/home/config", 200),
        (http::Method::GET, "/v1/cluster/token-keys", 200),
        (http::Method::PUT, "/v1/config/layers/global", 405),
        (http::Method::DELETE, "/v1/config/layers/global", 405),
        (http::Method::PUT, "/v1/cluster/nodes/home/tenant", 404),
        (http::Method::POST, "/v1/cluster/token-keys/rotate", 404),
        (http::Method::GET, "/v1/config", 404),
    ] {
        let reply = crate::support::http::send(&address, method.clone(), path, &headers, &body).await;
        assert_eq!(reply.status.as_u16(), status, "{method} {path}: {}", reply.body);
    }
}
