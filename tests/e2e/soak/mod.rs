//! Soak: work of every kind is submitted at a steady rate while the controller and the workers are killed at random
//! times. At the end each submission has one recorded outcome, the right one, and nothing is left over.
//!
//! Three engines: the controller's own node and the two hosts. `AEGIS_SOAK_SECONDS` is the duration (default 600).
//! `AEGIS_SOAK_SEED` repeats the same work and the same kills; it is printed.

mod chaos;
mod checker;
mod checks;
mod witness;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use chaos::Kill;
use checker::{Seen, Submitted, World};
use cluster_core::types::{
    execution::view::{EventView, ExecutionView},
    ids::ExecutionId,
};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use witness::Witness;
use work::Work;

use crate::support::{
    fleet::{Fleet, fleet},
    http,
    poll::within,
};

const SECONDS_DEFAULT: u64 = 600;
/// Three engines on two cores.
const OPEN_MAX: usize = 12;
const SUBMIT_EVERY_MS: std::ops::Range<u64> = 100..900;
/// The controller is down for some seconds at a time.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Time after the last kill for all executions to end and for nodes to release them.
const SETTLE_LIMIT: Duration = Duration::from_secs(240);
const FINAL_WAIT_SECONDS: u64 = 10;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name}: {text:?}: {e}")))
}

/// State that the submitters share.
struct Soak {
    socket: PathBuf,
    submitted: Mutex<Vec<Submitted>>,
    open: Arc<Semaphore>,
    seed: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "long; run by tests/run --all"]
