//! The official clients, each on the same walk over one hybrid node: over stdio and over HTTP, in each era that
//! it speaks. The walks are scripts in `tests/clients`.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    cli::BINARY,
    controller::{Controller, Setup},
    npm,
    poll::within,
    testbed::python,
};

const LIMIT: Duration = Duration::from_secs(120);
/// Argument for the opening of a client, and the negotiated version.
const OLDER: (&str, &str) = ("legacy", "2025-11-25");
const NEWER: (&str, &str) = ("auto", "2026-07-28");

/// Results that every client must have seen, apart from the version.
fn expected() -> Value {
    json!({
        "peers": {"home": "active"},
        "execution": ["succeeded", 0, "hello"],
        "drain": ["needs_confirmation", "drained"],
        "while_drained": {"home": "draining"},
        "resumed": {"home": "active"},
        // An error, without structure, with words.
        "refused": [true, true, true],
        "prompt": true,
    })
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(name)
}

fn in_python(name: &str) -> Command {
    let mut command = Command::new(python());
    command.arg(script(name)).kill_on_drop(true);
    command
}

fn in_node(name: &str) -> Command {
    npm::script(&script(name))
}

async fn walks(client: impl Fn() -> Command, eras: &[(&str, &str)]) {
    let controller = Controller::start(&Setup::default()).await;
    let tools = controller.cli(&["tools"]).await.json();
    let names: Vec<&Value> =
        tools["tools"].as_array().expect("tools").iter().map(|tool| &tool["name"]).collect();
    let url = format!("http://{}/mcp", controller.address().expect("HTTP is served"));
    for &(era, version) in eras {
        for way in [json!({"command": BINARY}), json!({"url": url, "token": controller.token()})] {
            let mut task = way.clone();
            task["era"] = era.into();
            task["environment"] = json!({"AEGIS_DATA_DIR": controller.data});
            let walk = client().arg(task.to_string()).current_dir(&controller.data).output();
            let output = within("a walk", LIMIT, walk).await.expect("the client starts");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{version}: {stderr}");
            let seen: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let mut wanted = expected();
            wanted["protocol"] = version.into();
            wanted["tools"] = json!(names);
            assert_eq!(seen, wanted, "{version}: {stderr}");
        }
    }
}

#[tokio::test]
async fn the_python_sdk_walks() {
    walks(|| in_python("walk_mcp.py"), &[OLDER, NEWER]).await;
}

#[tokio::test]
async fn fastmcp_walks() {
    walks(|| in_python("walk_fastmcp.py"), &[OLDER, NEWER]).await;
}

#[tokio::test]
async fn the_typescript_sdk_v1_walks() {
    walks(|| in_node("walk_sdk_v1.mjs"), &[OLDER]).await;
}

#[tokio::test]
async fn the_typescript_sdk_v2_walks() {
    walks(|| in_node("walk_sdk_v2.mjs"), &[OLDER, NEWER]).await;
}
