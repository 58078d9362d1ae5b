//! Parts of a fleet are taken away while executions run: what their callers are told, what may begin again,
//! and what is left behind. Each test has a fleet of its own.

mod away;
mod disk;
mod engine;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    mcp::Client,
    poll::until,
    work::{id_of, statuses},
};

/// A host that boots, its engine that starts the node, and the link's longest pause between tries.
const BACK_LIMIT: Duration = Duration::from_secs(90);

async fn submit(client: &mut Client, arguments: Value) -> String {
    id_of(&client.call("submit_execution", arguments).await, "execution_id")
}

async fn view(client: &mut Client, execution_id: &str) -> Value {
    client.call("get_execution", json!({ "execution_id": execution_id })).await
}

/// Waits for this state in this attempt.
async fn becomes(client: &mut Client, execution_id: &str, state: &str, attempt: u32) -> Value {
    until(&format!("{execution_id} is {state} in attempt {attempt}"), BACK_LIMIT, async || {
        let view = view(client, execution_id).await;
        (view["state"] == state && view["attempt"] == attempt).then_some(view)
    })
    .await
}

/// Submitted, and running.
async fn begin(client: &mut Client, arguments: Value) -> String {
    let id = submit(client, arguments).await;
    becomes(client, &id, "running", 1).await;
    id
}

async fn all_are_active(client: &mut Client) {
    until("the nodes are active", BACK_LIMIT, async || {
        statuses(client).await.values().all(|status| status == "active").then_some(())
    })
    .await;
}
