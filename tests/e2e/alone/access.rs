//! Programs with tokens of their own: what each scope may do at every door, and the note of who did what.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    files::holds,
    http::{Reply, send},
    mcp::{Client, Era},
    poll::until,
    raw::{Pipe, initialize, modern},
};

const JSON: (&str, &str) = ("content-type", "application/json");
const ACCEPT: (&str, &str) = ("accept", "application/json, text/event-stream");
const MARKER: &str = "marker-6d2f";
const LIMIT: Duration = Duration::from_secs(20);

/// A program that bears a token.
struct Program {
    address: String,
    bearer: String,
}

impl Program {
    fn new(controller: &Controller, token: &str) -> Self {
        let address = controller.address().expect("HTTP is served");
        Self { address, bearer: format!("Bearer {token}") }
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> Reply {
        let headers = [("host", self.address.as_str()), ("authorization", &self.bearer), JSON, ACCEPT];
        send(&self.address, method, path, &headers, body).await
    }

    async fn status(&self, method: Method, path: &str) -> StatusCode {
        self.ask(method, path, "{}").await.status
    }

    async fn rpc(&self, method: &str, more: Value) -> Value {
        let mut params = json!({ "_meta": modern() });
        params.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let mut headers = vec![
            ("host", self.address.as_str()),
            ("authorization", &self.bearer),
            JSON,
            ACCEPT,
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", method),
        ];
        let name = more["name"].as_str().map(str::to_owned).unwrap_or_default();
        if !name.is_empty() {
            headers.push(("mcp-name", &name));
        }
        send(&self.address, Method::POST, "/mcp", &headers, &body).await.message()
    }

    async fn tools(&self) -> Vec<String> {
        let answer = self.rpc("tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether it is an error, and the text.
    async fn call(&self, tool: &str, arguments: Value) -> (bool, String) {
        let answer = self.rpc("tools/call", json!({"name": tool, "arguments": arguments})).await;
        let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
        (answer["result"]["isError"] == true, text.to_owned())
    }
}

async fn create(controller: &Controller, name: &str, scope: &str, ttl: &str) -> String {
    let words = ["token", "create", name, "--scope", scope, "--ttl", ttl, "-o", "json"];
    let grant = controller.cli(&words).await.json();
    assert_eq!(grant["scope"], scope, "{grant}");
    grant["token"].as_str().expect("a token").to_owned()
}

async fn entries(controller: &Controller, words: &[&str]) -> Vec<Value> {
    let words = [&["audit", "-o", "json"], words].concat();
    controller.cli(&words).await.json()["entries"].as_array().expect("entries").clone()
}

fn assert_challenge(reply: &Reply, status: StatusCode, challenge: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.headers["www-authenticate"], challenge);
}

#[tokio::test]
async fn each_scope_reaches_what_it_names_at_every_door() {
    let controller = Controller::start(&Setup::default()).await;
    let mut programs = Vec::new();
    for scope in ["read", "operate", "admin"] {
        let token = create(&controller, scope, scope, "1h").await;
        assert!(token.starts_with("aegis_"), "{token}");
        programs.push(Program::new(&controller, &token));
    }
    programs.push(Program::new(&controller, &controller.token()));
    // What read, operate, admin and http.token are answered.
    const NO: StatusCode = StatusCode::FORBIDDEN;
    for (method, path, answers) in [
        (Method::GET, "/v1/cluster/nodes", [200, 200, 200, 200]),
        (Method::GET, "/metrics", [200, 200, 200, 200]),
        (Method::POST, "/v1/executions/exec-1/cancel", [403, 404, 404, 404]),
        (Method::POST, "/v1/cluster/nodes/none/resume", [403, 404, 404, 404]),
        (Method::DELETE, "/deploy/edge-node/none", [403, 404, 404, 404]),
        // Over HTTP nobody is a person, who alone may have volumes removed.
        (Method::DELETE, "/deploy/edge-node/none?volumes=true", [403, 403, 403, 403]),
        (Method::GET, "/v1/cluster/enrolment-tokens", [403, 403, 200, 200]),
        (Method::GET, "/v1/tokens", [403, 403, 200, 200]),
        (Method::DELETE, "/v1/tokens/none", [403, 403, 404, 404]),
        (Method::GET, "/v1/audit", [403, 403, 200, 200]),
        // A person's, over the socket alone.
        (Method::GET, "/v1/secrets", [404, 404, 404, 404]),
    ] {
        for (program, status) in programs.iter().zip(answers) {
            let reply = program.ask(method.clone(), path, "{}").await;
            assert_eq!(reply.status.as_u16(), status, "{method} {path}: {}", reply.body);
        }
    }
    let [read, operate, admin, _] = &programs[..] else { panic!("four programs") };
    let refused = read.ask(Method::POST, "/v1/cluster/nodes/none/resume", "{}").await;
    assert_challenge(&refused, NO, "Bearer realm=\"aegis\", error=\"insufficient_scope\", scope=\"operate\"");
    assert!(refused.body.contains("aegis token create NAME --scope operate"), "{}", refused.body);

    let (few, all) = (read.tools().await, admin.tools().await);
    assert_eq!(operate.tools().await, all);
    assert!(few.len() < all.len() && few.iter().all(|tool| all.contains(tool)), "{few:?}");
    assert!(few.contains(&"list_peers".to_owned()) && !few.contains(&"drain_node".to_owned()), "{few:?}");
    assert!(!read.call("list_peers", json!({})).await.0);
    let (is_error, text) = read.call("drain_node", json!({"node_id": "none"})).await;
    assert!(is_error && text.contains("the scope operate"), "{text}");
    let (is_error, text) = operate.call("drain_node", json!({"node_id": "none"})).await;
    assert!(is_error && text.contains("NotFound"), "{text}");
}

#[tokio::test]
async fn token_survives_restart_but_not_expiry_or_revocation() {
    let mut controller = Controller::start(&Setup::default()).await;
    let token = create(&controller, "ci", "operate", "1h").await;
    let brief = create(&controller, "brief", "read", "1s").await;
    let human = controller.cli(&["token", "create", "human", "--scope", "read"]).await.succeeded();
    assert!(human.trim().starts_with("aegis_") && human.lines().count() == 1, "{human}");
    let taken = controller.cli(&["token", "create", "ci", "--scope", "read"]).await;
    assert_eq!(taken.status, 5, "{taken:?}");
    for bad in [
        &["token", "create", "x"][..],
        &["token", "create", "Bad Name", "--scope", "read"],
        &["token", "create", "x", "--scope", "all"],
        &["token", "create", "x", "--scope", "read", "--ttl", "366d"],
    ] {
        assert_eq!(controller.cli(bad).await.status, 2, "{bad:?}");
    }
    let expired = Program::new(&controller, &brief);
    let ended = until("the brief token ends", LIMIT, async || {
        let reply = expired.ask(Method::GET, "/v1/cluster/nodes", "").await;
        (reply.status != StatusCode::OK).then_some(reply)
    })
    .await;
    let used = Program::new(&controller, &token);
    assert_eq!(used.status(Method::GET, "/v1/cluster/nodes").await, StatusCode::OK);

    controller.stop().await;
    controller.start_again().await;
    let program = Program::new(&controller, &token);
    assert_eq!(program.status(Method::GET, "/v1/cluster/nodes").await, StatusCode::OK);
    let listed = controller.cli(&["token", "list", "-o", "json"]).await.json();
    let told: Vec<_> = listed["tokens"].as_array().unwrap().iter().collect();
    assert_eq!((&told[0]["name"], &told[0]["state"]), (&json!("brief"), &json!("expired")), "{listed:#}");
    assert_eq!((&told[1]["name"], &told[1]["state"]), (&json!("ci"), &json!("valid")), "{listed:#}");
    assert!(told[1]["used_at"].is_string(), "the last use outlives the daemon: {listed:#}");
    assert!(controller.cli(&["token", "list"]).await.succeeded().contains("never"));

    controller.cli(&["token", "revoke", "ci"]).await.succeeded();
    let revoked = program.ask(Method::GET, "/v1/cluster/nodes", "").await;
    let unknown = Program::new(&controller, "aegis_unknown").ask(Method::GET, "/v1/cluster/nodes", "").await;
    for reply in [&revoked, &ended, &unknown] {
        assert_challenge(reply, StatusCode::UNAUTHORIZED, "Bearer realm=\"aegis\", error=\"invalid_token\"");
        assert_eq!(reply.body, unknown.body, "the three are not to be told apart");
    }
    assert_eq!(controller.cli(&["token", "revoke", "ci"]).await.status, 4);
    for (path, bytes) in controller.everything_written() {
        for value in [&token, &brief, human.trim()] {
            assert!(!holds(&bytes, value), "a token's value is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn who_did_what_is_told_and_holds_no_secret() {
    let mut controller = Controller::start(&Setup::default()).await;
    let token = create(&controller, "ci", "operate", "1h").await;
    let program = Program::new(&controller, &token);
    let reader = Program::new(&controller, &create(&controller, "looks", "read", "1h").await);
    let mut session = Client::stdio(&controller, Era::Session, "audit").await;
    session.call("list_peers", json!({ "tags": ["audit-tag"] })).await;
    let secrets = json!({
        "host": "127.0.0.1", "tunnel_token": MARKER, "remote_llm_url": format!("https://user:{MARKER}@llm.example/")
    });
    program.call("deploy_edge_node", secrets.clone()).await;
    program.ask(Method::POST, "/deploy/edge-node", &secrets.to_string()).await;
    let work = json!({
        "image": "none", "env": {"KEY": MARKER}, "input": MARKER, "wait_seconds": 99,
        "command": ["sh", "-c", format!("curl -H 'Authorization: Bearer {MARKER}' TOKEN={MARKER} --pass {}", "x".repeat(5000))]
    });
    program.call("submit_execution", work).await;
    reader.call("drain_node", json!({"node_id": "none"})).await;
    assert_eq!(reader.status(Method::POST, "/v1/cluster/nodes/none/resume").await, StatusCode::FORBIDDEN);
    let set =
        crate::support::cli::run(&controller.data, &["secret", "set", "s"], &[], MARKER.as_bytes()).await;
    set.succeeded();

    let told = entries(&controller, &[]).await;
    let find = |action: &str, who: &str| -> Value {
        let found = told.iter().find(|entry| entry["action"] == action && entry["who"] == who);
        found.unwrap_or_else(|| panic!("no {action} of {who} in {told:#?}")).clone()
    };
    let uid = format!("uid {}", nix::unistd::geteuid());
    let listed = find("list_peers", &uid);
    assert_eq!((&listed["door"], &listed["client"]), (&json!("mcp.sock"), &json!("aegis-e2e 1")));
    assert_eq!(
        (&listed["result"], &listed["arguments"]),
        (&json!("ok"), &json!(r#"{"tags":["audit-tag"]}"#))
    );
    let deployed = find("deploy_edge_node", "token ci");
    assert_eq!((&deployed["door"], &deployed["client"]), (&json!("http"), &json!("e2e 1")));
    assert_ne!(deployed["result"], "ok");
    assert!(deployed["arguments"].as_str().unwrap().contains("127.0.0.1"), "{deployed}");
    assert!(find("POST /deploy/edge-node", "token ci")["arguments"].is_string());
    assert_eq!(find("drain_node", "token looks")["result"], "Forbidden");
    assert_eq!(find("POST /v1/cluster/nodes/none/resume", "token looks")["result"], "Forbidden");
    assert_eq!(find("PUT /v1/secrets/s", &uid)["door"], "api.sock");
    assert_eq!(find("POST /v1/tokens", &uid)["result"], "ok");
    let times = told.iter().map(|entry| entry["at"].as_str().unwrap().strip_suffix('Z').expect("UTC"));
    assert!(times.clone().is_sorted(), "{told:#?}");
    for entry in &told {
        let arguments = entry["arguments"].as_str().unwrap_or_default();
        assert!(arguments.len() <= 2048 && entry["duration_ms"].is_u64(), "{entry:#}");
    }

    let drains = entries(&controller, &["--tool", "drain_node", "--since", "1h"]).await;
    assert_eq!(drains.len(), 1, "{drains:#?}");
    let newest = entries(&controller, &["--limit", "2"]).await;
    assert_eq!(newest[..], told[told.len() - 2..], "reading is no change, and is not noted");
    let table = controller.cli(&["audit", "--tool", "list_peers"]).await.succeeded();
    assert!(table.contains("aegis-e2e 1") && table.contains("mcp.sock"), "{table}");
    controller.stop().await;
    controller.start_again().await;
    assert_eq!(entries(&controller, &[]).await[..told.len()], told[..], "the log outlives the daemon");
    for (path, bytes) in controller.everything_written() {
        assert!(!holds(&bytes, MARKER), "a secret is in {}", path.display());
    }
}

#[tokio::test]
async fn a_connection_gives_up_tools_and_gains_none() {
    let controller = Controller::start(&Setup::default()).await;
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
    let names = async |flags: &[&str]| {
        let mut pipe = Pipe::open_flagged(&controller, flags);
        pipe.ask(&initialize()).await;
        pipe.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        let answer = pipe.ask(&list).await;
        let drain = json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call",
            "params": {"name": "drain_node", "arguments": {"node_id": "none"}}});
        let drained = pipe.ask(&drain).await["result"]["content"][0]["text"].as_str().unwrap().to_owned();
        let tools = answer["result"]["tools"].as_array().expect("tools").clone();
        let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(pipe.close().await, 0);
        (names, drained)
    };
    let (all, drained) = names(&[]).await;
    assert!(drained.contains("NotFound"), "{drained}");
    let (reading, drained) = names(&["--read-only"]).await;
    assert!(reading.len() < all.len() && !reading.contains(&"drain_node".to_owned()), "{reading:?}");
    assert!(drained.contains("--read-only"), "{drained}");
    let (two, drained) = names(&["--tools", "drain_node,list_peers"]).await;
    assert_eq!(two, ["list_peers", "drain_node"]);
    assert!(drained.contains("NotFound"), "{drained}");
    assert_eq!(names(&["--tools", "drain_node,list_peers", "--read-only"]).await.0, ["list_peers"]);
    let unknown = controller.cli(&["mcp", "--tools", "list_peers,rm_rf"]).await;
    assert_eq!((unknown.status, unknown.stdout.as_str()), (2, ""), "{unknown:?}");
    assert!(unknown.stderr.contains("rm_rf") && unknown.stderr.contains("drain_node"), "{unknown:?}");
}
