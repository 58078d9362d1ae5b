//! Disruptive calls: the plan first, a person where there is one, and nothing done without a yes.

use ::http::Method;
use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    http,
    mcp::{Client, Era, Person},
    work::{id_of, script, with},
};

const ERAS: [Era; 2] = [Era::Session, Era::Stateless];

async fn is_schedulable(controller: &Controller) -> bool {
    let nodes = controller.api("/v1/cluster/nodes").await.expect("the nodes");
    nodes.to_string().contains("\"active\"")
}

fn drain() -> Value {
    json!({"node_id": "home"})
}

fn token_of(shown: &Value) -> Value {
    assert_eq!(shown["state"], "needs_confirmation", "{shown}");
    assert!(shown["plan"]["summary"].as_str().is_some_and(|words| words.contains("home")), "{shown}");
    assert!(shown["next_step"].as_str().is_some_and(|words| words.contains("confirm_token")), "{shown}");
    shown["confirm_token"].clone()
}

#[tokio::test]
async fn the_plan_is_shown_and_its_token_carries_out_this_call_once() {
    let controller = Controller::start(&Setup::default()).await;
    for era in ERAS {
        let mut client = Client::stdio(&controller, era, "confirm-token").await;
        let token = token_of(&client.unconfirmed("drain_node", drain()).await);
        assert!(is_schedulable(&controller).await, "nothing is done before");
        let another = json!({"node_id": "home", "on_deadline": "leave", "confirm_token": token});
        let shown = client.unconfirmed("drain_node", another).await;
        assert_ne!(token_of(&shown), token, "another call is another plan");
        let confirmed = json!({"node_id": "home", "confirm_token": token, "wait_seconds": 5});
        assert_eq!(client.unconfirmed("drain_node", confirmed.clone()).await["state"], "drained");
        let again = client.unconfirmed("drain_node", drain()).await;
        assert_eq!(again["state"], "drained", "to ask how it stands needs nothing");
        client.call("resume_node", drain()).await;
        let shown = client.unconfirmed("drain_node", confirmed).await;
        assert!(shown["next_step"].as_str().is_some_and(|words| words.contains("does not hold")), "{shown}");
        assert!(is_schedulable(&controller).await, "a token counts once");
    }
}

#[tokio::test]
async fn drain_status_is_free_and_shorter_deadline_needs_a_plan() {
    let controller = Controller::start(&Setup::default()).await;
    let mut client = Client::stdio(&controller, Era::Session, "confirm-deadline").await;
    let started = client.call("submit_execution", script("sleep 600", &["home"])).await;
    let id = id_of(&started, "execution_id");
    let leave = with(drain(), json!({"on_deadline": "leave", "deadline_seconds": 600}));
    assert_eq!(client.call("drain_node", leave).await["state"], "draining");
    assert_eq!(client.unconfirmed("drain_node", drain()).await["state"], "draining", "a look needs nothing");
    for sooner in [json!({"deadline_seconds": 0}), json!({"on_deadline": "cancel"})] {
        let shown = client.unconfirmed("drain_node", with(drain(), sooner)).await;
        assert!(shown["plan"].to_string().contains(&id), "{shown}");
        token_of(&shown);
    }
    let cancel = with(drain(), json!({"on_deadline": "cancel", "deadline_seconds": 0, "wait_seconds": 30}));
    assert_eq!(client.call("drain_node", cancel).await["state"], "drained");
    assert_eq!(client.call("get_execution", json!({"execution_id": id})).await["state"], "cancelled");
}

#[tokio::test]
async fn where_a_person_sits_they_are_asked_in_the_way_of_the_era() {
    let controller = Controller::start(&Setup::default()).await;
    for era in ERAS {
        let mut client = Client::with_person(&controller, era, "confirm-no", Person::Refuses).await;
        let words = client.refused("drain_node", drain()).await;
        assert!(words.contains("said no") && words.contains("drain home"), "{words}");
        assert!(is_schedulable(&controller).await);

        let mut client = Client::with_person(&controller, era, "confirm-aside", Person::Ignores).await;
        token_of(&client.unconfirmed("drain_node", drain()).await);
        assert!(is_schedulable(&controller).await);

        let mut client = Client::with_person(&controller, era, "confirm-yes", Person::Agrees).await;
        let drained = client.unconfirmed("drain_node", json!({"node_id": "home", "wait_seconds": 5})).await;
        assert_eq!(drained["state"], "drained", "{drained}");
        let questions = client.listener().questions();
        assert_eq!(questions.len(), 1, "asked once: {questions:?}");
        assert!(questions[0].contains("drain home"), "{questions:?}");
        client.call("resume_node", drain()).await;
        assert_eq!(client.listener().questions().len(), 1, "to resume needs no question");
    }
}

