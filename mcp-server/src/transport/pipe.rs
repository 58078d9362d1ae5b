//! Client side of `aegis mcp`: connects the assistant's stdin and stdout to the daemon.
//!
//! One task runs one loop. It reads lines from both sides and the clock, asks [`Session`] for the effects, and writes.
//! Each side has a buffer; a full buffer stops reads that would fill it. The daemon is dialled when the session needs
//! one. The loop ends only with the assistant.

use std::{
    future::{Future, pending},
    iter::{Chain, Once, once},
    path::Path,
    pin::Pin,
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use cluster_core::types::error::{Error, ErrorCode, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};
use tokio_util::{bytes::BytesMut, sync::CancellationToken};

use super::{
    handshake,
    lines::{Line, Lines},
    session::{Effect, Session},
};
use crate::{caller::ToolFilter, protocol_error, rest::body::BODY_BYTES_MAX};

pub use super::session::Want;

/// Length limit of a line. The daemon's limit includes the line end.
const CLIENT_LINE_BYTES_MAX: usize = BODY_BYTES_MAX - 1;
/// Far above the daemon's own limits of a result.
const DAEMON_LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Amount of unwritten bytes above which nothing more is read that would add to it.
const UNWRITTEN_BYTES_MAX: usize = 8 * 1024 * 1024;
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);
/// Time after the end of input for outstanding answers: above the longest wait of a call.
const LAST_ANSWERS_TIME_MAX: Duration = Duration::from_secs(60);
/// Time after a signal to write buffered lines.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// Reason why there is no daemon.
#[derive(Debug)]
pub enum Unreached {
    /// The daemon may come soon, so a retry is useful.
    NotYet(Error),
    /// Retries are useless, so waiting requests are failed.
    Refused(Error),
}

impl Unreached {
    /// Classifies an error. An error of the handshake is permanent, unless it is `Unavailable` or `Timeout`.
    pub fn of(error: Error) -> Self {
        match error.code() {
            ErrorCode::Unavailable | ErrorCode::Timeout => Self::NotYet(error),
            _ => Self::Refused(error),
        }
    }
}

/// Connects to a running daemon, and performs the handshake.
///
/// `narrowing` restricts the connection to some of the node's tools.
pub async fn connect(socket: &Path, narrowing: &ToolFilter) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await.map_err(|e| {
        Error::new(ErrorCode::Unavailable, format!("no aegis daemon answers at {}", socket.display()))
            .remedy("start it with `aegis up`")
            .source(e)
    })?;
    let (mut read, mut write) = stream.split();
    handshake::greet(&mut read, &mut write, narrowing.clone(), super::unix::ssh_agent()).await?;
    Ok(stream)
}

/// Forwards lines until the assistant is gone or `stop` is cancelled. Both are a clean end.
pub async fn run<I, O, D>(input: I, output: O, dial: D, stop: CancellationToken)
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    D: AsyncFn(Want) -> Result<UnixStream, Unreached>,
{
    let mut pipe = Pipe {
        session: Session::new(),
        input: Lines::new(input, CLIENT_LINE_BYTES_MAX),
        input_ended_at: None,
        output: Outlet::new(output),
        daemon: None,
        retries: retries(),
        last_failure: None,
    };
    // The first request comes soon; the daemon's start need not wait for it.
    let mut dialling = Some(Dialling::begin(&dial, Want::Launch, Duration::ZERO));
    while !pipe.is_done() {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = pipe.next_event() => event,
            dialled = outcome(dialling.as_mut()) => {
                dialling = None;
                Event::Dialled(dialled)
            }
        };
        pipe.handle(event);
        if pipe.output.failed {
            return;
        }
        let want = pipe.session.wants();
        let dialled_for = dialling.as_ref().map_or(Want::Nothing, |dialling| dialling.want);
        if want > dialled_for {
            // A new request does not wait for the next retry of a subscription.
            let delay = if dialled_for == Want::Attach { Duration::ZERO } else { pipe.retry_delay() };
            dialling = Some(Dialling::begin(&dial, want, delay));
        }
    }
    // An assistant that no longer reads does not delay the end.
    let _ = tokio::time::timeout(FLUSH_TIME_MAX, pipe.output.finish()).await;
}

