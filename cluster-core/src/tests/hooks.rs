//! Hooks that are told of ends, over failures and a restart.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use aegis_types::{
    error::ErrorCode,
    execution::request::{ExecutionRequest, Submitter},
    ids::HookName,
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::Value;

use super::{END_LIMIT, Node, ended, request};
use crate::core::Core;

type Received = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// Notes what it is sent, and refuses the first.
async fn receive(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mut received = received.lock().unwrap();
    received.push((headers, body));
    if received.len() == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }
}

async fn receiver() -> (String, Received) {
    let received = Received::default();
    let router = Router::new().route("/told", post(receive)).with_state(received.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/told", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await });
    (url, received)
}

async fn until(what: &str, is_met: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_met().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(END_LIMIT, waiting).await.is_ok(), "not met: {what}");
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

async fn run(core: &Core, script: &str, notify: &[&str]) -> String {
    let notify = notify.iter().map(|name| HookName::parse(*name).unwrap()).collect();
    let asked = ExecutionRequest { notify, ..request(script) };
    let id = core.submit(asked, Submitter::this_process()).await.unwrap().execution_id;
    ended(core, &id).await;
    id.to_string()
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn hooks_are_told_of_ends_until_they_take_them() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let (url, received) = receiver().await;
    let scratch = tempfile::tempdir().unwrap();
    let (key, told, flag) =
        (scratch.path().join("key"), scratch.path().join("told"), scratch.path().join("flag"));
    std::fs::write(&key, "a-key").unwrap();
    let script = format!("test -e {} && cat > {}", flag.display(), told.display());
    let hooks = format!(
        "runtime: {{ hooks: {{ web: {{ url: \"{url}\", secret: \"file:{}\" }}, \
         cmd: {{ command: [/bin/sh, -c, \"{script}\"], states: [failed], all: false }} }} }}",
        key.display()
    );
    // On a runtime of its own: its data directory is free when all of it has ended.
    let id = std::thread::scope(|scope| {
        let process = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let core = node.core_with(data.path(), &hooks).await;
                let unknown = vec![HookName::parse("none").unwrap()];
                let bad = ExecutionRequest { notify: unknown, ..request("true") };
                let error = core.submit(bad, Submitter::this_process()).await.unwrap_err();
                assert_eq!(error.code(), ErrorCode::InvalidArgument);
                assert!(error.message().contains("there are cmd, web"), "{}", error.message());
                let id = run(&core, "exit 3", &["cmd"]).await;
                let failed = "{hook=\"cmd\",outcome=\"failed\"}";
                until("the command has failed", async || core.metrics().await.unwrap().contains(failed))
                    .await;
                core.shutdown().await;
                id
            })
        });
        process.join().unwrap()
    });
    std::fs::write(&flag, "").unwrap();
    let core = node.core_with(data.path(), &hooks).await;
    until("the command is run again", async || std::fs::metadata(&told).is_ok_and(|told| told.len() > 0))
        .await;
    until("the webhook is told again", async || received.lock().unwrap().len() == 2).await;
    {
        let received = received.lock().unwrap();
        let header = |nth: usize, name: &str| received[nth].0[name].to_str().unwrap().to_owned();
        assert_eq!(header(0, "webhook-id"), format!("{id}.web"));
        assert_eq!(header(1, "webhook-id"), header(0, "webhook-id"), "a repetition can be told");
        assert!(header(1, "webhook-signature").starts_with("v1,"));
        let event: Value = serde_json::from_slice(&received[1].1).unwrap();
        assert_eq!(
            (&event["type"], &event["data"]["execution_id"]),
            (&"execution.failed".into(), &id.clone().into())
        );
        assert_eq!(event["data"]["exit_code"], 3);
    }
    until("the command's input is whole", async || {
        serde_json::from_slice::<Value>(&std::fs::read(&told).unwrap()).is_ok()
    })
    .await;
    assert_eq!(read(&told)["data"]["execution_id"], id);
    std::fs::remove_file(&told).unwrap();
    run(&core, "true", &["cmd"]).await;
    until("a success is told", async || received.lock().unwrap().len() == 3).await;
    let dropped = "{hook=\"cmd\",outcome=\"dropped\"}";
    until("a success is not for the command", async || core.metrics().await.unwrap().contains(dropped)).await;
    assert!(!told.exists());
    core.shutdown().await;
}
