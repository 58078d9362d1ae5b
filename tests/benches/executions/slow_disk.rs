//! Orders that a node takes on a disk whose syncs take 50 ms, its controller's database among them.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{
    line,
    support::{
        IMAGE,
        controller::{Controller, Setup},
        http,
        poll::until,
    },
};

const ORDERS: usize = 48;
const LIMIT: Duration = Duration::from_secs(120);

pub async fn run() {
    let directory = tempfile::tempdir().expect("a directory");
    let shim = directory.path().join("slow_sync.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/benches/executions/slow_sync.c");
    let arguments = ["-shared", "-fPIC", "-O2", "-o"];
    let built = Command::new("cc").args(arguments).arg(&shim).arg(source).arg("-ldl").status();
    assert!(built.expect("a C compiler").success());
    let floor = orders_a_second(Vec::new()).await;
    let preload = shim.to_str().expect("a path").to_owned();
    let ours = orders_a_second(vec![("LD_PRELOAD", preload)]).await;
    line(
        "",
        &format!("orders taken, {ORDERS} at once, 50 ms a sync"),
        &format!("{ours:.1}/s"),
        &format!("{floor:.1}/s"),
        &format!("{:.2}", ours / floor),
        ">= 10/s; the floor has no delay",
    );
}

async fn orders_a_second(environment: Vec<(&'static str, String)>) -> f64 {
    let controller = Controller::start(&Setup { id: "slow", environment, ..Setup::default() }).await;
    let socket = controller.data.join("api.sock");
    let begun = Instant::now();
    let submitting = stream::iter(0..ORDERS).map(|_| {
        let body =
            json!({ "image": IMAGE, "command": ["true"], "resources": { "cpu": 0.05, "memory_mb": 8 } });
        let socket = &socket;
        async move { http::post_unix(socket, "/v1/executions", &body).await.expect("an answer") }
    });
    submitting.buffer_unordered(ORDERS).for_each(async |_| {}).await;
    let states = async || {
        let list = controller.api(&format!("/v1/executions?limit={ORDERS}")).await.ok()?;
        let state = |execution: &Value| execution["state"].as_str().unwrap_or("").to_owned();
        Some(list["executions"].as_array()?.iter().map(state).collect::<Vec<_>>())
    };
    until("all orders are taken", LIMIT, async || {
        let waits = |state: &String| state == "pending" || state == "assigned";
        (!states().await?.iter().any(waits)).then_some(())
    })
    .await;
    let rate = ORDERS as f64 / begun.elapsed().as_secs_f64();
    until("all have ended", LIMIT, async || {
        states().await?.iter().all(|state| state == "succeeded").then_some(())
    })
    .await;
    rate
}