/// Delays of retries: at once, then ever longer.
type Retries = Chain<Once<Duration>, ExponentialBackoff>;

fn retries() -> Retries {
    let slower = ExponentialBuilder::default()
        .with_min_delay(RETRY_DELAY_MIN)
        .with_max_delay(RETRY_DELAY_MAX)
        .without_max_times()
        .with_jitter()
        .build();
    once(Duration::ZERO).chain(slower)
}

/// One attempt to connect to a daemon.
struct Dialling<'a> {
    want: Want,
    attempt: Pin<Box<dyn Future<Output = Result<UnixStream, Unreached>> + 'a>>,
}

impl<'a> Dialling<'a> {
    fn begin<D>(dial: &'a D, want: Want, delay: Duration) -> Self
    where
        D: AsyncFn(Want) -> Result<UnixStream, Unreached>,
    {
        let attempt = async move {
            tokio::time::sleep(delay).await;
            dial(want).await
        };
        Self { want, attempt: Box::pin(attempt) }
    }
}

async fn outcome(dialling: Option<&mut Dialling<'_>>) -> Result<UnixStream, Unreached> {
    match dialling {
        Some(dialling) => dialling.attempt.as_mut().await,
        None => pending().await,
    }
}

enum Event {
    FromClient(Line),
    InputEnded,
    FromDaemon(Line),
    Lost,
    Dialled(Result<UnixStream, Unreached>),
    Wrote,
    Woke,
}

struct Pipe<I, O> {
    session: Session,
    input: Lines<I>,
    input_ended_at: Option<Instant>,
    output: Outlet<O>,
    daemon: Option<Daemon>,
    retries: Retries,
    /// Reason why there is no daemon, for requests whose patience has ended.
    last_failure: Option<String>,
}

struct Daemon {
    read: Lines<OwnedReadHalf>,
    write: Outlet<OwnedWriteHalf>,
}

impl<I: AsyncRead + Unpin, O: AsyncWrite + Unpin> Pipe<I, O> {
    fn is_done(&self) -> bool {
        let Some(ended_at) = self.input_ended_at else { return false };
        !self.session.is_owed() || ended_at.elapsed() >= LAST_ANSWERS_TIME_MAX
    }

