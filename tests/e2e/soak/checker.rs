//! Judges a soak: compares submissions with the API, the event logs, and the engines' events. Pure functions.

use std::collections::{BTreeMap, BTreeSet};

use cluster_core::types::{
    error::ErrorCode,
    execution::{
        lifecycle::State,
        view::{EventKind, EventView, ExecutionView},
    },
    ids::ExecutionId,
};

use super::work::{END, LINE, START, Work};

/// Exit code of a container that was killed from outside.
const KILLED: i32 = 137;

/// One acknowledged submission.
#[derive(Debug, Clone)]
pub struct Submitted {
    pub id: ExecutionId,
    pub work: Work,
    /// Running containers of it that the soak removed.
    pub removed: u32,
}

/// Final state of an execution.
#[derive(Debug, Clone)]
pub struct Seen {
    pub view: ExecutionView,
    pub events: Vec<EventView>,
}

/// Start of a container, as its engine reported it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineStart {
    pub execution_id: ExecutionId,
    pub attempt: u32,
    pub iteration: u32,
    /// Id of the container: a second container of the same name has another id.
    pub container: String,
}

/// All inputs of the judgement.
#[derive(Debug, Default)]
pub struct World {
    pub submitted: Vec<Submitted>,
    pub seen: BTreeMap<ExecutionId, Seen>,
    pub starts: BTreeSet<EngineStart>,
    /// Remaining containers of these executions, including ended ones.
    pub containers: Vec<String>,
    /// Remaining journal folders.
    pub journals: Vec<String>,
}

/// Returns all problems, one per line. Empty if there are no problems.
pub fn check(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for left in &world.containers {
        wrong.push(format!("container {left} is left over"));
    }
    for left in &world.journals {
        wrong.push(format!("journal {left} is left over"));
    }
    let mut numbers = BTreeSet::new();
    for submitted in &world.submitted {
        let mut found = Vec::new();
        match world.seen.get(&submitted.id) {
            None => found.push("it was acknowledged and is not there".to_owned()),
            Some(seen) => {
                found.extend(check_numbers(seen));
                found.extend(check_end(seen));
                found.extend(check_outcome(submitted, seen));
                found.extend(check_output(submitted, seen, &mut numbers));
                found.extend(check_starts(submitted, seen, &world.starts));
            }
        }
        let name = format!("{} ({:?})", submitted.id, submitted.work);
        if let (false, Some(seen)) = (found.is_empty(), world.seen.get(&submitted.id)) {
            found.push(format!("what was told: {}", told(seen)));
        }
        wrong.extend(found.into_iter().map(|what| format!("{name}: {what}")));
    }
    wrong
}

/// Summarises the events: time and kind; for output, its amount.
fn told(seen: &Seen) -> String {
    let short = |event: &EventView| match &event.kind {
        EventKind::Output { data, .. } => format!("{} bytes", data.len()),
        kind => format!("{} {}.{} {kind:?}", event.time_ms, event.attempt, event.sequence),
    };
    seen.events.iter().map(short).collect::<Vec<_>>().join("; ")
}

/// Checks that the numbers run from 1 to the view's last number, without gaps or duplicates.
fn check_numbers(seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    for (expected, event) in (1..).zip(&seen.events) {
        if event.sequence != expected {
            wrong.push(format!("event {} stands where {expected} should", event.sequence));
            break;
        }
    }
    let last = seen.events.last().map_or(0, |event| event.sequence);
    if last != seen.view.last_sequence {
        wrong.push(format!("the last event is {last}, the view says {}", seen.view.last_sequence));
    }
    wrong
}

/// Checks that there is one end, which is the last event and matches the view.
fn check_end(seen: &Seen) -> Vec<String> {
    let ends = seen.events.iter().filter_map(|event| event.kind.state().filter(|state| state.is_final()));
    let ends: Vec<State> = ends.collect();
    let last = seen.events.last().and_then(|event| event.kind.state());
    match ends.as_slice() {
        [end] if *end == seen.view.state && last == Some(*end) => Vec::new(),
        ends => vec![format!(
            "its ends are {ends:?}, its last event shows {last:?}, its view {:?}",
            seen.view.state
        )],
    }
}

/// Checks the end, which is that of its work, or was caused by the soak.
fn check_outcome(submitted: &Submitted, seen: &Seen) -> Vec<String> {
    let view = &seen.view;
    let code = view.failure.as_ref().map(|failure| failure.code);
    let succeeded = view.state == State::Succeeded && view.exit_code == Some(0);
    let own = match submitted.work {
        Work::Exits { code: 0, .. }
        | Work::Retries { code: 0, .. }
        | Work::FailsFirst { .. }
        | Work::Writes { .. } => succeeded,
        Work::Exits { code: wanted, .. } | Work::Retries { code: wanted, .. } => {
            view.state == State::Failed
                && view.exit_code == Some(wanted)
                && code == Some(ErrorCode::ContainerFailed)
        }
        Work::Iterates { succeeds_at } => succeeded && view.iteration == succeeds_at,
        Work::IsCancelled { .. } => view.state == State::Cancelled,
        Work::TimesOut { .. } => view.state == State::Failed && code == Some(ErrorCode::Timeout),
    };
    let robbed = submitted.removed >= submitted.work.max_attempts() && code == Some(ErrorCode::Lost);
    // The worker may see the end of a container that is taken away before it sees that it is gone.
    let killed =
        submitted.removed > 0 && seen.events.iter().any(|event| exit_code(&event.kind) == Some(KILLED));
    if own || (view.state == State::Failed && (robbed || killed)) {
        return Vec::new();
    }
    vec![format!(
        "it ended as {:?}, exit code {:?}, {:?}, iteration {}, with {} containers taken away",
        view.state, view.exit_code, view.failure, view.iteration, submitted.removed
    )]
}

