//! The connection under the controller's calls to a worker: HTTP/2 whose windows follow the link's measured rate.
//!
//! [`PacedChannel`] connects with the first call and again after a loss, as tonic's own channel does. It drives `h2`
//! itself, since tonic and hyper do not let a window be changed while a stream is open. Windows are an ordinary part
//! of HTTP/2, so that workers of every version obey them.
//!
//! Tasks: one driver a connection, which ends with it or with the last handle. Absent on purpose: calls whose request
//! goes on after the answer has begun.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::{
    FlowControl, Ping, PingPong, Reason, RecvStream, SendStream,
    client::{Connection, SendRequest},
};
use http::{
    Request, Response, Version,
    uri::{Authority, Scheme},
};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, sleep, timeout},
};
use tonic::{Status, body::Body};

use super::{
    pace::{IDLE_AFTER, Pace, UNPACED_BYTES, Uploads, WINDOW_BYTES_START},
    status::NotSent,
    wire::{ByteStream, Connector, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Unread data of all streams together, which bounds the memory for one node.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Bytes of a request that wait until the connection takes them: a burst of them.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
/// A window is changed again only when the change before it was acknowledged, which h2 does not tell.
const WINDOW_RETRY: Duration = Duration::from_millis(20);
/// After a smaller window, h2 announces what was read before only when more is read. The other end may have no window
/// left to send that, so that the streams are asked again, until its acknowledgement must have come.
const SETTLE_INTERVAL: Duration = Duration::from_millis(200);
const SETTLE_FOR: Duration = Duration::from_secs(30);
/// Probes that wait for the next ping.
const PROBES_MAX: usize = 16;

/// A channel to one worker. Clones share its connection.
#[derive(Clone)]
pub struct PacedChannel(Arc<Shared>);

struct Shared {
    dial: Connector,
    /// Held while a connection is opened, so that callers share it.
    current: tokio::sync::Mutex<Option<Opened>>,
}

struct Opened {
    requests: SendRequest<Bytes>,
    flow: Arc<Flow>,
}

impl std::fmt::Debug for PacedChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PacedChannel")
    }
}

/// A handle that does not keep the channel, nor what its dial holds.
#[derive(Clone, Debug)]
pub struct WeakChannel(Weak<Shared>);

impl WeakChannel {
    /// Returns the channel if a strong handle is left.
    pub fn upgrade(&self) -> Option<PacedChannel> {
        self.0.upgrade().map(PacedChannel)
    }
}

impl PacedChannel {
    pub fn new(dial: Connector) -> Self {
        Self(Arc::new(Shared { dial, current: tokio::sync::Mutex::new(None) }))
    }

    pub fn downgrade(&self) -> WeakChannel {
        WeakChannel(Arc::downgrade(&self.0))
    }

    /// Resolves once the process at the other end has answered a ping. Where only a kernel or an sshd took the
    /// connection, nothing answers: the process is gone, or stopped. Has no limit of its own: the caller bounds it.
    pub async fn ping(&self) -> io::Result<()> {
        // An idle connection may be closed over there at this very moment; a fresh one is not.
        for _ in 0..2 {
            let (_, flow) = self.opened().await?;
            if flow.probe().await.is_ok() {
                return Ok(());
            }
        }
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    }

