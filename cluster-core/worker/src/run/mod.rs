//! One execution on its worker, from its order to its last event, in a task of its own.
//!
//! Each step can be found half done by a later process: what is already there (image, container, output
//! and ends in the log) is looked at and not done again.

pub(crate) mod intent;
mod network;
mod output;
mod sampling;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use aegis_engine::{ContainerSpec, Exit, Found, SIGNALLED, WORKSPACE, container_name};
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Failure, Result},
    execution::{order::PREPARE_MS_MAX, request::ARGUMENT_BYTES_MAX, view::EventKind},
    fail_point::{FailPoint, reached},
};
use bytes::{Bytes, BytesMut};
use intent::{StartIntent, Stop, StopIntent};
use tokio::time::Instant;

use super::{artifacts, journal};
use crate::{
    event_log::IterationEnd,
    state::{Run, Shared},
    volume,
};

/// Between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Time for reading the last output of a stopped container.
const LAST_OUTPUT_LIMIT: Duration = Duration::from_secs(10);
/// While the engine does not answer, it is asked again.
const ENGINE_RETRY: Duration = Duration::from_secs(2);
/// Longest absence of an engine before the run is given up. A restart of an engine takes seconds.
const ENGINE_ABSENCE_MAX: Duration = Duration::from_secs(120);
/// The engine's events tell of an end at once; this is for what they leave out.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// A container that ends within this time of the loss of its engine ended with it.
const ENGINE_LOST_BEFORE_MS: i64 = 30_000;
/// Containers that may vanish before their start. With more, another program removes them.
const VANISHED_MAX: u32 = 5;
const VANISHED_PAUSE: Duration = Duration::from_millis(200);
const IMAGE_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const RESULT_BYTES_MAX: usize = 64 * 1024;

/// Why an iteration is over.
enum Over {
    Exited(Exit),
    /// It ran for longer than one iteration may.
    TimedOut,
}

pub(super) fn spawn(shared: Arc<Shared>, run: Arc<Run>) {
    tokio::spawn(async move {
        let end = drive(&shared, &run).await;
        if let Some(usage) = sampling::event(&run) {
            patiently_written(&run, usage).await;
        }
        patiently_written(&run, end).await;
        if let Err(error) = journal::drop_secrets(&run.directory) {
            tracing::error!(error = %error.chain(), "secrets of an ended execution stay on disk until its release");
        }
        if run.no_room.borrow().is_some() {
            free(&shared, &run).await;
        }
        network::release(&shared, &run).await;
        shared.images.used(&run.journaled.order.manifest.image).await;
        tracing::info!(execution_id = %run.journaled.order.execution_id, "ended");
    });
}

/// A full disk must not turn an end into silence: it is tried until it is written.
async fn patiently_written(run: &Run, event: EventKind) {
    while let Err(error) = run.log.append_synced(event.clone()).await {
        let execution_id = &run.journaled.order.execution_id;
        tracing::error!(%execution_id, error = %error.chain(), "the log of an execution cannot be written");
        tokio::time::sleep(ENGINE_RETRY).await;
    }
}

/// One iteration after another, until one exits with 0 or there may be no more.
async fn drive(shared: &Shared, run: &Run) -> EventKind {
    reached(FailPoint::Journaled).await;
    let progress = *run.log.progress().borrow();
    if progress.last_sequence == 0
        && let Err(error) = run.log.append_synced(EventKind::Started).await
    {
        return failed(&error);
    }
    reached(FailPoint::TakingTold).await;
    let mut iteration = progress.iteration.max(1);
    loop {
        // Told already where an earlier process got that far.
        let is_latest = run.log.progress().borrow().iteration == iteration;
        let end = match run.log.iteration_end().filter(|_| is_latest) {
            Some(end) => end,
            None => match iterate(shared, run, iteration).await {
                Err(end) => {
                    if matches!(end, EventKind::TimedOut { .. }) {
                        collect_artifacts(shared, run, iteration).await;
                    }
                    return end;
                }
                Ok(over) => {
                    let end = iteration_end(shared, run, over);
                    reached(FailPoint::Exited).await;
                    patiently_written(run, told(iteration, &end)).await;
                    reached(FailPoint::IterationTold).await;
                    end
                }
            },
        };
        let name = name(shared, run, iteration);
        match end {
            IterationEnd::Completed => {
                collect_artifacts(shared, run, iteration).await;
                return EventKind::Completed { result: result(shared, run, &name).await };
            }
            IterationEnd::Failed { failure, exit_code, .. } => {
                if iteration >= run.journaled.order.manifest.iterations.max {
                    collect_artifacts(shared, run, iteration).await;
                    return EventKind::Failed { failure, exit_code };
                }
                let cancelled = run.cancel.borrow().clone();
                if let Some(reason) = cancelled {
                    return EventKind::Cancelled { reason };
                }
                if let Err(error) = shared.engine.remove(&name).await {
                    return failed(&error);
                }
                iteration += 1;
            }
        }
    }
}

