//! `aegis mcp` under faults: the daemon stops and returns, assistants leave, and lines are invalid.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use crate::support::{
    IMAGE,
    controller::{Controller, Setup},
    mcp::{Client, Era},
    poll::until,
    raw::{Pipe, discover, initialize, modern},
};

const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
const BACK_LIMIT: Duration = Duration::from_secs(30);

/// Opens as a client of this era does.
async fn open(controller: &Controller, era: Era) -> Pipe {
    let mut pipe = Pipe::open(controller);
    let opening = match era {
        Era::Session => initialize(),
        Era::Stateless => discover(),
    };
    let answer = pipe.ask(&opening).await;
    assert!(answer.get("result").is_some(), "{answer}");
    if matches!(era, Era::Session) {
        pipe.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    }
    pipe
}

fn call(era: Era, id: impl Into<Value>, tool: &str, arguments: &Value) -> Value {
    let mut meta = match era {
        Era::Session => json!({}),
        Era::Stateless => modern(),
    };
    meta["progressToken"] = "p".into();
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params":
        {"name": tool, "arguments": arguments, "_meta": meta}})
}

/// Submits an execution whose only node is drained, so that the execution and its followers wait.
async fn waiting_execution(controller: &Controller, pipe: &mut Pipe, era: Era) -> String {
    controller.cli(&["node", "drain", "home", "--wait"]).await.succeeded();
    let arguments = json!({"image": IMAGE, "target_tags": ["home"], "wait_seconds": 0});
    let answer = pipe.ask(&call(era, "submit", "submit_execution", &arguments)).await;
    let id = answer["result"]["structuredContent"]["execution_id"].as_str();
    id.unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
}

/// Begins to follow an execution, and returns when the daemon handles the request.
async fn follow(pipe: &mut Pipe, era: Era, id: &str, execution: &str, wait_seconds: u32) {
    let arguments = json!({"execution_id": execution, "wait_seconds": wait_seconds});
    pipe.send(&call(era, id, "get_execution", &arguments)).await;
    while pipe.message().await["method"] != "notifications/progress" {}
}

async fn state(pipe: &mut Pipe, era: Era, execution: &str) -> Value {
    let arguments = json!({ "execution_id": execution });
    let answer = pipe.ask(&call(era, "state", "get_execution", &arguments)).await;
    answer["result"]["structuredContent"]["state"].clone()
}

/// Reads up to the answer, which is of an ended execution. Returns the log messages before it.
async fn logged(pipe: &mut Pipe, request: &Value) -> Vec<Value> {
    pipe.send(request).await;
    let mut told = Vec::new();
    loop {
        let mut message = pipe.message().await;
        if message["id"] == request["id"] {
            assert_eq!(message["result"]["structuredContent"]["state"], "succeeded", "{message}");
            return told;
        }
        if message["method"] == "notifications/message" {
            told.push(message["params"].take());
        }
    }
}

#[tokio::test]
async fn steps_are_logged_on_request_and_after_a_kill() {
    let mut controller = Controller::start(&Setup::default()).await;
    let arguments = json!({"image": IMAGE, "command": ["true"], "wait_seconds": 30});
    for era in [Era::Session, Era::Stateless] {
        let mut pipe = open(&controller, era).await;
        let mut request = call(era, "silent", "submit_execution", &arguments);
        assert_eq!(logged(&mut pipe, &request).await, [] as [Value; 0]);
        match era {
            Era::Session => {
                let params = json!({"level": "info"});
                let asked =
                    json!({"jsonrpc": "2.0", "id": "l", "method": "logging/setLevel", "params": params});
                assert_eq!(pipe.ask(&asked).await["result"], json!({}));
            }
            Era::Stateless => {
                request["params"]["_meta"]["io.modelcontextprotocol/logLevel"] = "info".into();
            }
        }
        for id in ["before", "after"] {
            request["id"] = id.into();
            let told = logged(&mut pipe, &request).await;
            assert!(!told.is_empty());
            for note in told {
                assert_eq!((&note["level"], &note["logger"]), (&json!("info"), &json!("submit_execution")));
                assert!(note["data"].as_str().is_some_and(|words| !words.is_empty()), "{note}");
            }
            if id == "before" {
                controller.kill();
                controller.start_again().await;
            }
        }
        assert_eq!(pipe.close().await, 0);
    }
}

