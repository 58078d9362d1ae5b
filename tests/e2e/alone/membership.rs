//! A machine's way into a cluster and out of it, by hand: init, join, a new key, shutdown, leave, remove.

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::Value;

use crate::support::{
    cli::BINARY,
    controller::{Controller, Setup, free_port},
    poll::until,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A machine whose daemon the command line starts; it is stopped whatever becomes of the test.
struct Machine(Controller);

impl std::ops::Deref for Machine {
    type Target = Controller;
    fn deref(&self) -> &Controller {
        &self.0
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new(BINARY).arg("stop").env("AEGIS_DATA_DIR", &self.0.data).output();
    }
}

fn home(port: u16) -> Setup {
    Setup { cluster: format!("role: hybrid\n    cluster_grpc_port: {port}"), ..Setup::default() }
}

async fn token_file(controller: &Controller, node: &str) -> (PathBuf, String) {
    let words = ["node", "token", "create", "--node-id", node, "--output", "json"];
    let grant = controller.cli(&words).await.json();
    let path = controller.data.with_file_name(format!("{node}.token"));
    std::fs::write(&path, grant["token"].as_str().expect("a token")).expect("a file");
    (path, grant["controller_endpoint"].as_str().expect("an endpoint").to_owned())
}

async fn status_of(controller: &Controller, node: &str) -> Option<String> {
    let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
    let found = peers["nodes"].as_array()?.iter().find(|known| known["node_id"] == node)?.clone();
    found["status"].as_str().map(str::to_owned)
}

async fn becomes(controller: &Controller, node: &str, status: Option<&str>) {
    until(&format!("{node} is {status:?}"), LIMIT, async || {
        (status_of(controller, node).await.as_deref() == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_machine_joins_changes_its_key_and_leaves_by_hand() {
    let controller = Controller::start(&home(free_port())).await;
    let (token, endpoint) = token_file(&controller, "by-hand").await;
    let machine = Machine(Controller::prepare(&Setup::default()));
    let token_path = token.to_str().expect("UTF-8");
    // Ports of its own, as a second node on one machine needs them.
    let environment = [("AEGIS_PORT", "0")];
    let join = ["node", "join", &endpoint, "--token-file", token_path, "--id", "by-hand", "--tag", "desk"];
    let joined = machine.cli_with(&join, &environment).await;
    assert!(joined.succeeded().contains("by-hand has joined"));
    becomes(&controller, "by-hand", Some("active")).await;
    // Its health from end to end, with an exit status.
    machine.cli(&["status", "--cluster"]).await.succeeded();
    controller.cli(&["status", "--cluster"]).await.succeeded();

    let key = std::fs::read(machine.data.join("node-keypair.pem")).expect("its key");
    machine.cli(&["node", "rotate-key"]).await.succeeded();
    assert_ne!(std::fs::read(machine.data.join("node-keypair.pem")).expect("its key"), key);
    becomes(&controller, "by-hand", Some("active")).await;
    machine.cli(&["stop"]).await.succeeded();
    becomes(&controller, "by-hand", Some("offline")).await;
    let ill = controller.cli(&["status", "--cluster"]).await;
    assert!(ill.failed().contains("node by-hand: offline"), "{ill:?}");

    let config = machine.data.join("aegis-config.yaml");
    let up = ["up", "--config", config.to_str().expect("UTF-8")];
    machine.cli_with(&up, &environment).await.succeeded();
    becomes(&controller, "by-hand", Some("active")).await;
    assert!(machine.cli(&["node", "leave"]).await.succeeded().contains("has left"));
    becomes(&controller, "by-hand", None).await;
    until("its daemon has ended", LIMIT, async || {
        machine.cli(&["status"]).await.failed().contains("no aegis daemon").then_some(())
    })
    .await;

    // Its key alone does not bring it back.
    assert!(machine.cli_with(&up, &environment).await.failed().contains("not ready"));
    until("it is told that it was removed", LIMIT, async || {
        machine.cli(&["status"]).await.succeeded().contains("was removed").then_some(())
    })
    .await;
    machine.cli(&["stop"]).await.succeeded();
    let story = controller.text("/v1/cluster/events", |text| text.contains("NodeRemoved")).await;
    let events =
        story.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data:")?).ok());
    let kinds: Vec<_> = events
        .filter(|event| event["node_id"] == "by-hand")
        .map(|event| event["kind"].as_str().unwrap_or_default().to_owned())
        .collect();
    let expected = ["NodeJoined", "NodeOffline", "NodeRecovered", "NodeRemoved"];
    assert_eq!(kinds, expected, "{story}");
}

#[tokio::test]
async fn a_node_is_shut_down_and_removed_from_afar() {
    let controller = Controller::start(&home(free_port())).await;
    let (token, endpoint) = token_file(&controller, "afar").await;
    let machine = Machine(Controller::prepare(&Setup::default()));
    let environment = [("AEGIS_PORT", "0")];
    let token_path = token.to_str().expect("UTF-8");
    let join = ["node", "join", &endpoint, "--token-file", token_path, "--id", "afar"];
    machine.cli_with(&join, &environment).await.succeeded();
    becomes(&controller, "afar", Some("active")).await;

    controller.cli(&["node", "shutdown", "afar"]).await.succeeded();
    becomes(&controller, "afar", Some("offline")).await;
    until("its daemon has ended", LIMIT, async || {
        machine.cli(&["status"]).await.failed().contains("no aegis daemon").then_some(())
    })
    .await;
    let config = machine.data.join("aegis-config.yaml");
    machine.cli_with(&["up", "--config", config.to_str().expect("UTF-8")], &environment).await.succeeded();
    becomes(&controller, "afar", Some("active")).await;

    assert!(controller.cli(&["node", "remove", "afar"]).await.succeeded().contains("is removed"));
    assert_eq!(status_of(&controller, "afar").await, None);
    machine.cli(&["stop"]).await.succeeded();

    // What was counted meanwhile.
    let metrics = controller.text("/metrics", |text| text.ends_with("# EOF\n")).await;
    assert!(metrics.contains("aegis_node_events_total{kind=\"NodeRemoved\"} 1"), "{metrics}");
    assert!(metrics.contains("aegis_part_up{part=\"database\"} 1") && metrics.ends_with("# EOF\n"));
}

#[tokio::test]
async fn init_writes_a_file_that_loads_and_overwrites_nothing() {
    let machine = Machine(Controller::prepare(&Setup::default()));
    let init = ["node", "init", "--role", "controller", "--id", "ctrl", "--tag", "primary"];
    machine.cli(&init).await.succeeded();
    let path = machine.data.join("aegis-config.yaml");
    let checked = machine.cli(&["config", "check", path.to_str().expect("UTF-8")]).await;
    checked.succeeded();
    let again = machine.cli(&init).await;
    assert!(again.failed().contains("is there already"), "{again:?}");
    let bad = machine.cli(&["node", "init", "--role", "worker"]).await;
    assert!(bad.failed().contains("--controller"), "{bad:?}");
    // A file that is there is somebody's: joining does not take its place either.
    let before = std::fs::read(&path).expect("the file");
    let token = machine.data.with_file_name("some.token");
    let made_up = format!("{}.{}.none", "ab".repeat(8), "A".repeat(43));
    std::fs::write(&token, made_up).expect("a file");
    let join = ["node", "join", "http://127.0.0.1:1", "--token-file", token.to_str().expect("UTF-8")];
    assert!(machine.cli(&join).await.failed().contains("is there already"));
    assert_eq!(std::fs::read(&path).expect("the file"), before);
    let nothing = machine.cli(&["node", "join", "http://127.0.0.1:1"]).await;
    assert!(nothing.failed().contains("no enrolment token was given"), "{nothing:?}");
}

#[tokio::test]
async fn another_controller_is_joined_by_the_operators_word_alone() {
    let (first, second) =
        (Controller::start(&home(free_port())).await, Controller::start(&home(free_port())).await);
    let machine = Machine(Controller::prepare(&Setup::default()));
    let environment = [("AEGIS_PORT", "0")];
    let (token, endpoint) = token_file(&first, "wanderer").await;
    let join =
        ["node", "join", &endpoint, "--token-file", token.to_str().expect("UTF-8"), "--id", "wanderer"];
    machine.cli_with(&join, &environment).await.succeeded();
    becomes(&first, "wanderer", Some("active")).await;
    assert!(!machine.data.join("enrolment.token").exists(), "a spent token is dropped");
    machine.cli(&["stop"]).await.succeeded();

    let (token, endpoint) = token_file(&second, "wanderer").await;
    let token = token.to_str().expect("UTF-8");
    let mut join = vec!["node", "join", &endpoint, "--token-file", token, "--id", "wanderer", "--force"];
    let refused = async {
        until("the machine says why it does not join", LIMIT, async || {
            let status = machine.cli(&["status"]).await;
            status.stdout.contains("not the one that this node has joined").then_some(())
        })
        .await;
        machine.cli(&["stop"]).await.succeeded();
    };
    let (joined, ()) = tokio::join!(machine.cli_with(&join, &environment), refused);
    joined.failed();
    assert_eq!(status_of(&second, "wanderer").await, None);

    join.push("--new-controller");
    machine.cli_with(&join, &environment).await.succeeded();
    becomes(&second, "wanderer", Some("active")).await;
    machine.cli(&["stop"]).await.succeeded();
}
