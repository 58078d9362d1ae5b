//! The HTTP door when all its places are taken by clients that never finish what they have to say.

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
async fn who_speaks_too_slowly_is_cut_and_holds_up_nobody_for_long() {
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
    // Who comes now waits until there is a place again, and is served.
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
    assert!(served_after > Duration::from_secs(5), "there was a place after {served_after:?}");
    assert!(told_after < CUT_AFTER, "{told_after:?}");
    let cut =
        within("the slow ones are cut", CUT_LIMIT.saturating_sub(started.elapsed()), slow.join_all()).await;
    assert!(cut.iter().all(|answer| !answer.starts_with(b"HTTP/1.1 200")), "one was answered");
    assert_eq!(client.document("peers://").await["peers"][0]["status"], "draining");
}
