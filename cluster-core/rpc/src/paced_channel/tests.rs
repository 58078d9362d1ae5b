//! Against an HTTP/2 server at the end of a simulated link that queues all it is given, as an sshd does.

use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex};

use super::*;
use crate::status::{from_status, may_have_arrived};

/// More than an sshd and its socket hold.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
const CARRIED_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy)]
struct Link {
    bytes_per_second: u64,
    delay: Duration,
}

const SLOW: Link = Link { bytes_per_second: 8_000, delay: Duration::from_millis(25) };
const FAST: Link = Link { bytes_per_second: 1_000_000_000, delay: Duration::from_millis(25) };

/// Carries bytes one way, in order, at the link's rate and after its delay.
async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, link: Link) {
    let (late, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut piece = vec![0; CARRIED_BYTES.min(usize::try_from(link.bytes_per_second / 50).unwrap())];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        let count_per_second = link.bytes_per_second as f64;
        sleep(Duration::from_secs_f64(count as f64 / count_per_second)).await;
        if late.send((Instant::now() + link.delay, piece[..count].to_vec())).is_err() {
            return;
        }
    }
}

/// Returns both ends of a link: what comes from the far end goes over one, what goes there over the other.
fn ends(link: Link, there: Link) -> (DuplexStream, DuplexStream) {
    let ((near, near_inside), (far, far_inside)) = (duplex(QUEUE_BYTES), duplex(QUEUE_BYTES));
    let (near_read, near_write) = tokio::io::split(near_inside);
    let (far_read, far_write) = tokio::io::split(far_inside);
    tokio::spawn(carry(far_read, near_write, link));
    tokio::spawn(carry(near_read, far_write, there));
    (near, far)
}

/// Writes N times something, of another length each time, and is then silent for longer than a connection is busy.
async fn write_bursts(count: usize, mut stream: SendStream<Bytes>) {
    for number in 0..count {
        let mut data = Bytes::from("x".repeat(burst_bytes(number)));
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let room = std::future::poll_fn(|context| stream.poll_capacity(context)).await.unwrap().unwrap();
            stream.send_data(data.split_to(room.min(data.len())), false).unwrap();
        }
        sleep(IDLE_AFTER * 2).await;
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

fn burst_bytes(number: usize) -> usize {
    number * 7_919 % 300_007
}

/// Answers `/flood/N` with N bytes, `/bursts/N` with N pieces, and anything else with the number of bytes that came with it.
async fn serve(far: DuplexStream) {
    // As a worker's own server has it.
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1024 * 1024).initial_connection_window_size(1024 * 1024);
    let mut connection = builder.handshake(far).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut received = 0;
            while let Some(Ok(data)) = body.data().await {
                received += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            if let Some(count) = head.uri.path().strip_prefix("/bursts/") {
                let stream = respond.send_response(Response::new(()), false).unwrap();
                return write_bursts(count.parse().unwrap(), stream).await;
            }
            let answer = match head.uri.path().strip_prefix("/flood/") {
                Some(count) => "x".repeat(count.parse().unwrap()),
                None => received.to_string(),
            };
            let stream = respond.send_response(Response::new(()), false).unwrap();
            let _ = send_body(Body::new(answer), stream, None).await;
        });
    }
}

/// A channel whose every connection is a link with a server at its end. Only what comes from there is slow.
fn channel(link: Link) -> PacedChannel {
    channel_both(link, FAST)
}

fn channel_both(link: Link, there: Link) -> PacedChannel {
    PacedChannel::new(Arc::new(move || {
        let (near, far) = ends(link, there);
        tokio::spawn(serve(far));
        Box::pin(async move { Ok(Box::new(near) as Box<dyn ByteStream>) })
    }))
}

async fn call(channel: &PacedChannel, path: &str, body: Body) -> Result<PacedBody, Status> {
    let request = Request::builder().method("POST").uri(path).body(body).unwrap();
    channel.clone().send(request).await.map(Response::into_body)
}

