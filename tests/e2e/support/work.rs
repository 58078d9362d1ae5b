//! Common MCP operations of several tests: deploy, run, read to the end.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    IMAGE,
    mcp::Client,
    poll::{until, within},
    testbed::Host,
};

pub const DEPLOY_LIMIT: Duration = Duration::from_secs(120);
pub const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait of a call.
const WAIT_SECONDS: u64 = 45;

/// Returns the arguments to deploy this project's own worker to this host.
pub fn deployment_of(host: &Host, identity: &str, tags: &[&str]) -> Value {
    json!({
        "host": host.ip,
        "ssh_port": host.port,
        "ssh_user": host.user,
        "ssh_key_path": host.key(),
        "identity": identity,
        "tags": tags,
        "services": "node",
        "wait_seconds": 0,
    })
}

/// Returns the arguments with changes; null removes an argument.
pub fn with(mut arguments: Value, changes: Value) -> Value {
    let object = arguments.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(object.remove(name)),
            value => drop(object.insert(name.clone(), value.clone())),
        }
    }
    arguments
}

pub fn id_of(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

/// Follows a deployment to its end, step by step.
pub async fn follow(client: &mut Client, deployment_id: &str) -> Value {
    let followed = async {
        let mut since = 0;
        loop {
            let arguments = json!({
                "deployment_id": deployment_id, "since_event": since, "wait_seconds": WAIT_SECONDS
            });
            let view = client.call("get_deployment_status", arguments).await;
            if !matches!(view["state"].as_str(), Some("planned" | "running")) {
                return view;
            }
            since = view["event"].as_u64().expect("a number of the event");
        }
    };
    within("the end of a deployment", DEPLOY_LIMIT, followed).await
}

pub async fn deploy(client: &mut Client, arguments: Value) -> Value {
    let started = client.call("deploy_edge_node", arguments).await;
    follow(client, &id_of(&started, "deployment_id")).await
}

pub async fn deploy_ready(client: &mut Client, arguments: Value) -> Value {
    let view = deploy(client, arguments).await;
    assert_eq!(view["state"], "ready", "{view:#}");
    view
}

/// Returns the arguments of a shell script as an execution.
pub fn script(text: &str, target_tags: &[&str]) -> Value {
    json!({
        "image": IMAGE,
        "command": ["sh", "-c", text],
        "target_tags": target_tags,
        "wait_seconds": 0,
    })
}

/// Returns a script that writes `line 1` to `line N`, two a second, then exits with this code.
pub fn counting(lines: u32, exit_code: u32) -> String {
    format!("i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.5; done; exit {exit_code}")
}

pub fn counted(lines: u32) -> String {
    (1..=lines).map(|number| format!("line {number}\n")).collect()
}

/// Final view of an execution, with its whole output.
#[derive(Debug)]
pub struct Ended {
    pub view: Value,
    pub stdout: String,
    pub stderr: String,
}

/// Reads an execution page by page until it has ended and all is read.
pub async fn read_to_end(client: &mut Client, execution_id: &str) -> Ended {
    let read = async {
        let (mut stdout, mut stderr, mut after) = (String::new(), String::new(), 0);
        loop {
            let arguments = json!({
                "execution_id": execution_id, "after_sequence": after, "wait_seconds": WAIT_SECONDS
            });
            let view = client.call("get_execution", arguments).await;
            stdout.push_str(view["output"]["stdout"].as_str().unwrap_or_default());
            stderr.push_str(view["output"]["stderr"].as_str().unwrap_or_default());
            after = view["next_after_sequence"].as_u64().expect("a number");
            let ended = matches!(view["state"].as_str(), Some("succeeded" | "failed" | "cancelled" | "lost"));
            if ended && view["has_more"] == false {
                return Ended { view, stdout, stderr };
            }
        }
    };
    within("the end of an execution", RUN_LIMIT, read).await
}

pub async fn run(client: &mut Client, arguments: Value) -> Ended {
    let started = client.call("submit_execution", arguments).await;
    read_to_end(client, &id_of(&started, "execution_id")).await
}

/// Submits an execution that no node can run now. Returns its id and the reason of its wait.
pub async fn wait_for_a_node(client: &mut Client, arguments: Value) -> (String, String) {
    let started = client.call("submit_execution", arguments).await;
    let id = id_of(&started, "execution_id");
    let why = until("it says why it waits", RUN_LIMIT, async || {
        let view = client.call("get_execution", json!({"execution_id": id})).await;
        assert_eq!(view["state"], "pending", "{view}");
        view["waiting"].as_str().map(str::to_owned)
    })
    .await;
    (id, why)
}

/// Returns `list_peers` as a map from node id to status.
pub async fn statuses(client: &mut Client) -> std::collections::BTreeMap<String, String> {
    let peers = client.call("list_peers", json!({})).await;
    let peers = peers["peers"].as_array().expect("a list").iter();
    peers.map(|peer| (id_of(peer, "node_id"), id_of(peer, "status"))).collect()
}
