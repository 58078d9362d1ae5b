//! Tests over a byte stream, in both eras, with a real controller that is its own node.

use std::time::{Duration, Instant};

use cluster_core::{
    Core,
    core::DrainOrder,
    types::{
        execution::request::{ExecutionRequest, Submitter},
        ids::{ExecutionId, NodeId},
        node::OnDeadline,
    },
};
use serde_json::{Value, json};

use super::subscriptions::{IN_ALL_MAX, PER_CONNECTION_MAX};
use crate::testing::{Client, hybrid, modern, server_of};

const UPDATED: &str = "notifications/resources/updated";
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
const LIMIT: Duration = Duration::from_secs(20);

/// Submits an execution that waits without end: the node's engine is away.
async fn submit(core: &Core) -> ExecutionId {
    let request = ExecutionRequest { image: Some("busybox".into()), queue: true, ..Default::default() };
    core.submit(request, Submitter::this_process()).await.unwrap().execution_id
}

fn home() -> NodeId {
    NodeId::parse("home").unwrap()
}

async fn drain(core: &Core) {
    let order = DrainOrder { deadline: Duration::from_secs(60), on_deadline: OnDeadline::Leave };
    core.drain(&home(), order).await.unwrap();
}

fn request(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": method, "method": method, "params": params})
}

/// Makes a request of a client of 2026-07-28.
fn newer(method: &str, mut params: Value) -> Value {
    params["_meta"] = modern();
    request(method, params)
}

async fn read(client: &mut Client, uri: &str) -> Value {
    client.ask(request("resources/read", json!({"uri": uri}))).await
}