    /// Returns the open connection, or opens one.
    async fn opened(&self) -> io::Result<(SendRequest<Bytes>, Arc<Flow>)> {
        let mut current = self.0.current.lock().await;
        if let Some(opened) = &*current
            && let Ok(requests) = opened.requests.clone().ready().await
        {
            return Ok((requests, opened.flow.clone()));
        }
        *current = None;
        let opening = async {
            let stream = (self.0.dial)().await?;
            open(stream).await.map_err(io::Error::other)
        };
        let opened = timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()))
        })??;
        let answer = (opened.requests.clone(), opened.flow.clone());
        *current = Some(opened);
        Ok(answer)
    }

    async fn send(self, request: Request<Body>) -> Result<Response<PacedBody>, Status> {
        let (mut requests, flow) = self.opened().await.map_err(not_sent)?;
        let (mut parts, body) = request.into_parts();
        let mut uri = parts.uri.into_parts();
        // They only fill the call's pseudo headers.
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(Authority::from_static("node"));
        parts.uri = http::Uri::from_parts(uri).map_err(|e| Status::internal(e.to_string()))?;
        parts.version = Version::HTTP_2;
        let is_whole = body.is_end_stream();
        let (response, stream) =
            requests.send_request(Request::from_parts(parts, ()), is_whole).map_err(not_sent)?;
        let failed = |error: h2::Error| Status::from_error(Box::new(error));
        let mut response = std::pin::pin!(response);
        let paced = flow.clone();
        let sending =
            async move { if is_whole { Ok(()) } else { send_body(body, stream, Some(&paced)).await } };
        let answered = tokio::select! {
            // An answer that comes before all is sent is a refusal: the rest is not needed.
            answered = &mut response => answered,
            sent = sending => {
                sent?;
                response.await
            }
        };
        let answered = answered.map_err(failed)?;
        Ok(answered.map(|mut stream| {
            flow.streams().insert(stream.stream_id().as_u32(), stream.flow_control().clone());
            PacedBody { stream, flow }
        }))
    }
}

impl tower::Service<Request<Body>> for PacedChannel {
    type Response = Response<PacedBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

fn not_sent(error: impl std::fmt::Display) -> Status {
    let mut status = Status::unavailable(format!("the node cannot be reached: {error}"));
    status.set_source(Arc::new(NotSent));
    status
}

/// Sends a body piece by piece, as the worker has room for it and at the pace of its connection.
async fn send_body(mut body: Body, mut stream: SendStream<Bytes>, flow: Option<&Flow>) -> Result<(), Status> {
    let failed = |error: h2::Error| Status::from_error(Box::new(error));
    let mut unpaced = if flow.is_some() { UNPACED_BYTES } else { usize::MAX };
    while let Some(frame) = body.frame().await {
        let frame = frame.inspect_err(|_| stream.send_reset(Reason::CANCEL))?;
        let Ok(mut data) = frame.into_data() else { continue };
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            // Only growth is told, and a burst may leave some.
            let room = match stream.capacity() {
                0 => std::future::poll_fn(|context| stream.poll_capacity(context)).await,
                left => Some(Ok(left)),
            };
            match room {
                Some(room) => {
                    let room = room.map_err(failed)?.min(data.len());
                    let mut send = |bytes| stream.send_data(data.split_to(bytes), false).map_err(failed);
                    match flow.filter(|_| room > unpaced) {
                        Some(flow) => flow.upload(room, send).await?,
                        None => {
                            unpaced -= room;
                            send(room)?;
                        }
                    }
                }
                // The stream was ended over there: the answer says why.
                None => return Ok(()),
            }
        }
    }
    stream.send_data(Bytes::new(), true).map_err(failed)
}

/// The measured rate of one connection, and what its driver is asked for.
struct Flow {
    pace: Mutex<Pace>,
    window: watch::Sender<u32>,
    /// Those whose answers are being read.
    streams: Mutex<HashMap<u32, FlowControl>>,
    /// Bytes of data that came.
    heard: AtomicU64,
    probes: mpsc::Sender<oneshot::Sender<()>>,
    /// Held while a burst is sent and its ping is not answered: large requests take turns.
    uploads: tokio::sync::Mutex<Uploads>,
}

impl Flow {
    /// Sends a burst of at most `bytes` and waits for the answer of a ping. Data of other calls therefore waits behind
    /// at most two bursts.
    async fn upload(
        &self,
        bytes: usize,
        send: impl FnOnce(usize) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut uploads = self.uploads.lock().await;
        let (bytes, begun) = (bytes.min(uploads.burst()), Instant::now());
        send(bytes)?;
        self.probe().await.map_err(|error| Status::unavailable(error.to_string()))?;
        uploads.answered(bytes, begun.elapsed());
        Ok(())
    }

    /// Resolves once a ping is answered.
    async fn probe(&self) -> io::Result<()> {
        let lost = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (answer, answered) = oneshot::channel();
        self.probes.send(answer).await.map_err(|_| lost())?;
        answered.await.map_err(|_| lost())
    }

    fn received(&self, stream: u32, bytes: usize) {
        self.heard.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pace(|pace| pace.received(stream, bytes, Instant::now()));
    }

