//! The protocol itself: both eras, on both transports, and the list of tools.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    http::{Reply, send},
    mcp::{Client, Era},
    raw::{Pipe, discover, initialize, modern},
};

const TOOLS_JSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools.json");

fn manifest() -> Value {
    let text = std::fs::read_to_string(TOOLS_JSON).expect("tools.json");
    serde_json::from_str(&text).expect("JSON")
}

async fn post(controller: &Controller, message: &Value, more: &[(&str, &str)]) -> Reply {
    let address = controller.address().expect("HTTP is served");
    let token = format!("Bearer {}", controller.token());
    let headers = [
        ("host", address.as_str()),
        ("authorization", &token),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ];
    send(&address, Method::POST, "/mcp", &[&headers, more].concat(), &message.to_string()).await
}

fn assert_front_page(result: &Value) {
    let instructions = result["instructions"].as_str().expect("instructions");
    assert!(instructions.len() <= 2048 && instructions.contains("deploy_edge_node"), "{instructions}");
}

#[tokio::test]
async fn both_eras_over_stdio_each_by_its_own_opening() {
    let controller = Controller::start(&Setup::default()).await;
    let mut older = Pipe::open(&controller);
    let answer = older.ask(&initialize()).await;
    assert_eq!(answer["result"]["protocolVersion"], "2025-06-18", "{answer}");
    assert_front_page(&answer["result"]);
    older.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    let listed = older.ask(&json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"})).await;
    assert_eq!(listed["result"]["tools"], manifest()["tools"]);

    let mut newer = Pipe::open(&controller);
    let answer = newer.ask(&discover()).await;
    assert!(answer["result"]["supportedVersions"].to_string().contains("2026-07-28"), "{answer}");
    assert_front_page(&answer["result"]);
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"_meta": modern()}});
    let listed = newer.ask(&list).await;
    assert_eq!(listed["result"]["tools"], manifest()["tools"]);
    assert!(listed["result"]["ttlMs"].as_u64().is_some_and(|ttl| ttl > 0), "{}", listed["result"]["ttlMs"]);

    // Two assistants at once, and each leaves without a fuss.
    assert_eq!((older.close().await, newer.close().await), (0, 0));
    assert_eq!(controller.api("/health").await.expect("it lives on")["ready"], true);
}

#[tokio::test]
async fn both_eras_over_http_on_one_address() {
    let controller = Controller::start(&Setup::default()).await;
    let reply = post(&controller, &initialize(), &[]).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    assert_eq!(reply.message()["result"]["protocolVersion"], "2025-06-18");
    assert!(reply.headers.contains_key("mcp-session-id"), "{:?}", reply.headers);

    let version = ("mcp-protocol-version", "2026-07-28");
    let reply = post(&controller, &discover(), &[version, ("mcp-method", "server/discover")]).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    assert!(reply.message()["result"]["supportedVersions"].to_string().contains("2026-07-28"));
    assert!(!reply.headers.contains_key("mcp-session-id"), "the newer era has no sessions");
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"_meta": modern()}});
    let reply = post(&controller, &list, &[version, ("mcp-method", "tools/list")]).await;
    assert_eq!(reply.message()["result"]["tools"], manifest()["tools"]);

    // What the header says and what the body says must be one.
    let reply = post(&controller, &list, &[version, ("mcp-method", "tools/call")]).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.body);
    let reply = post(&controller, &list, &[("mcp-protocol-version", "1999-01-01")]).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.body);
}

#[tokio::test]
async fn waits_are_bounded_and_no_tool_is_made_up() {
    let controller = Controller::start(&Setup::default()).await;
    let mut client = Client::stdio(&controller, Era::Session, "alone").await;
    let names: Vec<String> = serde_json::from_value(
        manifest()["tools"].as_array().expect("tools").iter().map(|tool| tool["name"].clone()).collect(),
    )
    .expect("names");
    assert_eq!(client.tool_names().await, names);
    for (tool, arguments) in [
        ("deploy_edge_node", json!({"host": "10.0.0.1", "wait_seconds": 46})),
        ("get_deployment_status", json!({"deployment_id": "comet-edge-node-1-1", "wait_seconds": 46})),
        ("submit_execution", json!({"image": "busybox", "wait_seconds": 46})),
        ("get_execution", json!({"execution_id": "x", "wait_seconds": 46})),
        ("drain_node", json!({"node_id": "home", "wait_seconds": 3600})),
        ("get_execution", json!({"execution_id": "x", "wait_seconds": -1})),
    ] {
        let text = client.refused(tool, arguments).await;
        assert!(text.contains("wait_seconds"), "{tool}: {text}");
    }
    let mut pipe = Pipe::open(&controller);
    pipe.ask(&initialize()).await;
    pipe.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    let call = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "rm_rf"}});
    let answer = pipe.ask(&call).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
}

#[tokio::test]
async fn an_assistant_alone_starts_the_daemon_and_leaves_it_running() {
    let controller = Controller::prepare(&Setup::default());
    // As it would be without anybody's configuration, but for the port, which another may have.
    let mut pipe = Pipe::open_with(&controller, &[("AEGIS_PORT", "0"), ("HOME", "/nonexistent")]);
    let answer = pipe.ask(&initialize()).await;
    assert_eq!(answer["result"]["serverInfo"]["name"], "aegis", "{answer}");
    assert_eq!(pipe.close().await, 0);
    let health = controller.api("/health").await.expect("it lives on");
    assert_eq!(health["ready"], true, "{health}");
    let second = Pipe::open(&controller);
    assert_eq!(second.close().await, 0);
    controller.cli(&["stop"]).await.succeeded();
    assert!(controller.api("/health").await.is_err(), "it answers after its end");
}