#[tokio::test]
async fn the_official_client_goes_on_after_a_kill_as_if_nothing_was() {
    let mut controller = Controller::start(&Setup::default()).await;
    for era in [Era::Session, Era::Stateless] {
        let mut client = Client::stdio(&controller, era, "pipe").await;
        let before = client.call("list_peers", json!({})).await;
        let owner = controller.owner();
        controller.kill();
        let after = client.call("list_peers", json!({})).await;
        assert_eq!(after["cluster_id"], before["cluster_id"], "the same node, with its configuration");
        assert_eq!(after["peers"][0]["node_id"], "home");
        assert!(!client.tool_names().await.is_empty());
        assert_ne!(controller.owner(), owner, "another process");
    }
}

#[tokio::test]
async fn call_cut_by_a_kill_gets_an_error_and_the_next_works() {
    let mut controller = Controller::start(&Setup::default()).await;
    for era in [Era::Session, Era::Stateless] {
        let mut pipe = open(&controller, era).await;
        let execution = waiting_execution(&controller, &mut pipe, era).await;
        follow(&mut pipe, era, "long", &execution, 45).await;
        controller.kill();
        let told = pipe.answer(&json!("long")).await;
        assert_eq!(told["result"]["isError"], true, "{told}");
        let text = told["result"]["content"][0]["text"].as_str().expect("text");
        assert!(text.contains("get_execution") && text.contains("idempotency_key"), "{text}");
        assert_eq!(state(&mut pipe, era, &execution).await, "pending");
        let (rest, status) = pipe.drain().await;
        assert!(rest.iter().all(|message| message["id"] != "long"), "a second answer: {rest:?}");
        assert_eq!(status, 0);
    }
}

#[tokio::test]
async fn stopped_by_a_person_it_is_started_again_by_the_next_request() {
    let controller = Controller::start(&Setup::default()).await;
    let mut pipe = open(&controller, Era::Session).await;
    let execution = waiting_execution(&controller, &mut pipe, Era::Session).await;
    for _ in 0..2 {
        follow(&mut pipe, Era::Session, "long", &execution, 45).await;
        let owner = controller.owner();
        controller.cli(&["stop"]).await.succeeded();
        // How it stood when the daemon ended, or that the daemon ended.
        let told = pipe.answer(&json!("long")).await;
        assert!(told.get("result").is_some(), "{told}");
        assert!(controller.api("/health").await.is_err(), "nobody asked for it");
        assert_eq!(state(&mut pipe, Era::Session, &execution).await, "pending");
        assert_ne!(controller.owner(), owner);
    }
    assert_eq!(pipe.close().await, 0);
}

#[tokio::test]
async fn several_assistants_share_the_one_daemon_that_comes_back() {
    let mut controller = Controller::start(&Setup::default()).await;
    let mut older = open(&controller, Era::Session).await;
    let mut newer = open(&controller, Era::Stateless).await;
    controller.kill();
    let (one, other) = (
        call(Era::Session, 7, "list_peers", &json!({})),
        call(Era::Stateless, "7", "list_peers", &json!({})),
    );
    let (one, other) = tokio::join!(older.ask(&one), newer.ask(&other));
    let cluster = |answer: &Value| answer["result"]["structuredContent"]["cluster_id"].clone();
    assert!(cluster(&one).is_string(), "{one}");
    assert_eq!(cluster(&one), cluster(&other));
    let owner = controller.owner();
    assert_eq!((older.close().await, newer.close().await), (0, 0));
    assert_eq!(controller.owner(), owner, "it lives on");
    assert_eq!(controller.api("/health").await.expect("it lives on")["ready"], true);
}

#[tokio::test]
async fn what_was_asked_before_the_end_of_input_is_answered() {
    let controller = Controller::start(&Setup::default()).await;
    let mut pipe = open(&controller, Era::Session).await;
    let execution = waiting_execution(&controller, &mut pipe, Era::Session).await;
    // Longer than the daemon itself waits for its last answers.
    follow(&mut pipe, Era::Session, "last", &execution, 7).await;
    // Without an end of the line.
    pipe.write(b"{\"jsonrpc\":\"2.0\",\"id\":8,\"method\":\"tools/list\"}").await;
    let (rest, status) = pipe.drain().await;
    let answered = |id: Value| rest.iter().filter(|message| message["id"] == id).count();
    assert_eq!((answered(json!("last")), answered(json!(8)), status), (1, 1, 0), "{rest:?}");
}