#[tokio::test]
async fn the_newest_are_listed_and_read() {
    let (core, _data) = hybrid().await;
    let id = submit(&core).await;
    let mut client = Client::of(server_of(core));
    let answer = client.ask(newer("resources/list", json!({}))).await;
    assert_eq!((&answer["result"]["ttlMs"], &answer["result"]["cacheScope"]), (&json!(0), &json!("private")));
    let resources = answer["result"]["resources"].as_array().unwrap();
    let uris = resources.iter().map(|resource| resource["uri"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(uris, ["peers://", &format!("execution://{id}")]);
    assert_eq!(resources[1]["title"], "busybox: pending");
    assert!(resources[1]["annotations"]["lastModified"].as_str().unwrap().ends_with('Z'), "{answer}");

    for (uri, field, value) in [
        ("peers://".to_owned(), "/peers/0/node_id", json!("home")),
        ("peers://".to_owned(), "/peers/0/link_up", json!(true)),
        (format!("execution://{id}"), "/state", json!("pending")),
        (format!("execution://{id}"), "/output", json!(format!("execution://{id}/output"))),
    ] {
        let answer = client.ask(newer("resources/read", json!({"uri": uri}))).await;
        let content = &answer["result"]["contents"][0];
        assert_eq!((&content["uri"], &content["mimeType"]), (&json!(uri), &json!("application/json")));
        let document: Value = serde_json::from_str(content["text"].as_str().unwrap()).unwrap();
        assert_eq!(document.pointer(field), Some(&value), "{document}");
    }
}

#[tokio::test]
async fn output_names_the_range_after_it() {
    let (core, _data) = hybrid().await;
    let id = submit(&core).await;
    let mut client = Client::of(server_of(core.clone()));
    client.initialize().await;
    core.cancel_execution(&id, "enough").await.unwrap();
    core.await_execution_end(&id, LIMIT).await.unwrap();
    let answer = read(&mut client, &format!("execution://{id}/output?limit=1")).await;
    let content = &answer["result"]["contents"][0];
    assert_eq!(
        (&content["mimeType"], &content["_meta"]["aegis/untrusted"]),
        (&json!("text/plain"), &json!(true))
    );
    let text = content["text"].as_str().unwrap();
    assert!(text.contains("which is cancelled") && text.contains("Nothing was written"), "{text}");
    assert_eq!(content["_meta"]["aegis/hasMore"], false, "{answer}");
    assert_eq!(content["_meta"]["aegis/next"], format!("execution://{id}/output?after_sequence=1&limit=1"));
    assert!(answer["result"].get("resultType").is_none(), "older clients do not know it: {answer}");
}

#[tokio::test]
async fn what_is_not_there_and_what_is_no_name_are_told_apart() {
    let (core, _data) = hybrid().await;
    let mut client = Client::of(server_of(core.clone()));
    client.initialize().await;
    let mut stateless = Client::of(server_of(core));
    for (uri, older, words) in [
        ("execution://no-such", -32002, "no-such"),
        ("execution://no-such/output?after_sequence=4", -32002, "no-such"),
        ("deployment://no-such", -32002, "no-such"),
        ("execution://no-such/output?limit=0", -32602, "1 to 1000"),
        ("file:///etc/passwd", -32602, "no kind of resource"),
    ] {
        let answer = read(&mut client, uri).await;
        assert_eq!((&answer["error"]["code"], &answer["error"]["data"]["uri"]), (&json!(older), &json!(uri)));
        let text = answer["error"]["message"].as_str().unwrap();
        assert!(text.contains(words) && text.contains("What to do"), "{uri}: {text}");
        let answer = stateless.ask(newer("resources/read", json!({"uri": uri}))).await;
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
    }
}

#[tokio::test]
async fn ids_are_completed_for_templates_and_prompts() {
    let (core, _data) = hybrid().await;
    let id = submit(&core).await.to_string();
    let mut client = Client::of(server_of(core));
    client.initialize().await;
    let templates = client.ask(request("resources/templates/list", json!({}))).await;
    let templates = templates["result"]["resourceTemplates"].as_array().unwrap().clone();
    let templates = templates.iter().map(|template| &template["uriTemplate"]).collect::<Vec<_>>();
    let of = |kind: &str, name: &str, argument: &str, value: &str| {
        let reference = match kind {
            "ref/prompt" => json!({"type": kind, "name": name}),
            _ => json!({"type": kind, "uri": name}),
        };
        request(
            "completion/complete",
            json!({"ref": reference, "argument": {"name": argument, "value": value}}),
        )
    };
    for (question, values) in [
        (of("ref/resource", "execution://{id}", "id", &id[..10]), vec![id.as_str()]),
        (of("ref/resource", templates[2].as_str().unwrap(), "id", ""), vec![id.as_str()]),
        (of("ref/resource", templates[2].as_str().unwrap(), "limit", "1"), vec![]),
        (of("ref/resource", "deployment://{id}", "id", ""), vec![]),
        (of("ref/prompt", "diagnose_node", "node_id", "ho"), vec!["home"]),
        (of("ref/prompt", "diagnose_node", "node_id", "x"), vec![]),
        (of("ref/prompt", "deploy_edge_nodes", "tags", "gpu, h"), vec!["gpu, home"]),
    ] {
        let answer = client.ask(question).await;
        let completion = &answer["result"]["completion"];
        assert_eq!(completion["values"], json!(values), "{answer}");
        assert_eq!((&completion["total"], &completion["hasMore"]), (&json!(values.len()), &json!(false)));
    }
    for (question, words) in [
        (of("ref/resource", "execution://{name}", "name", ""), "no resource template"),
        (of("ref/resource", "execution://{id}", "name", ""), "no argument"),
        (of("ref/prompt", "diagnose_node", "node", ""), "node_id"),
        (of("ref/prompt", "dance", "node", ""), "diagnose_node"),
    ] {
        let answer = client.ask(question).await;
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
    }
}

#[tokio::test]
async fn older_client_is_notified_of_its_subscriptions_only() {
    let (core, _data) = hybrid().await;
    let (id, other) = (submit(&core).await, submit(&core).await);
    let mut client = Client::of(server_of(core.clone()));
    client.initialize().await;
    let uris =
        [format!("execution://{id}"), format!("execution://{id}/output"), format!("execution://{other}")];
    for uri in &uris {
        let answer = client.ask(request("resources/subscribe", json!({"uri": uri}))).await;
        assert_eq!(answer["result"], json!({}), "{answer}");
    }
    let answer = client.ask(request("resources/unsubscribe", json!({"uri": uris[2]}))).await;
    assert_eq!(answer["result"], json!({}), "{answer}");
    for id in [&other, &id] {
        core.cancel_execution(id, "enough").await.unwrap();
        core.await_execution_end(id, LIMIT).await.unwrap();
    }
    let mut told = Vec::new();
    for _ in 0..2 {
        told.push(client.note(UPDATED).await["params"]["uri"].as_str().unwrap().to_owned());
    }
    told.sort();
    assert_eq!(told, uris[..2]);
    let document = read(&mut client, &uris[0]).await["result"]["contents"][0]["text"].to_string();
    assert!(document.contains("cancelled"), "what is told can be read: {document}");
    assert_eq!(client.heard(UPDATED), 0);

    let answer = client.ask(request("resources/subscribe", json!({"uri": "execution://no-such"}))).await;
    assert_eq!(answer["error"]["code"], -32002, "{answer}");
}

#[tokio::test]
async fn changes_within_a_second_are_told_together() {
    let (core, _data) = hybrid().await;
    let mut client = Client::of(server_of(core.clone()));
    client.initialize().await;
    client.ask(request("resources/subscribe", json!({"uri": "peers://"}))).await;
    drain(&core).await;
    client.note(UPDATED).await;
    let first = Instant::now();
    for _ in 0..10 {
        core.resume(&home()).await.unwrap();
        drain(&core).await;
    }
    core.resume(&home()).await.unwrap();
    client.note(UPDATED).await;
    assert!(first.elapsed() > Duration::from_millis(800), "{:?}", first.elapsed());
    let document = read(&mut client, "peers://").await["result"]["contents"][0]["text"].to_string();
    assert!(document.contains("schedulable"), "{document}");
    assert_eq!(client.heard(UPDATED), 0);
}

#[tokio::test]
async fn newer_client_listens_until_it_cancels() {
    let (core, _data) = hybrid().await;
    let server = server_of(core.clone());
    let budget = server.budget();
    let mut client = Client::of(server);
    let filter = json!({"resourceSubscriptions": ["peers://", "made up"], "resourcesListChanged": true});
    client.send(newer("subscriptions/listen", json!({"notifications": filter}))).await;
    let accepted = client.note(ACKNOWLEDGED).await["params"]["notifications"].clone();
    assert_eq!(accepted, json!({"resourceSubscriptions": ["peers://"]}));
    // Changes before the watch are read now.
    assert_eq!(client.note(UPDATED).await["params"]["uri"], "peers://");
    client.ask(newer("resources/read", json!({"uri": "peers://"}))).await;
    drain(&core).await;
    let note = client.note(UPDATED).await;
    assert_eq!(note["params"]["uri"], "peers://");
    assert_eq!(note["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "subscriptions/listen");
    client
        .send(json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
            "params": {"requestId": "subscriptions/listen"}}))
        .await;
    let all = budget.0.acquire_many(u32::try_from(IN_ALL_MAX).unwrap());
    drop(tokio::time::timeout(LIMIT, all).await.expect("its places are free again").unwrap());
}

#[tokio::test]
async fn listening_to_what_is_not_there_ends_with_words() {
    let (core, _data) = hybrid().await;
    let mut client = Client::of(server_of(core));
    let filter = json!({"resourceSubscriptions": ["execution://no-such"]});
    let answer = client.ask(newer("subscriptions/listen", json!({"notifications": filter}))).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("no-such"), "{answer}");
}

#[tokio::test]
async fn a_connection_follows_so_many_and_gives_all_back_when_it_ends() {
    let (core, _data) = hybrid().await;
    let id = submit(&core).await;
    let server = server_of(core);
    let budget = server.budget();
    let mut client = Client::of(server);
    client.initialize().await;
    let uri = |number| format!("execution://{id}/output?after_sequence={number}");
    let subscribe = |number| request("resources/subscribe", json!({"uri": uri(number)}));
    for number in 1..=PER_CONNECTION_MAX {
        let answer = client.ask(subscribe(number)).await;
        assert_eq!(answer["result"], json!({}), "{number}: {answer}");
    }
    let again = client.ask(subscribe(1)).await;
    assert_eq!(again["result"], json!({}), "what is followed already takes no second place: {again}");
    let answer = client.ask(subscribe(0)).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    let text = answer["error"]["message"].as_str().unwrap();
    assert!(text.contains(&PER_CONNECTION_MAX.to_string()) && text.contains("What to do"), "{text}");
    client.ask(request("resources/unsubscribe", json!({"uri": uri(1)}))).await;
    // The task returns its place shortly after it was aborted.
    let place = budget.0.acquire_many(u32::try_from(IN_ALL_MAX - PER_CONNECTION_MAX + 1).unwrap());
    drop(tokio::time::timeout(LIMIT, place).await.expect("one place is free").unwrap());
    assert_eq!(client.ask(subscribe(0)).await["result"], json!({}));

    assert_eq!(budget.0.available_permits(), IN_ALL_MAX - PER_CONNECTION_MAX);
    drop(client);
    let all = budget.0.acquire_many(u32::try_from(IN_ALL_MAX).unwrap());
    drop(tokio::time::timeout(LIMIT, all).await.expect("its places are free again").unwrap());
}
