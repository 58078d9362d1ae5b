//! The HTTP port when all its connections are taken: by clients without a token, and by one token's streams.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::{
    controller::{Controller, Setup},
    http::send,
    poll::within,
    sse::Client,
};

/// Connections at a time.
const PLACES: usize = 256;
/// Headers are there within 15 s.
const CUT_AFTER: Duration = Duration::from_secs(15);
const CUT_LIMIT: Duration = Duration::from_secs(25);
/// A header line now and then: each is progress, and the whole never ends.
const DRIBBLE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn slow_clients_without_a_token_keep_nobody_out() {
    let controller = Controller::start(&Setup::default()).await;
    let address = controller.address().expect("HTTP is served");
    let mut client = Client::newer(&controller);
    let (mut listening, _) = client.subscribe(&["peers://".to_owned()]).await;
    listening.note("notifications/resources/updated").await;

    let started = Instant::now();
    let mut slow = JoinSet::new();
    // One place is the listener's.
    for number in 1..PLACES {
        let mut stream = TcpStream::connect(&address).await.expect("it listens");
        slow.spawn(async move {
            // Some say nothing, some no more than begins both versions of HTTP, some dribble their headers.
            let begun: &[u8] = [&b""[..], b"P", b"GET /health HTTP/1.1\r\nhost: localhost\r\n"][number % 3];
            stream.write_all(begun).await.expect("it is taken");
            let (mut read, mut write) = stream.into_split();
            let mut rest = Vec::new();
            let mut ticks = tokio::time::interval(DRIBBLE);
            loop {
                tokio::select! {
                    // An answer, the end, or an end that comes as an error.
                    _ = read.read_to_end(&mut rest) => return rest,
                    _ = ticks.tick(), if number % 3 == 2 => drop(write.write_all(b"x: y\r\n").await),
                }
            }
        });
    }
    // The oldest connection without a token makes way.
    let late = async {
        let reply = send(&address, Method::GET, "/health/live", &[("host", &address)], "").await;
        (reply.status, started.elapsed())
    };
    let told = async {
        // Who was there is served as ever.
        controller.cli(&["node", "drain", "home"]).await.succeeded();
        listening.note("notifications/resources/updated").await;
        started.elapsed()
    };
    let ((status, served_after), told_after) = tokio::join!(late, told);
    assert_eq!(status, StatusCode::OK);
    assert!(served_after < CUT_AFTER, "there was a place after {served_after:?}");
    assert!(told_after < CUT_AFTER, "{told_after:?}");
    let cut =
        within("the slow ones are cut", CUT_LIMIT.saturating_sub(started.elapsed()), slow.join_all()).await;
    assert!(cut.iter().all(|answer| !answer.starts_with(b"HTTP/1.1 200")), "one was answered");
    assert_eq!(client.document("peers://").await["peers"][0]["status"], "draining");
}

/// Event streams that one token tries to open; more than it may have.
const STREAMS: usize = 160;
const STREAMS_PER_TOKEN_MAX: usize = 128;

/// Opens an event stream; the beginning of the answer and the connection.
async fn open_stream(address: &str, token: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "GET /v1/cluster/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.expect("an answer");
    (String::from_utf8_lossy(&head).into_owned(), stream)
}

#[tokio::test]
async fn streams_of_one_token_are_bounded_and_end_with_it() {
    let controller = Controller::start(&Setup::default()).await;
    let address = controller.address().expect("HTTP is served");
    let made = controller.cli(&["token", "create", "looks", "--scope", "read"]).await.succeeded();
    let token = made.trim();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(open_stream(&address, token).await);
    }
    let (open, refused): (Vec<_>, Vec<_>) = streams.into_iter().partition(|(head, _)| head.ends_with("200"));
    assert_eq!(open.len(), STREAMS_PER_TOKEN_MAX);
    assert!(refused.iter().all(|(head, _)| head.ends_with("429")), "{:?}", refused.first());
    let live = send(&address, Method::GET, "/health/live", &[("host", &address)], "").await;
    assert_eq!(live.status, StatusCode::OK);
    let bearer = format!("Bearer {}", controller.token());
    let headers = [("host", address.as_str()), ("authorization", &bearer)];
    let nodes = send(&address, Method::GET, "/v1/cluster/nodes", &headers, "").await;
    assert_eq!(nodes.status, StatusCode::OK, "another token has places of its own");

    controller.cli(&["token", "revoke", "looks"]).await.succeeded();
    let ended =
        open.into_iter().map(async |(_, mut stream)| stream.read_to_end(&mut Vec::new()).await.is_ok());
    let ended = within("the streams end", CUT_LIMIT, futures::future::join_all(ended)).await;
    assert!(ended.into_iter().all(|ended| ended), "a revoked token's streams go on");
}
