//! A worker that a person starts by hand on this machine and that joins with an enrolment token.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::support::{
    IMAGE,
    cli::Answer,
    controller::{Controller, Setup, free_port},
    pair::Pair,
    poll::{until, within},
};

const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// A probe each 10 s, and its limit.
const FROZEN_LIMIT: Duration = Duration::from_secs(17);

fn worker(controller_port: u16, token: &str) -> Setup {
    let cluster = format!(
        "role: worker\n    cluster_grpc_port: {}\n    controller: {{endpoint: 'http://127.0.0.1:{controller_port}', token: '{token}'}}",
        free_port()
    );
    Setup { id: "by-hand", cluster, ..Setup::default() }
}

async fn status_of(controller: &Controller, node: &str) -> Option<String> {
    let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
    let nodes = peers["nodes"].as_array()?.clone();
    let found = nodes.into_iter().find(|known| known["node_id"] == node)?;
    found["status"].as_str().map(str::to_owned)
}

/// Finds one of two executions by each filter of the list.
async fn found_by_what_is_said_of_it(controller: &Controller) {
    let words =
        ["run", "--image", IMAGE, "--node", "by-hand", "--label", "pr=42", "--priority", "-3", "--", "false"];
    assert_eq!(controller.cli(&words).await.status, 1);
    let list = async |more: &[&str]| {
        let words = [&["executions", "list", "-o", "json"], more].concat();
        let list = controller.cli(&words).await.json();
        let shown = list["executions"].as_array().expect("a list");
        shown.iter().map(|view| view["state"].as_str().expect("a state").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(&["--node", "by-hand"]).await, ["failed", "succeeded"]);
    assert_eq!(list(&["--label", "pr=42", "--state", "failed", "--state", "running"]).await, ["failed"]);
    assert!(list(&["--label", "pr=4"]).await.is_empty());
    let page = controller.cli(&["executions", "list", "-o", "json", "--limit", "1"]).await.json();
    let next = page["next"].as_str().expect("more may follow");
    assert_eq!(list(&["--before", next]).await, ["succeeded"]);
    let shown = controller.cli(&["executions", "get", next, "-o", "json"]).await.json();
    assert_eq!(shown["spec"]["command"], json!(["false"]), "{shown}");
    assert_eq!((&shown["spec"]["priority"], &shown["labels"]), (&json!(-3), &json!(["pr=42"])), "{shown}");
    assert_eq!(shown["spec"]["resources"], json!({"cpu": 0.5, "memory_mb": 256}), "{shown}");
    let text = controller.cli(&["executions", "get", next]).await.succeeded();
    assert!(text.contains("command false") && text.contains("0.5 CPUs, 256 MiB memory"), "{text}");
    let gone = controller.cli(&["executions", "list", "--before", "exec-0000000000"]).await;
    assert!(gone.status != 0 && gone.stderr.contains("exec-0000000000"), "{gone:?}");
    let wrong = controller.cli(&["executions", "list", "--state", "done"]).await;
    assert!(wrong.status != 0 && wrong.stderr.contains("succeeded"), "{wrong:?}");
}

#[tokio::test]
async fn it_joins_by_its_token_once_and_comes_back_by_its_key() {
    let port = free_port();
    let setup = Setup { cluster: format!("role: hybrid\n    cluster_grpc_port: {port}"), ..Setup::default() };
    let mut controller = Controller::start(&setup).await;
    let words = ["node", "token", "create", "--node-id", "by-hand", "--ttl", "5m", "--output", "json"];
    let grant = controller.cli(&words).await.json();
    let token = grant["token"].as_str().expect("a token").to_owned();
    assert!(grant["expires_at"].is_string(), "{grant}");

    let mut worker = Controller::start(&worker(port, &token)).await;
    until("the worker is active", JOIN_LIMIT, async || {
        (status_of(&controller, "by-hand").await? == "active").then_some(())
    })
    .await;
    let run = ["run", "--image", IMAGE, "--node", "by-hand", "--", "sh", "-c", "echo on $AEGIS_NODE_ID"];
    assert_eq!(controller.cli(&run).await.succeeded(), "on by-hand\n");
    found_by_what_is_said_of_it(&controller).await;

    // Its goodbye is seen; its key alone brings it back, the token being spent.
    worker.stop().await;
    until("it is offline", JOIN_LIMIT, async || {
        (status_of(&controller, "by-hand").await? == "offline").then_some(())
    })
    .await;
    worker.start_again().await;
    until("it is active again", JOIN_LIMIT, async || {
        (status_of(&controller, "by-hand").await? == "active").then_some(())
    })
    .await;
    // Killed, both of them: the same.
    worker.kill();
    controller.kill();
    controller.start_again().await;
    worker.start_again().await;
    until("it is active after all were killed", JOIN_LIMIT, async || {
        (status_of(&controller, "by-hand").await? == "active").then_some(())
    })
    .await;
    assert_eq!(controller.cli(&run).await.succeeded(), "on by-hand\n");
    for (path, content) in controller.everything_written() {
        assert!(!crate::support::files::holds(&content, &token), "the token is in {}", path.display());
    }
}

#[tokio::test]
async fn a_token_made_up_or_of_another_node_admits_nobody() {
    let port = free_port();
    let setup = Setup { cluster: format!("role: hybrid\n    cluster_grpc_port: {port}"), ..Setup::default() };
    let controller = Controller::start(&setup).await;
    let words = ["node", "token", "create", "--node-id", "another", "--output", "json"];
    let token = controller.cli(&words).await.json()["token"].as_str().expect("a token").to_owned();
    for (bad, why) in [(token.as_str(), "EnrolmentInvalid"), ("made.up.token", "EnrolmentInvalid")] {
        let mut worker = Controller::prepare(&worker(port, bad));
        worker.launch();
        let health = until("the worker says why it is not let in", JOIN_LIMIT, async || {
            // It may be refused before it listens.
            let health = worker.api("/health").await.ok()?;
            let log = worker.log();
            (log.contains(why) || log.contains("enrolment")).then_some(health)
        })
        .await;
        assert_eq!(status_of(&controller, "by-hand").await, None);
        assert_eq!(health["ready"], json!(false), "{health}");
    }
}

/// Its kernel still takes connections for it.
#[tokio::test]
async fn a_frozen_worker_gets_no_new_work() {
    let Pair { controller, worker } = Pair::joined().await;
    let process = Pid::from_raw(worker.owner().expect("a daemon"));
    let problem = async || {
        let nodes = controller.cli(&["node", "peers", "--output", "json"]).await.json();
        let known = nodes["nodes"].as_array()?.iter().find(|known| known["node_id"] == "by-hand")?.clone();
        Some(known["problem"]["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(problem().await.as_deref(), Some(""));
    kill(process, Signal::SIGSTOP).expect("it runs");
    let told = until("it is seen to be frozen", FROZEN_LIMIT, async || {
        problem().await.filter(|problem| problem.contains("does not answer"))
    });
    told.await;
    let run = ["run", "--image", IMAGE, "--node", "by-hand", "--", "echo", "on"];
    let running = controller.cli(&run);
    let waits = until("the work waits for a node", FROZEN_LIMIT, async || {
        let listed = controller.api("/v1/executions").await.ok()?;
        let listed = listed["executions"].as_array()?.clone();
        listed.iter().any(|known| known["state"] == "pending").then_some(())
    });
    let (ended, ()): (Answer, ()) = tokio::join!(within("its end", JOIN_LIMIT, running), async {
        waits.await;
        kill(process, Signal::SIGCONT).expect("it is frozen");
    });
    assert_eq!(ended.succeeded(), "on\n");
}