#[tokio::test]
async fn a_person_alone_decides_where_the_operator_says_so() {
    let setup = Setup { mcp: "{confirm: human_only}", ..Setup::default() };
    let controller = Controller::start(&setup).await;
    let mut client = Client::stdio(&controller, Era::Stateless, "confirm-human").await;
    let words = client.refused("drain_node", drain()).await;
    assert!(words.contains("cannot ask its user") && words.contains("aegis node drain home"), "{words}");
    let mut client = Client::with_person(&controller, Era::Session, "confirm-aside", Person::Ignores).await;
    let words = client.refused("drain_node", drain()).await;
    assert!(words.contains("nobody answered"), "{words}");
    assert!(is_schedulable(&controller).await);
    let mut client = Client::with_person(&controller, Era::Session, "confirm-yes", Person::Agrees).await;
    let drained = client.unconfirmed("drain_node", json!({"node_id": "home", "wait_seconds": 5})).await;
    assert_eq!(drained["state"], "drained", "{drained}");
}

#[tokio::test]
async fn the_policy_goes_from_nothing_to_every_change() {
    let never = Controller::start(&Setup { mcp: "{confirm: never}", ..Setup::default() }).await;
    let mut client = Client::stdio(&never, Era::Session, "confirm-never").await;
    let drained = client.unconfirmed("drain_node", json!({"node_id": "home", "wait_seconds": 5})).await;
    assert_eq!(drained["state"], "drained", "{drained}");

    let always = Controller::start(&Setup { mcp: "{confirm: always}", ..Setup::default() }).await;
    let mut client = Client::stdio(&always, Era::Session, "confirm-always").await;
    let shown = client.unconfirmed("resume_node", drain()).await;
    assert_eq!(shown["state"], "needs_confirmation", "{shown}");
    assert!(client.unconfirmed("list_peers", json!({})).await["peers"].is_array());
}

#[tokio::test]
async fn nobody_is_asked_about_what_cannot_be_done() {
    let controller = Controller::start(&Setup::default()).await;
    let mut client = Client::with_person(&controller, Era::Session, "confirm-none", Person::Agrees).await;
    // Unknown, and a member that no deployment made.
    for node in ["nowhere", "home"] {
        let words = client.refused("remove_edge_node", json!({"node_id": node})).await;
        assert!(words.contains(node) && words.contains("What to do"), "{words}");
    }
    assert!(client.listener().questions().is_empty(), "{:?}", client.listener().questions());
}

/// Sends a drain over REST with the token of an assistant; the status and the body.
async fn drain_over_rest(controller: &Controller, body: &Value) -> (u16, Value) {
    let (address, token) = (controller.address().expect("HTTP"), format!("Bearer {}", controller.token()));
    let headers =
        [("host", address.as_str()), ("authorization", &token), ("content-type", "application/json")];
    let path = "/v1/cluster/nodes/home/drain";
    let reply = http::send(&address, Method::POST, path, &headers, &body.to_string()).await;
    let answer = serde_json::from_str(&reply.body).unwrap_or_else(|e| panic!("{e}: {}", reply.body));
    (reply.status.as_u16(), answer)
}

#[tokio::test]
async fn rest_asks_for_the_confirmation_that_mcp_asks_for() {
    let controller = Controller::start(&Setup::default()).await;
    let (status, shown) = drain_over_rest(&controller, &json!({})).await;
    assert_eq!((status, &shown["code"]), (409, &json!("Unconfirmed")), "{shown}");
    assert!(shown["plan"].to_string().contains("drain home"), "{shown}");
    assert!(is_schedulable(&controller).await, "nothing is done before");
    let token = &shown["confirm_token"];
    let other = json!({"on_deadline": "cancel", "confirm_token": token});
    assert_eq!(drain_over_rest(&controller, &other).await.0, 409, "another request is another plan");
    let (status, drained) = drain_over_rest(&controller, &json!({"confirm_token": token})).await;
    assert_eq!((status, &drained["state"]), (200, &json!("drained")), "{drained}");
    // A look at the drain that runs needs no confirmation, and its person's own call none at all.
    assert_eq!(drain_over_rest(&controller, &json!({})).await.0, 200);
    controller.cli(&["node", "resume", "home"]).await.succeeded();
    controller.cli(&["node", "drain", "home", "--wait"]).await.succeeded();
}

#[tokio::test]
async fn rest_refuses_where_a_person_alone_decides() {
    let setup = Setup { mcp: "{confirm: human_only}", ..Setup::default() };
    let controller = Controller::start(&setup).await;
    for body in [json!({}), json!({"deadline_seconds": 0, "confirm_token": "0123456789abcdef0123"})] {
        let (status, refused) = drain_over_rest(&controller, &body).await;
        assert_eq!((status, &refused["code"]), (403, &json!("Unconfirmed")), "{refused}");
        assert!(refused["remedy"].to_string().contains("aegis node drain home"), "{refused}");
        assert!(is_schedulable(&controller).await);
    }
}