async fn executions_survive_random_kills() {
    let seed = from_environment("AEGIS_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(from_environment("AEGIS_SOAK_SECONDS").unwrap_or(SECONDS_DEFAULT));
    println!("soak of {} s, AEGIS_SOAK_SEED={seed}", length.as_secs());
    let mut fleet = fleet().await;
    let witness = Witness::new(&fleet.hosts);
    let soak = Arc::new(Soak {
        socket: fleet.controller.data.join("api.sock"),
        submitted: Mutex::default(),
        open: Arc::new(Semaphore::new(OPEN_MAX)),
        seed,
    });
    let end = Instant::now() + length;
    let submitting = tokio::spawn(submit_until(soak.clone(), end));
    let killed = kill_until(&soak, &mut fleet, end).await;
    let mut running = submitting.await.expect("the submitter ends");
    let all_ended = async { while running.join_next().await.is_some_and(|ended| ended.is_ok()) {} };
    if timeout(SETTLE_LIMIT, all_ended).await.is_err() {
        println!("not all have ended within {SETTLE_LIMIT:?}");
    }
    let world = look(&soak, &fleet, &witness, &killed.robbed).await;
    report(&world, &killed);
    let wrong = checker::check(&world);
    assert!(wrong.is_empty(), "AEGIS_SOAK_SEED={seed}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Submits one after another, a bounded number at a time, each in its own task.
async fn submit_until(soak: Arc<Soak>, end: Instant) -> JoinSet<()> {
    let mut rng = Rng::with_seed(soak.seed);
    let mut running = JoinSet::new();
    for number in 0.. {
        let work = Work::random(&mut rng);
        let pause = Duration::from_millis(rng.u64(SUBMIT_EVERY_MS));
        let permit = soak.open.clone().acquire_owned().await.expect("it is never closed");
        if Instant::now() >= end {
            break;
        }
        let soak = soak.clone();
        running.spawn(async move {
            let id = soak.submit(work, &format!("soak-{number}"), None).await;
            if let Work::IsCancelled { after } = work {
                sleep(after).await;
                soak.cancel(&id).await;
            }
            soak.ended(&id).await;
            drop(permit);
        });
        sleep(pause).await;
    }
    running
}

/// Kills, and the recovery time of each.
#[derive(Default)]
struct Killed {
    by_name: BTreeMap<&'static str, Vec<Duration>>,
    robbed: Vec<ExecutionId>,
}

async fn kill_until(soak: &Arc<Soak>, fleet: &mut Fleet, end: Instant) -> Killed {
    let mut rng = Rng::with_seed(!soak.seed);
    let mut killed = Killed::default();
    for number in 0.. {
        sleep(Duration::from_millis(rng.u64(500..8_000))).await;
        if Instant::now() >= end {
            break;
        }
        let kill = Kill::random(&mut rng);
        let since = Instant::now();
        println!("{:>5} s before the end: kill {kill:?}", end.duration_since(since).as_secs());
        killed.robbed.extend(kill.inflict(fleet).await);
        // Some come while the one before is not over yet.
        let took = if rng.u32(0..4) > 0 { Some(recovery(soak, kill, number, since).await) } else { None };
        killed.by_name.entry(kill.name()).or_default().extend(took.or(Some(Duration::ZERO)));
    }
    killed
}

/// Waits until each affected node has run an execution that was submitted after the kill.
async fn recovery(soak: &Arc<Soak>, kill: Kill, number: usize, since: Instant) -> Duration {
    for node in kill.nodes() {
        let key = format!("soak-probe-{number}-{node}");
        let id = soak.submit(Work::Exits { lines: 1, code: 0 }, &key, Some(node)).await;
        soak.ended(&id).await;
    }
    since.elapsed()
}

impl Soak {
    /// Submits until acknowledged. The key makes repeated submissions one execution.
    async fn submit(&self, work: Work, key: &str, node: Option<&str>) -> ExecutionId {
        let mut body = work.request(key);
        if let Some(node) = node {
            body["node_id"] = json!(node);
        }
        let view = self.post("/v1/executions", &body).await;
        let id = ExecutionId::parse(view["execution_id"].as_str().expect("an id")).expect("an id");
        let submitted = Submitted { id: id.clone(), work, removed: 0 };
        self.submitted.lock().expect("no panic holds it").push(submitted);
        id
    }

    async fn cancel(&self, id: &ExecutionId) {
        self.post(&format!("/v1/executions/{id}/cancel"), &json!({ "reason": "the soak wants it" })).await;
    }

    /// Repeats the request until the answer is not an error of a stopping or starting controller.
    async fn post(&self, path: &str, body: &Value) -> Value {
        let answered = async {
            loop {
                if let Ok(answer) = http::post_unix(&self.socket, path, body).await {
                    match answer["code"].as_str() {
                        None => return answer,
                        Some("Unavailable") => {}
                        Some(_) => panic!("{path}: {answer}"),
                    }
                }
                sleep(ASK_AGAIN).await;
            }
        };
        within(path, ANSWER_LIMIT, answered).await
    }

    async fn ended(&self, id: &ExecutionId) {
        let path = format!("/v1/executions/{id}?wait_seconds={FINAL_WAIT_SECONDS}");
        while !view(&self.socket, &path).await.is_some_and(|view| view.state.is_final()) {
            sleep(ASK_AGAIN).await;
        }
    }
}

async fn view(socket: &Path, path: &str) -> Option<ExecutionView> {
    serde_json::from_value(http::get_unix(socket, path).await.ok()?).ok()
}

/// Reads the final state, after nodes had the time to release executions.
async fn look(soak: &Soak, fleet: &Fleet, witness: &Witness, robbed: &[ExecutionId]) -> World {
    let mut submitted = soak.submitted.lock().expect("no panic holds it").clone();
    for one in &mut submitted {
        one.removed = u32::try_from(robbed.iter().filter(|id| **id == one.id).count()).expect("few");
    }
    let ids: BTreeSet<String> = submitted.iter().map(|one| one.id.to_string()).collect();
    let left = Instant::now() + SETTLE_LIMIT;
    let (containers, journals) = loop {
        let found = (witness::containers(fleet, &ids), witness::journals(fleet));
        if (found.0.is_empty() && found.1.is_empty()) || Instant::now() >= left {
            break found;
        }
        sleep(ASK_AGAIN).await;
    };
    let waited = SETTLE_LIMIT.saturating_sub(left.duration_since(Instant::now()));
    println!("{} containers and journals were left after {waited:?}", containers.len() + journals.len());
    let mut seen = BTreeMap::new();
    for Submitted { id, .. } in &submitted {
        if let Some(view) = view(&soak.socket, &format!("/v1/executions/{id}")).await {
            seen.insert(id.clone(), Seen { events: events(&soak.socket, id, &view).await, view });
        }
    }
    World { submitted, seen, starts: witness.starts(), containers, journals }
}

/// Reads the whole log, as a late client does.
async fn events(socket: &Path, id: &ExecutionId, view: &ExecutionView) -> Vec<EventView> {
    let last = format!("id: {}\n", view.last_sequence);
    let is_final = view.state.is_final();
    let holds = |text: &str| if is_final { text.contains("event: end") } else { text.contains(&last) };
    let text = http::read_unix(socket, &format!("/v1/executions/{id}/events"), holds).await;
    let messages = text.split("\n\n").filter(|message| message.contains("event: event"));
    let data = messages.filter_map(|message| message.lines().find_map(|line| line.strip_prefix("data: ")));
    data.map(|json| serde_json::from_str(json).unwrap_or_else(|e| panic!("{id}: {e}: {json}"))).collect()
}

fn report(world: &World, killed: &Killed) {
    println!("kills:");
    for (name, took) in &killed.by_name {
        let measured = took.iter().filter(|took| !took.is_zero());
        let longest = measured.max().copied().unwrap_or_default();
        println!("  {:>4}  {name} (longest recovery {:.1} s)", took.len(), longest.as_secs_f64());
    }
    println!("  {:>4}  containers taken away", killed.robbed.len());
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for submitted in &world.submitted {
        let Some(seen) = world.seen.get(&submitted.id) else { continue };
        let view = &seen.view;
        let code = view.failure.as_ref().map(|failure| format!(" ({:?})", failure.code)).unwrap_or_default();
        *outcomes.entry(format!("{}: {}{code}", submitted.work.name(), view.state.name())).or_default() += 1;
    }
    println!("executions: {}, containers started: {}", world.submitted.len(), world.starts.len());
    for (outcome, count) in outcomes {
        println!("  {count:>4}  {outcome}");
    }
    let events: usize = world.seen.values().map(|seen| seen.events.len()).sum();
    let again = world.seen.values().filter(|seen| seen.view.attempt > 1).count();
    println!("events: {events}; executions with more than one attempt: {again}");
}
