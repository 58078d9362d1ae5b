//! One execution on its worker, from its order to its last event, in a task of its own.
//!
//! Each step can be found half done by a later process: what is already there (image, container,
//! output in the log) is looked at and not done again.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use super::{
    request::ARGUMENT_BYTES_MAX,
    supervisor::{Run, Shared},
    view::{EventKind, Stream},
};
use crate::{
    clock::now_ms,
    engine::{ContainerSpec, Exit, Found, container_name},
    error::{Error, ErrorCode, Failure, Result},
};

/// Between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Tries to write the rest of an ended container's output.
const OUTPUT_RETRIES: usize = 5;
/// For reading what a stopped container still wrote.
const LAST_OUTPUT_LIMIT: Duration = Duration::from_secs(10);
/// Lines that come together become one event: an event a line would cost a write a line.
const OUTPUT_PIECES_MAX: usize = 256;
/// How long a line waits for the next.
const OUTPUT_GATHER: Duration = Duration::from_millis(20);
/// Readers page by events, so that one must be a small part of a page.
const OUTPUT_EVENT_BYTES_MAX: usize = 8 * 1024;
/// While the engine does not answer, an adopted container is asked for again.
const ENGINE_RETRY: Duration = Duration::from_secs(2);
/// For how long an engine may be away (its restart takes seconds) before the run is given up.
const ENGINE_ABSENCE_MAX: Duration = Duration::from_secs(120);
const IMAGE_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Why a run was stopped from outside.
enum Stop {
    Cancelled(String),
    TimedOut,
}

pub(super) fn spawn(shared: Arc<Shared>, run: Arc<Run>) {
    tokio::spawn(async move {
        let execution_id = run.journaled.order.execution_id.clone();
        let end = drive(&shared, &run).await;
        // A full disk must not turn the end into silence: it is tried until it is written.
        while let Err(error) = run.log.append(end.clone()) {
            tracing::error!(%execution_id, error = %error.chain(), "the end of an execution cannot be written");
            tokio::time::sleep(ENGINE_RETRY).await;
        }
        tracing::info!(%execution_id, "ended");
    });
}

async fn drive(shared: &Shared, run: &Run) -> EventKind {
    let name =
        container_name(&shared.node_id, &run.journaled.order.execution_id, run.journaled.order.attempt);
    // What ended while this worker was down ended by itself, however late that is noticed.
    let over = matches!(patiently(|| shared.engine.find(&name)).await, Ok(Found::Exited(_)));
    let stop = tokio::select! {
        result = work(shared, run, &name) => return match result {
            Ok(exit) => ended(exit),
            Err(error) => failed(&error),
        },
        stop = stopped(run), if !over => stop,
    };
    if let Err(error) = shared.engine.stop(&name, STOP_GRACE).await {
        tracing::warn!(container = %name, error = %error.chain(), "a container could not be stopped");
        return failed(&error);
    }
    // What it wrote until then belongs to the story.
    match tokio::time::timeout(LAST_OUTPUT_LIMIT, collect(shared, run, &name, false)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %error.chain(), "no last output"),
        Err(_) => tracing::debug!("the last output took too long"),
    }
    match stop {
        Stop::Cancelled(reason) => EventKind::Cancelled { reason },
        Stop::TimedOut => EventKind::TimedOut {
            timeout_ms: run.journaled.order.manifest.timeout_seconds.saturating_mul(1000),
        },
    }
}

/// Resolves when somebody cancels or the deadline passes.
async fn stopped(run: &Run) -> Stop {
    let left_ms = u64::try_from(run.journaled.deadline_ms.saturating_sub(now_ms())).unwrap_or(0);
    let deadline = Instant::now() + Duration::from_millis(left_ms);
    let mut cancel = run.cancel.subscribe();
    tokio::select! {
        asked = cancel.wait_for(Option::is_some) => match asked {
            Ok(reason) => Stop::Cancelled(reason.clone().unwrap_or_default()),
            // The sender lives in the run itself.
            Err(_) => Stop::Cancelled(String::new()),
        },
        () = tokio::time::sleep_until(deadline) => Stop::TimedOut,
    }
}

