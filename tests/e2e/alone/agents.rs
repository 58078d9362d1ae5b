//! Agents: registered, versioned, run by name, deleted.

use http::{Method, StatusCode};
use serde_json::json;

use crate::support::{
    IMAGE,
    cli::{self, Answer},
    controller::{Controller, Setup},
    http::send,
};

fn manifest(text: &str) -> String {
    format!(
        "apiVersion: 100monkeys.ai/v1\nkind: Agent\nmetadata: {{name: greeter, version: '1.0', description: \
         Greets}}\nspec:\n  runtime: {{image: '{IMAGE}', model: smart}}\n  command: [sh, -c]\n  args: ['{text}']\n  \
         env: {{GREETING: hello, NAME: agent}}\n  tools: [fs.read]\n  execution: {{mode: iterative, \
         max_iterations: 3, target_tags: [home]}}\n"
    )
}

async fn apply(controller: &Controller, text: &str) -> Answer {
    let words = ["agent", "apply", "-f", "-", "-o", "json"];
    cli::run(&controller.data, &words, &[], text.as_bytes()).await
}

#[tokio::test]
async fn an_agent_is_registered_in_versions_and_found_by_name() {
    let mut controller = Controller::start(&Setup::default()).await;
    let empty = controller.cli(&["run", "--agent", "greeter"]).await;
    assert!(empty.status == 4 && empty.failed().contains("aegis agent apply"), "{empty:?}");
    let first = apply(&controller, &manifest("true")).await.json();
    assert_eq!((&first["outcome"], &first["version"]), (&json!("created"), &json!(1)), "{first:#}");
    assert_eq!(first["not_used"], json!(["spec.runtime.model", "spec.tools"]));
    let again = apply(&controller, &manifest("true")).await.json();
    assert_eq!((&again["outcome"], &again["version"]), (&json!("unchanged"), &json!(1)), "{again:#}");
    assert_eq!(apply(&controller, &manifest("exit 0")).await.json()["version"], 2);
    let file = controller.data.with_file_name("agent.yaml");
    std::fs::write(&file, manifest("true").replace("greeter", "other")).unwrap();
    let told = controller.cli(&["agent", "apply", "-f", &file.to_string_lossy()]).await.succeeded();
    assert!(
        told.contains("other@1 is registered") && told.contains("Not used here: spec.runtime.model"),
        "{told}"
    );

    let wrong = apply(&controller, &manifest("true").replace("command:", "comand:")).await;
    assert!(wrong.status == 2 && wrong.failed().contains("spec.comand: did you mean command?"), "{wrong:?}");
    let list = controller.cli(&["agent", "list", "-o", "json"]).await.json();
    let agents: Vec<_> =
        list["agents"].as_array().unwrap().iter().map(|agent| (&agent["name"], &agent["version"])).collect();
    assert_eq!(agents, [(&json!("greeter"), &json!(2)), (&json!("other"), &json!(1))]);
    let text = controller.cli(&["agent", "get", "greeter", "--version", "1"]).await.succeeded();
    assert!(text.contains("greeter@1") && text.contains("apiVersion: 100monkeys.ai/v1"), "{text}");

    // Stored: a restart changes nothing.
    controller.stop().await;
    controller.start_again().await;
    let detail = controller.cli(&["agent", "get", "greeter", "-o", "json"]).await.json();
    assert_eq!((&detail["runs"]["args"], &detail["runs"]["max_iterations"]), (&json!(["exit 0"]), &json!(3)));
    let deleted =
        controller.cli(&["agent", "delete", "greeter", "--version", "2", "-o", "json"]).await.json();
    assert_eq!(deleted["versions"], 1);
    assert_eq!(controller.cli(&["agent", "get", "greeter", "-o", "json"]).await.json()["version"], 1);
    controller.cli(&["agent", "delete", "greeter"]).await.succeeded();
    let gone = controller.cli(&["agent", "delete", "greeter"]).await;
    assert!(gone.status == 4 && gone.failed().contains("registered are other"), "{gone:?}");
}

#[tokio::test]
async fn programs_register_agents_over_http_and_strangers_do_not() {
    let controller = Controller::start(&Setup::default()).await;
    let address = controller.address().unwrap();
    let token = format!("Bearer {}", controller.token());
    let headers = [("host", address.as_str()), ("authorization", token.as_str())];
    let post = async |text: &str| send(&address, Method::POST, "/v1/agents", &headers, text).await;
    assert_eq!(post(&manifest("true")).await.status, StatusCode::CREATED);
    assert_eq!(post(&manifest("true")).await.status, StatusCode::OK);
    let bad = post("kind: Workflow").await;
    assert!(bad.status == StatusCode::BAD_REQUEST && bad.body.contains("apiVersion"), "{}", bad.body);
    let large = post(&format!("{}#{}", manifest("true"), "x".repeat(300 * 1024))).await;
    assert!(large.status == StatusCode::BAD_REQUEST && large.body.contains("at most"), "{}", large.body);
    let stranger = [("host", address.as_str())];
    let refused = send(&address, Method::POST, "/v1/agents", &stranger, &manifest("true")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let get = async |path: &str| send(&address, Method::GET, path, &headers, "").await;
    assert!(get("/v1/agents").await.body.contains("greeter"));
    assert_eq!(get("/v1/agents/greeter?version=1").await.status, StatusCode::OK);
    assert_eq!(get("/v1/agents/greeter?version=2").await.status, StatusCode::NOT_FOUND);
    let deleted = send(&address, Method::DELETE, "/v1/agents/greeter", &headers, "").await;
    assert_eq!(deleted.status, StatusCode::OK, "{}", deleted.body);
}

#[tokio::test]
async fn an_agent_runs_by_name_with_what_the_caller_adds() {
    let controller = Controller::start(&Setup::default()).await;
    apply(&controller, &manifest("echo \"$GREETING $NAME\"; cat")).await.json();
    apply(&controller, &manifest("echo second")).await.json();
    let words = ["run", "--agent", "greeter@1", "--env", "NAME=world", "--input", "in"];
    let output = controller.cli(&words).await.succeeded();
    assert_eq!(output, "hello world\nin");
    let words = ["run", "--agent", "greeter", "--node", "home", "-o", "json"];
    let ended = controller.cli(&words).await.json();
    assert_eq!((&ended["state"], &ended["agent"]), (&json!("succeeded"), &json!("greeter@2")), "{ended:#}");
    // What it was resolved to stays, whatever becomes of the agent.
    controller.cli(&["agent", "delete", "greeter"]).await.succeeded();
    let id = ended["execution_id"].as_str().unwrap();
    let kept = controller.cli(&["executions", "get", id, "-o", "json"]).await.json();
    assert_eq!(kept["agent"], "greeter@2");
}