async fn text(channel: &PacedChannel, path: &str, body: Body) -> String {
    let body = call(channel, path, body).await.unwrap().collect().await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// Reads a flood to its end, and counts what came.
fn flood(channel: &PacedChannel, bytes: usize, came: &Arc<AtomicUsize>) -> tokio::task::JoinHandle<()> {
    let (channel, came) = (channel.clone(), came.clone());
    tokio::spawn(async move {
        let mut body = call(&channel, &format!("/flood/{bytes}"), Body::empty()).await.unwrap();
        while let Some(frame) = body.frame().await {
            came.fetch_add(frame.unwrap().data_ref().map_or(0, Bytes::len), Ordering::Relaxed);
        }
    })
}

#[tokio::test(start_paused = true)]
async fn calls_pass_floods_on_a_slow_link() {
    for floods in [1, 4] {
        let (channel, came) = (channel(SLOW), Arc::new(AtomicUsize::new(0)));
        let reading: Vec<_> = (0..floods).map(|_| flood(&channel, 400_000 / floods, &came)).collect();
        let begun = Instant::now();
        for number in 0..15 {
            let at = Instant::now();
            assert_eq!(text(&channel, "/", Body::empty()).await, "0");
            // Until the rate is known, and how many share it.
            let limit = Duration::from_secs(if number < 5 { 5 } else { 3 });
            assert!(at.elapsed() < limit, "{floods}, {number}: {:?}", at.elapsed());
            sleep(Duration::from_millis(500)).await;
        }
        let meanwhile = came.load(Ordering::Relaxed);
        assert!((50_000..400_000).contains(&meanwhile), "the floods went on: {meanwhile}");
        for reading in reading {
            reading.await.unwrap();
        }
        assert_eq!(came.load(Ordering::Relaxed), 400_000, "nothing is lost");
        let (took, least) = (begun.elapsed(), Duration::from_secs(50));
        assert!(took < least * 12 / 10, "the link is used: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fast_link_is_filled_despite_its_delay() {
    const BYTES: usize = 64 * 1024 * 1024;
    let (channel, came) = (channel(FAST), Arc::new(AtomicUsize::new(0)));
    let begun = Instant::now();
    flood(&channel, BYTES, &came).await.unwrap();
    assert_eq!(came.load(Ordering::Relaxed), BYTES);
    // With 2 MiB in each round trip of 50 ms, and as much again to get there.
    assert!(begun.elapsed() < Duration::from_millis(50) * 32 * 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn window_that_shrinks_stalls_no_stream() {
    const BURSTS: usize = 100;
    let (channel, path) = (channel(FAST), format!("/bursts/{BURSTS}"));
    let limit = (IDLE_AFTER * 2 + Duration::from_secs(2)) * u32::try_from(BURSTS).unwrap();
    let reading = timeout(limit, text(&channel, &path, Body::empty())).await.expect("no stall");
    assert_eq!(reading.len(), (0..BURSTS).map(burst_bytes).sum::<usize>());
}

#[tokio::test(start_paused = true)]
async fn dropped_answer_ends_its_stream() {
    let channel = channel(SLOW);
    let body = call(&channel, "/flood/400000", Body::empty()).await.unwrap();
    drop(body);
    sleep(Duration::from_secs(5)).await;
    assert!(channel.opened().await.unwrap().1.streams().is_empty());
    let at = Instant::now();
    text(&channel, "/", Body::empty()).await;
    assert!(at.elapsed() < FAST.delay * 6, "the link is free again: {:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn request_larger_than_the_window_arrives_whole() {
    let sent = "x".repeat(3 * 1024 * 1024);
    assert_eq!(text(&channel(FAST), "/", Body::new(sent)).await, "3145728");
}

#[tokio::test(start_paused = true)]
async fn calls_pass_uploads_on_a_slow_link() {
    const BYTES: usize = 300_000;
    for uploads in [1, 3] {
        let channel = channel_both(FAST, SLOW);
        let begun = Instant::now();
        let sending: Vec<_> = (0..uploads)
            .map(|_| {
                let channel = channel.clone();
                tokio::spawn(async move { text(&channel, "/", Body::new("x".repeat(BYTES / uploads))).await })
            })
            .collect();
        let mut slowest = Duration::ZERO;
        while sending.iter().any(|sending| !sending.is_finished()) {
            let at = Instant::now();
            assert_eq!(text(&channel, "/", Body::new("order".to_owned())).await, "5");
            slowest = slowest.max(at.elapsed());
            sleep(Duration::from_millis(500)).await;
        }
        for sending in sending {
            assert_eq!(sending.await.unwrap(), (BYTES / uploads).to_string());
        }
        // The first pieces of all requests go unpaced.
        assert!(slowest < Duration::from_secs(5), "{uploads}: {slowest:?}");
        let (took, least) = (begun.elapsed(), Duration::from_secs(38));
        assert!(took < least * 13 / 10, "the link is used: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn upload_fills_a_fast_link_despite_its_delay() {
    const BYTES: usize = 32 * 1024 * 1024;
    let begun = Instant::now();
    let sent = Body::new("x".repeat(BYTES));
    assert_eq!(text(&channel(FAST), "/", sent).await, BYTES.to_string());
    // With half of the server's window in each round trip of 50 ms, and 14 of them to get there.
    assert!(begun.elapsed() < Duration::from_millis(50) * (64 + 14), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn ping_is_answered_by_the_process_not_by_its_socket() {
    let limit = Duration::from_secs(5);
    let live = channel(SLOW);
    timeout(limit, live.ping()).await.unwrap().unwrap();
    let came = Arc::default();
    let reading = flood(&live, 400_000, &came);
    sleep(Duration::from_secs(5)).await;
    timeout(limit, live.ping()).await.unwrap().unwrap();
    reading.abort();
    // Takes every byte, and never says one.
    let frozen = PacedChannel::new(Arc::new(|| {
        let (near, far) = ends(FAST, FAST);
        Box::pin(async move {
            tokio::spawn(async move {
                let _far = far;
                std::future::pending::<()>().await;
            });
            Ok(Box::new(near) as Box<dyn ByteStream>)
        })
    }));
    assert!(timeout(limit, frozen.ping()).await.is_err());
    // Its calls do not wait without end.
    let refused = timeout(KEEPALIVE_INTERVAL + limit, call(&frozen, "/", Body::empty())).await.unwrap();
    assert!(may_have_arrived(&from_status(&refused.unwrap_err())));
}

#[tokio::test(start_paused = true)]
async fn lost_connection_is_opened_again() {
    let dials = Arc::new(AtomicUsize::new(0));
    let (cut, counted) = (Arc::new(tokio::sync::Notify::new()), dials.clone());
    let cuts = cut.clone();
    let channel = PacedChannel::new(Arc::new(move || {
        let (near, far) = ends(FAST, FAST);
        let (number, cut) = (counted.fetch_add(1, Ordering::Relaxed), cuts.clone());
        Box::pin(async move {
            if number == 0 {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            tokio::spawn(async move {
                tokio::select! {
                    () = serve(far) => {}
                    () = cut.notified() => {}
                }
            });
            Ok(Box::new(near) as Box<dyn ByteStream>)
        })
    }));
    let refused = call(&channel, "/", Body::empty()).await.unwrap_err();
    assert!(!may_have_arrived(&from_status(&refused)), "{refused}");
    for _ in 0..2 {
        assert_eq!(text(&channel, "/", Body::empty()).await, "0");
        assert_eq!(dials.load(Ordering::Relaxed), 2, "a connection is kept");
    }
    cut.notify_one();
    // For the news to travel.
    sleep(FAST.delay * 2).await;
    assert_eq!(text(&channel, "/", Body::empty()).await, "0");
    assert_eq!(dials.load(Ordering::Relaxed), 3);
}