    fn pace(&self, change: impl FnOnce(&mut Pace)) {
        let window = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut pace);
            pace.window()
        };
        self.window.send_if_modified(|wanted| std::mem::replace(wanted, window) != window);
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u32, FlowControl>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces what was read of each stream, as far as its window asks for that by now.
    fn announce(&self) {
        for stream in self.streams().values_mut() {
            // Nothing more is released, which cannot fail.
            let _ = stream.release_capacity(0);
        }
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

async fn open(stream: Box<dyn ByteStream>) -> Result<Opened, h2::Error> {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW_BYTES_START)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let (requests, mut connection) = builder.handshake(stream).await?;
    let pings = connection.ping_pong();
    let (probes, asked) = mpsc::channel(PROBES_MAX);
    let flow = Arc::new(Flow {
        pace: Mutex::default(),
        window: watch::Sender::new(WINDOW_BYTES_START),
        streams: Mutex::default(),
        heard: AtomicU64::default(),
        probes,
        uploads: tokio::sync::Mutex::default(),
    });
    tokio::spawn(drive(connection, pings, flow.clone(), asked));
    Ok(Opened { requests, flow })
}

/// Drives a connection until it ends, or its other end is silent.
async fn drive(
    mut connection: Connection<Box<dyn ByteStream>, Bytes>,
    pings: Option<PingPong>,
    flow: Arc<Flow>,
    probes: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut window = flow.window.subscribe();
    let silent = silent(pings, &flow, probes);
    let mut silent = std::pin::pin!(silent);
    let (mut applied, mut is_behind) = (WINDOW_BYTES_START, false);
    let mut settle = tokio::time::interval(SETTLE_INTERVAL);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut settled_at = Instant::now();
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "the connection to a node ended");
                }
                return;
            }
            () = &mut silent => {
                tracing::debug!("the connection to a node is silent");
                return;
            }
            // Fails only with the sender, which this task holds.
            _ = window.changed() => {}
            () = sleep(WINDOW_RETRY), if is_behind => {}
            _ = settle.tick(), if Instant::now() < settled_at => flow.announce(),
            () = sleep(IDLE_AFTER), if applied != WINDOW_BYTES_START => flow.pace(|pace| pace.idle(Instant::now())),
        }
        let wanted = *window.borrow_and_update();
        is_behind = wanted != applied && connection.set_initial_window_size(wanted).is_err();
        if !is_behind {
            if wanted < applied {
                settled_at = Instant::now() + SETTLE_FOR;
            }
            applied = wanted;
        }
    }
}

/// Resolves when neither a pong nor data has come for [`KEEPALIVE_TIMEOUT`]: on a slow link, pongs come behind data.
async fn silent(pings: Option<PingPong>, flow: &Flow, mut probes: mpsc::Receiver<oneshot::Sender<()>>) {
    let Some(mut pings) = pings else { return };
    loop {
        // Never closed: the flow holds a sender.
        let mut asking: Vec<_> =
            timeout(KEEPALIVE_INTERVAL, probes.recv()).await.ok().flatten().into_iter().collect();
        while let Ok(another) = probes.try_recv() {
            asking.push(another);
        }
        if pings.send_ping(Ping::opaque()).is_err() {
            return;
        }
        loop {
            let heard = flow.heard();
            let pong = std::future::poll_fn(|context| pings.poll_pong(context));
            match timeout(KEEPALIVE_TIMEOUT, pong).await {
                Ok(Ok(_)) => break,
                Err(_) if flow.heard() != heard => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
        for probe in asking {
            // It may have given up.
            let _ = probe.send(());
        }
    }
}

/// Body of a response. Each read frees window space, and is measured.
pub struct PacedBody {
    stream: RecvStream,
    flow: Arc<Flow>,
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        let stream = self.stream.stream_id().as_u32();
        // Only then the stream ends with this.
        self.flow.streams().remove(&stream);
        self.flow.pace(|pace| pace.ended(stream));
    }
}

impl std::fmt::Debug for PacedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PacedBody")
    }
}

impl http_body::Body for PacedBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.stream.poll_data(context)) {
            Some(Ok(data)) => {
                // Fails only for more than what came.
                let _ = self.stream.flow_control().release_capacity(data.len());
                self.flow.received(self.stream.stream_id().as_u32(), data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.stream.poll_trailers(context));
                Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
