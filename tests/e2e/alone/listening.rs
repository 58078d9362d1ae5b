//! Subscriptions over HTTP, in both eras: an older client's session with its stream, and a newer one's
//! request that lasts as long as it listens.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use crate::support::{
    controller::{Controller, Setup},
    poll::until,
    sse::{Client, Stream},
    work::{id_of, script},
};

const UPDATED: &str = "notifications/resources/updated";
const PEERS: &str = "peers://";
/// Limit of one client's subscriptions. All clients together have their own limit.
const ONE_MAX: usize = 64;
const ALL_MAX: usize = 1024;
/// A closed connection is noticed at once.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);
/// Open streams do not use up the time limit of a stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn both_eras_are_told_at_once_and_a_stop_ends_their_streams() {
    let mut controller = Controller::start(&Setup::default()).await;
    let (mut older, mut newer) = (Client::older(&controller).await, Client::newer(&controller));
    let uris = [PEERS.to_owned()];
    let (mut session, _) = older.subscribe(&uris).await;
    let (mut listening, _) = newer.subscribe(&uris).await;
    let told = listening.note("notifications/subscriptions/acknowledged").await;
    assert_eq!(told["params"]["notifications"]["resourceSubscriptions"], json!(uris), "{told}");
    // Told once at the beginning, when it is watched.
    listening.note(UPDATED).await;

    for status in ["draining", "active"] {
        let word = if status == "draining" { "drain" } else { "resume" };
        controller.cli(&["node", word, "home"]).await.succeeded();
        for (client, stream) in [(&mut older, &mut session), (&mut newer, &mut listening)] {
            assert_eq!(stream.note(UPDATED).await["params"]["uri"], PEERS);
            let peers = client.document(PEERS).await;
            assert_eq!(peers["peers"][0]["status"], status, "{peers}");
        }
    }

    let stopping = Instant::now();
    controller.stop().await;
    assert!(stopping.elapsed() < STOP_LIMIT, "{:?}", stopping.elapsed());
    for mut stream in [session, listening] {
        while let Some(last) = stream.message().await {
            assert_ne!(last["method"], UPDATED, "{last}");
        }
    }
}

#[tokio::test]
async fn who_goes_away_gives_its_places_back() {
    let controller = Controller::start(&Setup::default()).await;
    let (mut older, mut newer) = (Client::older(&controller).await, Client::newer(&controller));
    // It waits for its node, and needs no engine.
    controller.cli(&["node", "drain", "home"]).await.succeeded();
    let id = id_of(&newer.call("submit_execution", script("true", &["home"])).await, "execution_id");
    let uris = |count: usize| {
        (1..=count)
            .map(|number| format!("execution://{id}/output?after_sequence={number}"))
            .collect::<Vec<_>>()
    };
    let too_many = refusal(&mut newer, &uris(ONE_MAX + 1)).await.expect("more than one may");
    assert!(too_many.contains("this connection follows 64"), "{too_many}");

    let all = uris(ONE_MAX);
    let (_session, _) = older.subscribe(&all).await;
    let mut listening = Vec::new();
    while (listening.len() + 1) * ONE_MAX < ALL_MAX {
        listening.push(listen(&mut newer, &all).await.expect("there is place"));
    }
    let full = refusal(&mut newer, &all[..1]).await.expect("all places are taken");
    assert!(full.contains("this controller follows 1024") && full.contains("What to do"), "{full}");
    // Reading is not following.
    newer.document(PEERS).await;

    // The newer era's way is to hang up, the older one's to end the session.
    drop(listening.pop());
    let again = until("who hung up gives its places back", NOTICE_LIMIT, async || {
        listen(&mut newer, &all).await.ok()
    })
    .await;
    assert!(refusal(&mut newer, &all[..1]).await.is_some(), "all places are taken again");
    assert!(older.leave().await.is_success());
    let last = until("a session that ends gives its places back", NOTICE_LIMIT, async || {
        listen(&mut newer, &all).await.ok()
    })
    .await;
    assert!([again, last].iter().all(|stream| stream.status == StatusCode::OK));
}

/// Listens until the initial notification of each resource, or returns the reason of a rejection.
async fn listen(client: &mut Client, uris: &[String]) -> Result<Stream, String> {
    let (mut stream, id) = client.subscribe(uris).await;
    let mut told = 0;
    while told < uris.len() {
        let message = stream.message().await.expect("a message before the end");
        if message["id"] == id {
            return Err(id_of(&message["error"], "message"));
        }
        told += usize::from(message["method"] == UPDATED);
    }
    Ok(stream)
}

async fn refusal(client: &mut Client, uris: &[String]) -> Option<String> {
    listen(client, uris).await.err()
}