fn exit_code(kind: &EventKind) -> Option<i32> {
    match kind {
        EventKind::Failed { exit_code, .. } | EventKind::IterationFailed { exit_code, .. } => *exit_code,
        _ => None,
    }
}

/// Output of one container, and whether it ended by itself.
#[derive(Debug, Default)]
struct Container {
    text: String,
    /// Reported exit code.
    exited: Option<i32>,
}

/// Returns output by container: attempt and iteration.
fn containers(submitted: &Submitted, seen: &Seen) -> Result<BTreeMap<(u32, u32), Container>, String> {
    let mut containers: BTreeMap<(u32, u32), Container> = BTreeMap::new();
    let mut current = None;
    for event in &seen.events {
        match &event.kind {
            EventKind::IterationStarted { iteration } => {
                let name = (event.attempt, *iteration);
                if current.is_some_and(|before| before >= name) {
                    return Err(format!("{name:?} began after {current:?}"));
                }
                current = Some(name);
                containers.insert(name, Container::default());
            }
            EventKind::Output { data, truncated, .. } => {
                let open = current.filter(|(attempt, _)| *attempt == event.attempt);
                let Some(container) = open.and_then(|name| containers.get_mut(&name)) else {
                    return Err(format!("event {} is output of no container", event.sequence));
                };
                // Of a container that was taken away nobody can read the rest, and it is told so.
                if *truncated && submitted.removed == 0 {
                    return Err(format!("event {} says that output was cut off", event.sequence));
                }
                container.text.push_str(&String::from_utf8_lossy(data));
            }
            EventKind::IterationCompleted { iteration } => {
                containers.entry((event.attempt, *iteration)).or_default().exited = Some(0);
            }
            EventKind::IterationFailed { iteration, exit_code, .. } => {
                containers.entry((event.attempt, *iteration)).or_default().exited = *exit_code;
            }
            _ => {}
        }
    }
    Ok(containers)
}

/// Checks that each container's lines occur once and in order, completely if it ended by itself, with one start each.
fn check_output(submitted: &Submitted, seen: &Seen, numbers: &mut BTreeSet<String>) -> Vec<String> {
    let containers = match containers(submitted, seen) {
        Ok(containers) => containers,
        Err(wrong) => return vec![wrong],
    };
    let mut wrong = Vec::new();
    for ((attempt, iteration), container) in containers {
        let is_whole = container.exited.is_some_and(|code| code != KILLED);
        if let Err(what) = check_lines(submitted.work, iteration, &container.text, is_whole, numbers) {
            wrong.push(format!("attempt {attempt}, iteration {iteration}: {what}"));
        }
    }
    wrong
}

fn check_lines(
    work: Work,
    iteration: u32,
    text: &str,
    is_whole: bool,
    numbers: &mut BTreeSet<String>,
) -> Result<(), String> {
    if text.is_empty() && !is_whole {
        return Ok(());
    }
    // Cut off where it was killed, a line may be half there.
    let mut lines =
        text.split_inclusive('\n').filter(|line| is_whole || line.ends_with('\n')).map(str::trim_end);
    let Some(first) = lines.next() else {
        return if is_whole { Err("it wrote nothing".into()) } else { Ok(()) };
    };
    let told = first.strip_prefix(START).and_then(|rest| rest.trim().split_once(' '));
    let Some((number, told)) = told else { return Err(format!("its first line is {first:?}")) };
    if told != iteration.to_string() {
        return Err(format!("it says that it is iteration {told}"));
    }
    if !numbers.insert(number.to_owned()) {
        return Err(format!("the number {number} of its start is another's too"));
    }
    let (mut count, mut ended) = (0, false);
    for line in lines {
        let number =
            line.strip_prefix(LINE).and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
        match (line, number) {
            _ if ended => return Err(format!("{line:?} comes after its end")),
            (END, _) => ended = true,
            (_, Some(number)) if number == count + 1 => count = number,
            _ => return Err(format!("{line:?} comes after line {count}")),
        }
    }
    match (is_whole, work.lines()) {
        (true, Some(wanted)) if !ended || count != wanted => Err(format!(
            "{count} of {wanted} lines are there, its end is {}",
            if ended { "too" } else { "not" }
        )),
        (_, Some(wanted)) if count > wanted => Err(format!("{count} of {wanted} lines are there")),
        _ => Ok(()),
    }
}

/// Checks the log against the engines' events: each container started once, and there are no others.
fn check_starts(submitted: &Submitted, seen: &Seen, starts: &BTreeSet<EngineStart>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_container: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for start in starts.iter().filter(|start| start.execution_id == submitted.id) {
        *by_container.entry((start.attempt, start.iteration)).or_default() += 1;
    }
    let attempts = by_container.keys().map(|(attempt, _)| attempt).collect::<BTreeSet<_>>().len();
    let attempts_max = submitted.work.max_attempts() + submitted.work.retries();
    if attempts > attempts_max as usize {
        wrong.push(format!("{attempts} attempts ran of {attempts_max}"));
    }
    for (name, count) in &by_container {
        if *count > 1 {
            wrong.push(format!("its engine started {name:?} {count} times"));
        }
    }
    for event in &seen.events {
        if let EventKind::IterationStarted { iteration } = event.kind
            && !by_container.contains_key(&(event.attempt, iteration))
        {
            wrong.push(format!("no engine started attempt {}, iteration {iteration}", event.attempt));
        }
    }
    wrong
}