#[tokio::test]
async fn a_signal_ends_it_and_no_work() {
    let controller = Controller::start(&Setup::default()).await;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut pipe = open(&controller, Era::Session).await;
        let execution = waiting_execution(&controller, &mut pipe, Era::Session).await;
        follow(&mut pipe, Era::Session, "long", &execution, 45).await;
        pipe.signal(signal);
        assert_eq!(pipe.ended().await, 0, "{signal}");
        let mut next = open(&controller, Era::Session).await;
        assert_eq!(state(&mut next, Era::Session, &execution).await, "pending", "{signal}");
    }
}

#[tokio::test]
async fn nonsense_is_answered_and_what_comes_after_it_is_served() {
    let controller = Controller::start(&Setup::default()).await;
    let mut pipe = open(&controller, Era::Session).await;
    let long = vec![b'x'; LINE_BYTES_MAX + 1];
    for nonsense in [&b"hello"[..], b"{\"jsonrpc\":\"2.0\",\"id\":5,\"meth", b"\xff\xfe{}", &long] {
        pipe.write(nonsense).await;
        pipe.write(b"\n").await;
        let told = pipe.message().await;
        assert_eq!((&told["error"]["code"], &told["id"]), (&json!(-32700), &Value::Null), "{told}");
        let listed = pipe.ask(&json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"})).await;
        assert!(listed["result"]["tools"].is_array(), "{listed}");
    }
    let (rest, status) = pipe.drain().await;
    assert!(rest.is_empty() && status == 0, "{status}: {rest:?}");
}

#[tokio::test]
async fn a_closed_stdout_ends_it() {
    let controller = Controller::start(&Setup::default()).await;
    let pipe = open(&controller, Era::Session).await;
    let list = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"});
    assert_eq!(pipe.turn_away(&list).await, 0);
    assert_eq!(controller.api("/health").await.expect("it lives on")["ready"], true);
}

#[tokio::test]
async fn a_daemon_that_cannot_start_is_told_of_in_words_until_it_can() {
    let mut controller = Controller::start(&Setup::default()).await;
    let mut pipe = open(&controller, Era::Session).await;
    let good = std::fs::read_to_string(controller.config()).expect("the configuration");
    controller.kill();
    std::fs::write(controller.config(), "spec: nonsense\n").expect("the configuration");
    for id in [2, 3] {
        let told = pipe.ask(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/list"})).await;
        let words = told["error"]["message"].as_str().expect("an error");
        assert!(words.contains("ended at its start") && words.contains("What to do"), "{words}");
    }
    std::fs::write(controller.config(), good).expect("the configuration");
    let listed = pipe.ask(&json!({"jsonrpc": "2.0", "id": 4, "method": "tools/list"})).await;
    assert!(listed["result"]["tools"].is_array(), "{listed}");
    assert_eq!(pipe.close().await, 0);
}

#[tokio::test]
async fn a_newer_daemon_asks_for_a_new_connection_and_the_pipe_stays() {
    let mut controller = Controller::prepare(&Setup::default());
    let socket = controller.data.join("mcp.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let newer = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.write_all(b"{\"aegis\":\"99.0.0\",\"protocol\":99}\n").await.expect("it reads");
            // Until the other side has gone.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let mut pipe = Pipe::open(&controller);
    for id in [1, 2] {
        let mut opening = initialize();
        opening["id"] = id.into();
        let told = pipe.ask(&opening).await;
        let words = told["error"]["message"].as_str().expect("an error");
        assert!(words.contains("99.0.0") && words.contains("restart the assistant's connection"), "{words}");
    }
    newer.abort();
    controller.start_again().await;
    let answer = pipe.ask(&initialize()).await;
    assert_eq!(answer["result"]["serverInfo"]["name"], "aegis", "{answer}");
    assert_eq!(pipe.close().await, 0);
}

/// A supervisor may restart the daemon: the pipe of an idle assistant finds that daemon.
#[tokio::test]
async fn idle_assistant_leaves_the_start_to_the_supervisor() {
    let mut controller = Controller::start(&Setup::default()).await;
    let mut pipe = open(&controller, Era::Session).await;
    controller.kill();
    controller.start_again().await;
    let owner = controller.owner();
    let peers = until("the daemon is found again", BACK_LIMIT, async || {
        let answer = pipe.ask(&call(Era::Session, 9, "list_peers", &json!({}))).await;
        answer["result"]["structuredContent"]["peers"].as_array().cloned()
    })
    .await;
    assert_eq!(peers.len(), 1);
    assert_eq!(controller.owner(), owner);
}