fn name(shared: &Shared, run: &Run, iteration: u32) -> String {
    container_name(&shared.node_id, &run.journaled.order.attempt(), iteration)
}

/// One iteration, to its end, or to the end of the execution as a whole.
async fn iterate(shared: &Shared, run: &Run, iteration: u32) -> std::result::Result<Over, EventKind> {
    let name = name(shared, run, iteration);
    // What ended while this worker was down ended by itself, however late that is noticed.
    let stop = match StopIntent::read(run, iteration) {
        Some(stop) => stop,
        None => {
            let found = if run.is_new {
                Found::Missing
            } else {
                patiently(|| shared.engine.find(&name)).await.map_err(|error| failed(&error))?
            };
            let is_over = matches!(found, Found::Exited(_));
            let stop = tokio::select! {
                result = work(shared, run, &name, iteration, found) => {
                    return result.map(Over::Exited).map_err(|error| failed(&error));
                }
                stop = stopped(run, iteration), if !is_over => stop,
                never = sampling::sample(shared, run, &name, iteration) => match never {},
            };
            sampling::take(shared, run, &name, iteration).await;
            let stopping = StopIntent { iteration, stop };
            stopping.write(run).await;
            stopping.stop
        }
    };
    reached(FailPoint::StopNoted).await;
    if let Err(error) = shared.engine.stop(&name, STOP_GRACE).await {
        tracing::warn!(container = %name, error = %error.chain(), "a container could not be stopped");
        return Err(failed(&error));
    }
    reached(FailPoint::Stopped).await;
    // Stopped between its start and the word of it.
    let is_told = run.log.progress().borrow().iteration >= iteration;
    if !is_told && matches!(patiently(|| shared.engine.find(&name)).await, Ok(Found::Exited(_))) {
        patiently_written(run, EventKind::IterationStarted { iteration }).await;
    }
    // What it wrote until then belongs to the story.
    match tokio::time::timeout(LAST_OUTPUT_LIMIT, output::collect(shared, run, &name, None)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %error.chain(), "no last output"),
        Err(_) => tracing::debug!("the last output took too long"),
    }
    match stop {
        Stop::Cancelled(reason) => Err(EventKind::Cancelled { reason }),
        Stop::TimedOut => Err(EventKind::TimedOut {
            timeout_ms: run.journaled.order.manifest.timeout_seconds.saturating_mul(1000),
        }),
        Stop::NotReady => {
            let seconds = PREPARE_MS_MAX / 1000;
            let message = format!("its image and workspace were not ready within {seconds} s");
            let remedy = "pull the image on the node beforehand, or use a smaller one";
            let failure = Failure { code: ErrorCode::Timeout, message, remedy: Some(remedy.to_owned()) };
            Err(EventKind::Failed { failure, exit_code: None })
        }
        Stop::IterationTimedOut => Ok(Over::TimedOut),
        Stop::NoRoom(reason) => Err(no_room(reason)),
    }
}

fn no_room(message: String) -> EventKind {
    let remedy =
        "write less, or raise spec.runtime.policy.max_workspace_mb or free some disk space on the node";
    let failure = Failure { code: ErrorCode::ResourceExhausted, message, remedy: Some(remedy.to_owned()) };
    EventKind::Failed { failure, exit_code: None }
}

/// Removes the container and the workspace of an execution that was ended for room. The rest is removed once the
/// controller has the end.
async fn free(shared: &Shared, run: &Run) {
    let freed = async {
        shared.engine.remove(&shared.container_of(run)).await?;
        shared.engine.remove_workspace(shared.volume(&run.journaled.order.attempt())).await
    };
    match freed.await {
        Ok(()) => run.is_freed.store(true, Ordering::Release),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the space of an ended execution is not free yet")
        }
    }
}

