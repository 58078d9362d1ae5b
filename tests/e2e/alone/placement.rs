//! Placement of executions when a node rejects or fails them, on a controller and a worker of this machine.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{IMAGE, controller::Controller, engine_proxy::broken_engine, pair::Pair};

async fn submit(controller: &Controller, more: Value) -> Value {
    let mut request = json!({ "image": IMAGE, "command": ["true"], "timeout_seconds": 60 });
    let more = more.as_object().expect("an object").clone();
    request.as_object_mut().expect("an object").extend(more);
    controller.post("/v1/executions", &request).await.expect("accepted")
}

async fn ended(controller: &Controller, submitted: &Value) -> Value {
    let id = submitted["execution_id"].as_str().expect("an id");
    crate::support::poll::until("it has ended", std::time::Duration::from_secs(60), async || {
        let view = controller.api(&format!("/v1/executions/{id}")).await.ok()?;
        matches!(view["state"].as_str()?, "succeeded" | "failed" | "cancelled").then_some(view)
    })
    .await
}

async fn run(controller: &Controller, more: Value) -> Value {
    let submitted = submit(controller, more).await;
    ended(controller, &submitted).await
}

#[tokio::test]
async fn refusal_or_missing_image_tries_the_next_node() {
    let Pair { controller, worker: _worker } =
        Pair::joined_with("{policy: {max_timeout_seconds: 7200}}", "{policy: {allowed_images: ['none/*']}}")
            .await;
    let all = join_all((0..6).map(|_| run(&controller, json!({})))).await;
    for view in &all {
        assert_eq!((&view["state"], &view["node_id"]), (&json!("succeeded"), &json!("home")), "{view}");
    }
    // The policy of one and the missing image of the other: the first reason is told.
    let absent = json!({ "image": "localhost:1/absent:1", "timeout_seconds": 60, "node_id": "home" });
    let view = run(&controller, absent).await;
    assert_eq!(
        (&view["state"], &view["failure"]["code"]),
        (&json!("failed"), &json!("ImageNotFound")),
        "{view}"
    );
    let view = run(&controller, json!({ "image": "localhost:1/absent:1" })).await;
    assert_eq!(view["state"], "failed", "{view}");
    let code = view["failure"]["code"].as_str().expect("a code");
    assert!(matches!(code, "Forbidden" | "ImageNotFound"), "{view}");
    // A pin leaves one node that fits.
    let view = run(&controller, json!({ "node_id": "by-hand" })).await;
    assert_eq!((&view["state"], &view["failure"]["code"]), (&json!("failed"), &json!("Forbidden")), "{view}");
}

#[tokio::test]
async fn broken_engine_does_not_take_the_work_of_a_healthy_node() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = broken_engine(directory.path());
    let runtime: &'static str = format!("{{docker_socket_path: '{}'}}", socket.display()).leak();
    let Pair { controller, worker: _worker } = Pair::joined_with("{}", runtime).await;
    // In turn: the second goes to the broken node, and begins again on the healthy one.
    for round in 0..4 {
        let view = run(&controller, json!({ "max_attempts": 2 })).await;
        assert_eq!(
            (&view["state"], &view["node_id"]),
            (&json!("succeeded"), &json!("home")),
            "{round}: {view}"
        );
    }
    let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
    let nodes = peers["nodes"].as_array().expect("nodes");
    let broken = nodes.iter().find(|node| node["node_id"] == "by-hand").expect("the worker");
    assert_eq!(broken["problem"]["code"], "Engine", "{broken}");
    assert!(
        broken["problem"]["message"].as_str().is_some_and(|text| text.contains("hook failed")),
        "{broken}"
    );
    // A cluster's only fitting node is used once its pause is over.
    let view = run(&controller, json!({ "node_id": "by-hand" })).await;
    assert_eq!((&view["state"], &view["failure"]["code"]), (&json!("failed"), &json!("Engine")), "{view}");
}

#[tokio::test]
async fn no_execution_of_a_burst_waits_when_it_must_not() {
    let Pair { controller, worker: _worker } = Pair::joined_with("{}", "{}").await;
    let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
    let memory = peers["nodes"][0]["capacity"]["memory_mb"].as_u64().expect("memory") * 2 / 3;
    let slow = json!({
        "command": ["sleep", "20"], "queue": false, "resources": { "memory_mb": memory, "cpu": 0.05 }
    });
    let request = async |_: usize| {
        let mut request = slow.clone();
        request["image"] = json!(IMAGE);
        controller.post("/v1/executions", &request).await
    };
    let answers = join_all((0..8).map(request)).await;
    let accepted: Vec<Value> = answers.into_iter().filter_map(Result::ok).collect();
    let views = join_all(accepted.iter().map(async |submitted| {
        let id = submitted["execution_id"].as_str().expect("an id").to_owned();
        crate::support::poll::until("it runs or failed", std::time::Duration::from_secs(30), async || {
            let view = controller.api(&format!("/v1/executions/{id}")).await.ok()?;
            matches!(view["state"].as_str()?, "running" | "failed").then_some(view)
        })
        .await
    }))
    .await;
    let running = views.iter().filter(|view| view["state"] == "running").count();
    assert_eq!(running, 2, "{views:?}");
    let failed = views.iter().filter(|view| view["state"] == "failed");
    assert!(failed.clone().all(|view| view["failure"]["code"] == "NoNodeFits"), "{views:?}");
}
