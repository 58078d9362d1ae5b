//! Runs one command on a channel. A separate task always reads the channel to its end, because one unread channel
//! blocks the whole connection. The task ends with the command, its time limit, or its caller. It closes the channel
//! explicitly, because a dropped channel stays open on the host.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};
use bytes::Bytes;
use russh::{Channel, ChannelMsg, client::Msg};
use tokio::{
    io::{AsyncRead, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Limit of each output stream of a script; further output is read and dropped.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// SSH_EXTENDED_DATA_STDERR (RFC 4254, section 5.2).
const EXTENDED_STDERR: u32 = 1;

/// Output of a script, without banners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptOutput {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl ScriptOutput {
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// Standard input of a command, closed at its end.
pub(super) enum Input {
    Bytes(Bytes),
    Reader(Box<dyn AsyncRead + Send + Unpin>),
}

#[derive(Debug, Default)]
pub(super) struct RawOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a command to its end. Dropping the future closes the channel.
pub(super) async fn run(
    channel: Channel<Msg>,
    slot: OwnedSemaphorePermit,
    command: String,
    input: Input,
    limit: Duration,
) -> Result<RawOutput> {
    let cancel = CancellationToken::new();
    let _ends_with_caller = cancel.clone().drop_guard();
    let task = tokio::spawn(async move {
        let _slot = slot;
        pump(channel, command, input, limit, cancel).await
    });
    task.await.map_err(|error| Error::internal("the task of a remote command died").source(error))?
}

async fn pump(
    channel: Channel<Msg>,
    command: String,
    input: Input,
    limit: Duration,
    cancel: CancellationToken,
) -> Result<RawOutput> {
    let deadline = Instant::now() + limit;
    let (mut reader, writer) = channel.split();
    writer.exec(true, command).await.map_err(lost)?;
    let feed = async {
        let mut stdin = writer.make_writer();
        // A command may end without reading all of its input; only its exit status matters.
        let _ = match input {
            Input::Bytes(bytes) => stdin.write_all(&bytes).await,
            Input::Reader(mut source) => tokio::io::copy(&mut source, &mut stdin).await.map(|_| ()),
        };
        let _ = stdin.flush().await;
        let _ = writer.eof().await;
    };
    tokio::pin!(feed);
    let mut fed = false;
    let mut output = RawOutput::default();
    let mut ended = false;
    loop {
        tokio::select! {
            message = reader.wait() => match message {
                Some(ChannelMsg::Data { data }) => keep(&mut output.stdout, &data),
                Some(ChannelMsg::ExtendedData { data, ext: EXTENDED_STDERR }) => keep(&mut output.stderr, &data),
                Some(ChannelMsg::Failure) => {
                    let _ = writer.close().await;
                    return Err(Error::new(ErrorCode::Forbidden, "the host refuses to run commands")
                        .remedy("remove ForceCommand or `command=` for this key on the host"));
                }
                Some(ChannelMsg::ExitStatus { .. } | ChannelMsg::ExitSignal { .. }) => ended = true,
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            },
            () = &mut feed, if !fed => fed = true,
            () = sleep_until(deadline) => {
                let _ = writer.close().await;
                let message = format!("a command on the host did not end within {} s", limit.as_secs());
                return Err(Error::new(ErrorCode::Timeout, message));
            }
            () = cancel.cancelled() => {
                let _ = writer.close().await;
                return Err(Error::new(ErrorCode::Cancelled, "a command on the host was given up"));
            }
        }
    }
    let _ = writer.close().await;
    if ended { Ok(output) } else { Err(lost("the channel ended without an exit status")) }
}

fn keep(buffer: &mut Vec<u8>, data: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(buffer.len());
    buffer.extend_from_slice(&data[..data.len().min(room)]);
}

fn lost(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorCode::HostUnreachable, "the connection to the host was lost while a command ran")
        .source(error)
}

/// Interval of lines on a held command's standard input. They show the command that its connection is alive: a silently
/// lost connection delivers no lines.
const BEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Command that runs while this value lives, for example to hold a lock. Its standard input stays open and receives an
/// empty line every [`BEAT_INTERVAL`]. The input closes with the channel, so the command also ends with the connection.
#[derive(Debug)]
pub struct Held {
    _ends_it: DropGuard,
    ended: CancellationToken,
}

impl Held {
    /// Returns whether the command has ended, by itself or with the connection.
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

/// Starts a command and returns its output up to and including the line `until`, or all output if the command ended
/// first.
pub(super) async fn hold(
    channel: Channel<Msg>,
    slot: OwnedSemaphorePermit,
    command: String,
    until: String,
    limit: Duration,
) -> Result<(RawOutput, Held)> {
    let (cancel, ended) = (CancellationToken::new(), CancellationToken::new());
    let held = Held { _ends_it: cancel.clone().drop_guard(), ended: ended.clone() };
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let _slot = slot;
        let _ended = ended.drop_guard();
        watch_held(channel, command, until, tell, cancel).await;
    });
    let output = tokio::time::timeout(limit, told)
        .await
        .map_err(|_| {
            let message = format!("a command on the host did not answer within {} s", limit.as_secs());
            Error::new(ErrorCode::Timeout, message)
        })?
        .map_err(lost)?;
    Ok((output, held))
}

async fn watch_held(
    channel: Channel<Msg>,
    command: String,
    until: String,
    tell: oneshot::Sender<RawOutput>,
    cancel: CancellationToken,
) {
    let (mut reader, writer) = channel.split();
    if writer.exec(true, command).await.is_err() {
        return;
    }
    let mut output = RawOutput::default();
    let mut tell = Some(tell);
    let mut beat = tokio::time::interval(BEAT_INTERVAL);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = reader.wait() => message,
            _ = beat.tick(), if tell.is_none() => {
                // A full window must not prevent reads of the channel.
                let _ = tokio::time::timeout(BEAT_INTERVAL, writer.data(&b"\n"[..])).await;
                continue;
            }
            () = cancel.cancelled() => break,
        };
        match message {
            Some(ChannelMsg::Data { data }) if tell.is_some() => {
                keep(&mut output.stdout, &data);
                let text = String::from_utf8_lossy(&output.stdout);
                if text.contains(&until)
                    && let Some(tell) = tell.take()
                {
                    let _ = tell.send(std::mem::take(&mut output));
                }
            }
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    if let Some(tell) = tell.take() {
        let _ = tell.send(output);
    }
    let _ = writer.close().await;
}