/// Resolves when the execution is cancelled, a deadline passes or the disk needs room.
async fn stopped(run: &Run, iteration: u32) -> Stop {
    let mut cancel = run.cancel.subscribe();
    let mut no_room = run.no_room.subscribe();
    tokio::select! {
        asked = cancel.wait_for(Option::is_some) => match asked {
            Ok(reason) => Stop::Cancelled(reason.clone().unwrap_or_default()),
            // The sender lives in the run itself.
            Err(_) => Stop::Cancelled(String::new()),
        },
        asked = no_room.wait_for(Option::is_some) => match asked {
            Ok(reason) => Stop::NoRoom(reason.clone().unwrap_or_default()),
            Err(_) => Stop::NoRoom(String::new()),
        },
        stop = deadline(run) => stop,
        () = iteration_timeout(run, iteration) => Stop::IterationTimedOut,
    }
}

/// Resolves when the execution has run for its timeout, counted from the start of its first container, or when that
/// start takes too long.
async fn deadline(run: &Run) -> Stop {
    let mut progress = run.log.progress();
    let started = tokio::select! {
        () = tokio::time::sleep_until(run.deadline) => return Stop::NotReady,
        started = progress.wait_for(|progress| progress.iteration > 0) => started.map(|now| now.first_started),
    };
    // Fails only with the log, which lives as long as the run.
    let started = started.ok().flatten().unwrap_or_else(Instant::now);
    ended_after(started, run.journaled.order.manifest.timeout_seconds).await;
    Stop::TimedOut
}

async fn iteration_timeout(run: &Run, iteration: u32) {
    let Some(seconds) = run.journaled.order.manifest.iterations.timeout_seconds else {
        return std::future::pending().await;
    };
    // Counted from the container's start.
    let mut progress = run.log.progress();
    let Ok(started) = progress.wait_for(|progress| progress.iteration >= iteration).await.map(|now| *now)
    else {
        return std::future::pending().await;
    };
    ended_after(started.iteration_started.unwrap_or_else(Instant::now), seconds).await;
}