async fn work(shared: &Shared, run: &Run, name: &str) -> Result<Exit> {
    let progress = *run.log.progress().borrow();
    if progress.last_sequence == 0 {
        run.log.append(EventKind::Started)?;
    }
    match patiently(|| shared.engine.find(name)).await? {
        Found::Missing if progress.running => {
            return Err(Error::new(ErrorCode::Lost, "the container is gone")
                .remedy("it was removed, or the node's engine lost it; what it wrote until then is kept"));
        }
        Found::Missing => {
            prepare(shared, run, name).await?;
            start(shared, run, name).await?;
        }
        Found::Created => start(shared, run, name).await?,
        Found::Running | Found::Exited(_) if !progress.running => {
            run.log.append(EventKind::IterationStarted { iteration: 1 })?;
        }
        Found::Running | Found::Exited(_) => {}
    }
    loop {
        let output = collect(shared, run, name, true).await;
        // The stream also ends when the engine does; only the container's state tells.
        match patiently(|| shared.engine.find(name)).await? {
            Found::Exited(exit) => {
                finish_output(shared, run, name).await;
                return Ok(exit);
            }
            Found::Missing => {
                return Err(Error::new(ErrorCode::Lost, "the container was removed while it ran"));
            }
            Found::Created | Found::Running => {
                output?;
                // Output beyond the budget is not read; the end is waited for all the same.
                let _ = shared.engine.wait(name).await;
            }
        }
    }
}

async fn prepare(shared: &Shared, run: &Run, name: &str) -> Result<()> {
    let order = &run.journaled.order;
    let mut told: Option<Instant> = None;
    let image_progress = |message: String| {
        if told.is_none_or(|at| at.elapsed() >= IMAGE_PROGRESS_INTERVAL) {
            told = Some(Instant::now());
            // Progress is worth no failure.
            let _ = run.log.append(EventKind::ImageProgress { message });
        }
    };
    shared.engine.ensure_image(&order.manifest.image, image_progress).await?;
    if order.manifest.network == super::manifest::NetworkMode::Allow {
        shared.engine.ensure_network(&shared.network).await?;
    }
    let spec = ContainerSpec {
        name: name.to_owned(),
        node_id: &shared.node_id,
        execution_id: &order.execution_id,
        attempt: order.attempt,
        manifest: &order.manifest,
        env: environment(shared, run),
        network: &shared.network,
        writable_root: shared.policy.load().allow_root_filesystem_writes.unwrap_or(false),
    };
    shared.engine.ensure_created(&spec).await
}

async fn start(shared: &Shared, run: &Run, name: &str) -> Result<()> {
    shared.engine.start(name, Bytes::from(run.journaled.order.input.clone())).await?;
    run.log.append(EventKind::IterationStarted { iteration: 1 })
}

fn environment(shared: &Shared, run: &Run) -> Vec<String> {
    let order = &run.journaled.order;
    let mut env =
        order.manifest.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    env.push(format!("AEGIS_EXECUTION_ID={}", order.execution_id));
    env.push(format!("AEGIS_NODE_ID={}", shared.node_id));
    env.push("AEGIS_ITERATION=1".to_owned());
    env.extend(shared.env.iter().map(|(name, value)| format!("{name}={value}")));
    // What is too large for one variable comes on stdin alone.
    const NAME_BYTES: usize = "AEGIS_INPUT=".len();
    if order.input.len() + NAME_BYTES <= ARGUMENT_BYTES_MAX && !order.input.contains('\0') {
        env.push(format!("AEGIS_INPUT={}", order.input));
    }
    env
}