    /// Cancel safe: every branch may be dropped at any await without loss.
    async fn next_event(&mut self) -> Event {
        let wakes_at = [self.session.wakes_at(), self.input_ended_at.map(|at| at + LAST_ANSWERS_TIME_MAX)]
            .into_iter()
            .flatten()
            .min();
        let output_has_room = self.output.has_room();
        let (read, write) = match &mut self.daemon {
            Some(daemon) => (Some(&mut daemon.read), Some(&mut daemon.write)),
            None => (None, None),
        };
        let daemon_has_room = write.as_ref().is_none_or(|write| write.has_room());
        tokio::select! {
            line = self.input.next(),
                if self.input_ended_at.is_none() && output_has_room && daemon_has_room =>
            {
                // An input that cannot be read has ended as well.
                line.ok().flatten().map_or(Event::InputEnded, Event::FromClient)
            }
            line = next_of(read), if output_has_room => {
                line.ok().flatten().map_or(Event::Lost, Event::FromDaemon)
            }
            () = self.output.advance(), if self.output.has_work() => Event::Wrote,
            () = advance_of(write) => Event::Wrote,
            () = sleep_until(wakes_at) => Event::Woke,
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let effects = match event {
            Event::FromClient(Line::Whole(line)) => {
                // A new request waits.
                self.retries = retries();
                self.session.client_said(line, now)
            }
            Event::FromClient(Line::TooLong) => self.session.too_long(CLIENT_LINE_BYTES_MAX),
            Event::InputEnded => {
                self.input_ended_at = Some(now);
                Vec::new()
            }
            Event::FromDaemon(Line::Whole(line)) => {
                self.retries = retries();
                self.session.daemon_said(line, now)
            }
            Event::FromDaemon(Line::TooLong) => vec![Effect::HangUp],
            Event::Lost => self.hang_up(now),
            Event::Dialled(Ok(stream)) => {
                let (read, write) = stream.into_split();
                let (read, write) = (Lines::new(read, DAEMON_LINE_BYTES_MAX), Outlet::new(write));
                self.daemon = Some(Daemon { read, write });
                self.last_failure = None;
                self.session.connected()
            }
            Event::Dialled(Err(Unreached::NotYet(error))) => {
                self.last_failure = Some(protocol_error::words(&error));
                Vec::new()
            }
            Event::Dialled(Err(Unreached::Refused(error))) => {
                self.session.refused(&protocol_error::words(&error))
            }
            Event::Wrote | Event::Woke => Vec::new(),
        };
        self.carry_out(effects, now);
        let late = self.session.tick(now, self.last_failure.as_deref());
        self.carry_out(late, now);
    }

    fn carry_out(&mut self, effects: Vec<Effect>, now: Instant) {
        for effect in effects {
            match effect {
                Effect::ToClient(line) => self.output.push(&line),
                Effect::ToDaemon(line) => {
                    if let Some(daemon) = &mut self.daemon {
                        daemon.write.push(&line);
                    }
                }
                Effect::HangUp => {
                    // Hanging up only yields lines for the client: the connection is down then.
                    let told = self.hang_up(now);
                    self.carry_out(told, now);
                }
            }
        }
    }

    fn hang_up(&mut self, now: Instant) -> Vec<Effect> {
        self.daemon = None;
        self.session.lost(now)
    }

    fn retry_delay(&mut self) -> Duration {
        self.retries.next().unwrap_or(RETRY_DELAY_MAX)
    }
}

async fn next_of(read: Option<&mut Lines<OwnedReadHalf>>) -> std::io::Result<Option<Line>> {
    match read {
        Some(read) => read.next().await,
        None => pending().await,
    }
}

/// A daemon that no longer reads may still have answers; the connection ends only with them.
async fn advance_of(write: Option<&mut Outlet<OwnedWriteHalf>>) {
    match write {
        Some(write) if write.has_work() => write.advance().await,
        Some(_) | None => pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

/// Buffered lines to write.
struct Outlet<W> {
    write: W,
    unwritten: BytesMut,
    unflushed: bool,
    failed: bool,
}

impl<W: AsyncWrite + Unpin> Outlet<W> {
    fn new(write: W) -> Self {
        Self { write, unwritten: BytesMut::new(), unflushed: false, failed: false }
    }

    fn push(&mut self, line: &[u8]) {
        self.unwritten.extend_from_slice(line);
        self.unwritten.extend_from_slice(b"\n");
    }

    fn has_room(&self) -> bool {
        self.failed || self.unwritten.len() < UNWRITTEN_BYTES_MAX
    }

    fn has_work(&self) -> bool {
        !self.failed && (self.unflushed || !self.unwritten.is_empty())
    }

    /// Performs one write. Cancel safe.
    async fn advance(&mut self) {
        let step = if self.unwritten.is_empty() {
            self.write.flush().await.map(|()| self.unflushed = false)
        } else {
            // Recorded before the write, so that a dropped step does not lose the state.
            self.unflushed = true;
            self.write.write_buf(&mut self.unwritten).await.map(drop)
        };
        self.failed = step.is_err();
    }

    async fn finish(&mut self) {
        while self.has_work() {
            self.advance().await;
        }
    }
}

#[cfg(test)]
mod tests;