/// Resolves when so many seconds have passed since a moment.
async fn ended_after(since: Instant, seconds: u64) {
    match since.checked_add(Duration::from_secs(seconds)) {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

async fn work(shared: &Shared, run: &Run, name: &str, iteration: u32, found: Found) -> Result<Exit> {
    let was_started = run.log.progress().borrow().iteration >= iteration;
    match found {
        Found::Missing if was_started || StartIntent::is_noted(run, iteration) => {
            return Err(Error::new(ErrorCode::Lost, "the container is gone")
                .remedy("it was removed, or the node's engine lost it; what it wrote until then is kept"));
        }
        Found::Missing => begin(shared, run, iteration, false).await?,
        Found::Created => begin(shared, run, iteration, true).await?,
        Found::Running | Found::Exited(_) if !was_started => {
            patiently_written(run, EventKind::IterationStarted { iteration }).await;
        }
        Found::Running | Found::Exited(_) => {}
    }
    loop {
        let output = output::follow(shared, run, name).await;
        // The stream also ends when the engine does; only the container's state tells.
        match patiently(|| shared.engine.find(name)).await? {
            Found::Exited(exit) => {
                let since = output.as_ref().ok().copied().flatten();
                output::finish(shared, run, name, since).await;
                return Ok(exit);
            }
            Found::Missing => {
                return Err(Error::new(ErrorCode::Lost, "the container was removed while it ran"));
            }
            Found::Created | Found::Running => {
                if let Err(error) = output {
                    // A full disk, an engine that was away: it is read on from where the log ends.
                    tracing::warn!(container = name, error = %error.chain(), "its output waits");
                    tokio::time::sleep(ENGINE_RETRY).await;
                    continue;
                }
                // Output beyond the budget is not read; the end is waited for all the same.
                let _ = tokio::time::timeout(LOOK_INTERVAL, run.changed.notified()).await;
            }
        }
    }
}

/// Until it is started. Docker takes back what it creates for a process that dies meanwhile, and shows it
/// until then: what was found may be gone when it is to be started (seen with 20.10).
async fn begin(shared: &Shared, run: &Run, iteration: u32, is_created: bool) -> Result<()> {
    let mut vanished = 0;
    let mut is_created = is_created;
    if is_created && !patiently(|| network::is_there(shared, run)).await? {
        // What it was to join is gone, and it is created for that alone.
        shared.engine.remove(&name(shared, run, iteration)).await?;
        is_created = false;
    }
    loop {
        if !is_created {
            create(shared, run, iteration).await?;
        }
        match start(shared, run, iteration, is_created).await {
            Err(error) if error.code() == ErrorCode::Lost && vanished < VANISHED_MAX => {
                tracing::warn!(error = %error.chain(), "a container is created again");
                (vanished, is_created) = (vanished + 1, false);
                tokio::time::sleep(VANISHED_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

async fn create(shared: &Shared, run: &Run, iteration: u32) -> Result<()> {
    let order = &run.journaled.order;
    let mut told: Option<Instant> = None;
    let image_progress = |message: String| {
        if told.is_none_or(|at| at.elapsed() >= IMAGE_PROGRESS_INTERVAL) {
            told = Some(Instant::now());
            // Progress is worth no failure.
            let _ = run.log.append(EventKind::ImageProgress { message });
        }
    };
    shared.images.used(&order.manifest.image).await;
    let look = async || patiently(|| shared.engine.image_config(&order.manifest.image)).await;
    let image = match look().await? {
        Some(image) => image,
        None => {
            shared.engine.pull(&order.manifest.image, order.login.as_ref(), image_progress).await?;
            shared.images.brought(&order.manifest.image).await?;
            look().await?.ok_or_else(|| {
                Error::new(
                    ErrorCode::ImageNotFound,
                    format!("the image {} was removed", order.manifest.image),
                )
            })?
        }
    };
    if let Err(error) = journal::drop_login(&run.directory) {
        tracing::error!(error = %error.chain(), "a registry's login stays on disk until the execution ends");
    }
    let network = network::ensure(shared, run).await?;
    let attempt = order.attempt();
    // Later iterations find what earlier ones left.
    if order.manifest.has_workspace() && iteration == 1 {
        let volume = shared.volume(&attempt);
        volume::place(&shared.engine, shared.incoming.kept(), volume, &order.manifest, &image.user).await?;
    }
    let spec = ContainerSpec {
        name: container_name(&shared.node_id, &attempt, iteration),
        node_id: &shared.node_id,
        owner: &shared.owner,
        attempt: &attempt,
        iteration,
        manifest: &order.manifest,
        env: environment(shared, run, iteration),
        network: &network,
        gpus: &run.journaled.gpus,
        output_mb: shared.output_mb(),
        image,
        has_input: !order.input.is_empty(),
    };
    shared.engine.ensure_created(&spec).await?;
    reached(FailPoint::Created).await;
    Ok(())
}

/// Starts the container. One that was found may have been created by another version, whose stdin is open.
async fn start(shared: &Shared, run: &Run, iteration: u32, was_found: bool) -> Result<()> {
    run.out_of_memory.store(false, Ordering::Relaxed);
    let input = &run.journaled.order.input;
    let input = (was_found || !input.is_empty()).then(|| Bytes::from(input.clone()));
    StartIntent { iteration }.write(run);
    shared.engine.start(&name(shared, run, iteration), input).await?;
    reached(FailPoint::Started).await;
    patiently_written(run, EventKind::IterationStarted { iteration }).await;
    reached(FailPoint::StartTold).await;
    Ok(())
}

fn environment(shared: &Shared, run: &Run, iteration: u32) -> Vec<String> {
    let order = &run.journaled.order;
    let given = order.manifest.env.iter().chain(&order.secrets.0);
    let mut env = given.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    env.push(format!("AEGIS_EXECUTION_ID={}", order.execution_id));
    env.push(format!("AEGIS_NODE_ID={}", shared.node_id));
    env.push(format!("AEGIS_ATTEMPT={}", order.attempt));
    env.push(format!("AEGIS_ITERATION={iteration}"));
    if let Some(IterationEnd::Failed { failure, stderr_tail, .. }) = run.log.iteration_end() {
        let error = format!("{}\n{stderr_tail}", failure.message).replace('\0', "\u{fffd}");
        env.push(format!("AEGIS_LAST_ERROR={error}"));
    }
    env.extend(shared.env.iter().map(|(name, value)| format!("{name}={value}")));
    // What is too large for one variable comes on stdin alone.
    const NAME_BYTES: usize = "AEGIS_INPUT=".len();
    if order.input.len() + NAME_BYTES <= ARGUMENT_BYTES_MAX && !order.input.contains('\0') {
        env.push(format!("AEGIS_INPUT={}", order.input));
    }
    env
}

/// From the latest iteration's container, which has ended.
async fn collect_artifacts(shared: &Shared, run: &Run, iteration: u32) {
    let paths = &run.journaled.order.manifest.artifacts;
    artifacts::collect(&shared.engine, &name(shared, run, iteration), paths, &run.directory).await;
}

/// The named file's text; else the last line on stdout, where it is a JSON object or array.
async fn result(shared: &Shared, run: &Run, name: &str) -> Option<String> {
    if let Some(path) = &run.journaled.order.manifest.result_file {
        let path = path.strip_prefix(WORKSPACE).unwrap_or(path).trim_start_matches('/');
        let read = shared.engine.read_file(name, &format!("{WORKSPACE}/{path}"), RESULT_BYTES_MAX).await;
        let mut bytes = read
            .inspect_err(|error| tracing::warn!(container = name, error = %error.chain(), "no result"))
            .ok()??;
        output::mask(&mut bytes, &output::secrets(run));
        return String::from_utf8(bytes).ok();
    }
    let line = match run.log.last_line() {
        Some(line) => line,
        // Beyond what the log takes; read from the engine, which masks nothing.
        None => {
            let mut line = BytesMut::from(shared.engine.last_line(name).await.ok()?);
            output::mask(&mut line, &output::secrets(run));
            line.freeze()
        }
    };
    let text = std::str::from_utf8(line.trim_ascii()).ok()?;
    let is_structured = text.starts_with(['{', '[']) && text.len() <= RESULT_BYTES_MAX;
    let is_json = is_structured && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    is_json.then(|| text.to_owned())
}

/// Asks again while the engine is away, for as long as its restart may take.
async fn patiently<T, F: Future<Output = Result<T>>>(mut ask: impl FnMut() -> F) -> Result<T> {
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

fn iteration_end(shared: &Shared, run: &Run, over: Over) -> IterationEnd {
    let (failure, exit_code) = match over {
        Over::Exited(Exit { code: 0, .. }) => return IterationEnd::Completed,
        Over::Exited(exit) => (exit_failure(shared, run, exit), Some(exit.code)),
        Over::TimedOut => {
            let seconds = run.journaled.order.manifest.iterations.timeout_seconds.unwrap_or_default();
            let message = format!("the iteration ran for longer than its timeout of {seconds} s");
            let remedy = Some("raise iteration_timeout_seconds".to_owned());
            (Failure { code: ErrorCode::Timeout, message, remedy }, None)
        }
    };
    IterationEnd::Failed { failure, exit_code, stderr_tail: run.log.stderr_tail() }
}

fn exit_failure(shared: &Shared, run: &Run, exit: Exit) -> Failure {
    let engine_lost = now_ms().saturating_sub(shared.engine_lost_ms.load(Ordering::Acquire));
    let (code, message, remedy) = if exit.out_of_memory || run.out_of_memory.load(Ordering::Relaxed) {
        let message = "the container was killed at its memory limit".to_owned();
        (ErrorCode::OutOfMemory, message, Some("ask for more with resources.memory_mb".to_owned()))
    } else if exit.with_engine || exit.code > SIGNALLED && engine_lost < ENGINE_LOST_BEFORE_MS {
        let message =
            format!("the node's container engine stopped, and the container with it ({})", exit.code);
        let remedy = "submit it again, with max_attempts above 1 where it may begin again by itself";
        (ErrorCode::Engine, message, Some(remedy.to_owned()))
    } else {
        // Its output says why.
        (ErrorCode::ContainerFailed, format!("the container exited with code {}", exit.code), None)
    };
    Failure { code, message, remedy }
}

fn told(iteration: u32, end: &IterationEnd) -> EventKind {
    match end.clone() {
        IterationEnd::Completed => EventKind::IterationCompleted { iteration },
        IterationEnd::Failed { failure, exit_code, stderr_tail } => {
            EventKind::IterationFailed { iteration, failure, exit_code, stderr_tail }
        }
    }
}

fn failed(error: &Error) -> EventKind {
    tracing::warn!(error = %error.chain(), "an execution failed");
    EventKind::Failed { failure: error.into(), exit_code: None }
}