/// Reads what the container writes into the log, without what is there already.
async fn collect(shared: &Shared, run: &Run, name: &str, follow: bool) -> Result<()> {
    let (stdout_bytes, stderr_bytes) = run.log.output_bytes();
    let mut writers = [Writer::new(Stream::Stdout, stdout_bytes), Writer::new(Stream::Stderr, stderr_bytes)];
    let output = shared.engine.output(name, follow).chunks_timeout(OUTPUT_PIECES_MAX, OUTPUT_GATHER);
    let mut output = std::pin::pin!(output);
    while let Some(pieces) = output.next().await {
        let mut failure = None;
        for piece in pieces {
            match piece {
                Ok((Stream::Stdout, data)) => writers[0].take(data),
                Ok((Stream::Stderr, data)) => writers[1].take(data),
                Err(error) => failure = Some(error),
            }
        }
        for writer in &mut writers {
            if !writer.write(run, false)? {
                return Ok(());
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
    }
    for writer in &mut writers {
        writer.write(run, true)?;
    }
    Ok(())
}

/// Reads an ended container's output to its end. What cannot be written (a full disk) is tried again;
/// what still cannot be is told as cut off.
async fn finish_output(shared: &Shared, run: &Run, name: &str) {
    let mut output = collect(shared, run, name, false).await;
    for _ in 0..OUTPUT_RETRIES {
        let Err(error) = output else { return };
        tracing::warn!(container = %name, error = %error.chain(), "its output could not be kept");
        tokio::time::sleep(ENGINE_RETRY).await;
        output = collect(shared, run, name, false).await;
    }
    if output.is_err() {
        let mark = EventKind::Output { stream: Stream::Stdout, data: Bytes::new(), truncated: true };
        while let Err(error) = run.log.append(mark.clone()) {
            tracing::error!(container = %name, error = %error.chain(), "the log cannot be written");
            tokio::time::sleep(ENGINE_RETRY).await;
        }
    }
}

/// Joins pieces of one stream and never cuts a character in two.
struct Writer {
    stream: Stream,
    skip: u64,
    pending: BytesMut,
}

impl Writer {
    fn new(stream: Stream, skip: u64) -> Self {
        Self { stream, skip, pending: BytesMut::new() }
    }

    fn take(&mut self, mut data: Bytes) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        self.skip -= skipped as u64;
        self.pending.extend_from_slice(&data.split_off(skipped));
    }

    /// False once the log takes no more.
    fn write(&mut self, run: &Run, all: bool) -> Result<bool> {
        let held = if all { 0 } else { unfinished(&self.pending) };
        let mut ready = self.pending.split_to(self.pending.len() - held);
        while !ready.is_empty() {
            let piece = ready.split_to(piece_length(&ready));
            if !run.log.append_output(self.stream, piece.freeze())? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What fits into one event, without cutting a character in two.
fn piece_length(bytes: &[u8]) -> usize {
    if bytes.len() <= OUTPUT_EVENT_BYTES_MAX {
        return bytes.len();
    }
    OUTPUT_EVENT_BYTES_MAX - unfinished(&bytes[..OUTPUT_EVENT_BYTES_MAX])
}

/// Bytes at the end that begin a UTF-8 character and do not finish it.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find_map(|back| {
            let first = bytes[bytes.len() - back];
            let length = match first {
                0b1100_0000..=0b1101_1111 => 2,
                0b1110_0000..=0b1110_1111 => 3,
                0b1111_0000..=0b1111_0111 => 4,
                0b1000_0000..=0b1011_1111 => return None,
                _ => 1,
            };
            Some(if length > back { back } else { 0 })
        })
        .unwrap_or(0)
}

/// Asks again while the engine is away, for as long as its restart may take.
async fn patiently<F: Future<Output = Result<Found>>>(mut ask: impl FnMut() -> F) -> Result<Found> {
    let since = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.code() == ErrorCode::Engine && since.elapsed() < ENGINE_ABSENCE_MAX => {
                tracing::debug!(error = %error.chain(), "the engine is away");
                tokio::time::sleep(ENGINE_RETRY).await;
            }
            answer => return answer,
        }
    }
}

fn ended(exit: Exit) -> EventKind {
    if exit.code == 0 {
        return EventKind::Completed { result: None };
    }
    let (code, message) = if exit.out_of_memory {
        (ErrorCode::OutOfMemory, "the container was killed at its memory limit".to_owned())
    } else {
        (ErrorCode::ContainerFailed, format!("the container exited with code {}", exit.code))
    };
    EventKind::Failed { failure: Failure { code, message, remedy: None }, exit_code: Some(exit.code) }
}

fn failed(error: &Error) -> EventKind {
    tracing::warn!(error = %error.chain(), "an execution failed");
    EventKind::Failed { failure: error.into(), exit_code: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        for (bytes, held) in [
            (&b"abc"[..], 0),
            (b"a\xc3", 1),
            (b"a\xc3\xa9", 0),
            (b"\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
            (b"\xf0\x9f\x98\x80", 0),
            (b"\x80\x80\x80\x80", 0),
            (b"", 0),
        ] {
            assert_eq!(unfinished(bytes), held, "{bytes:?}");
        }
    }
}
