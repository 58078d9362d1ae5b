//! Cost of a tool call over HTTP and memory of the daemon, compared with a bare rmcp server in the same run: only
//! ratios count.
//!
//! `cargo bench -p aegis --bench mcp` needs neither Docker nor hosts. A controller and ten joined workers run in
//! separate processes, as for a user. The bare server is this program in another process. The bench prints one line per
//! figure, and fails only on errors.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "mcp/bare.rs"]
mod bare;
#[path = "mcp/load.rs"]
mod load;
#[path = "../e2e/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::time::Duration;

use bare::Bare;
use load::{Endpoint, Measured};
use serde_json::{Value, json};
use support::{
    cli,
    controller::{Controller, Setup, free_port, memory_kb},
    poll::until,
};

const NODES: usize = 10;
const CLIENTS: usize = 50;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(5);
/// Pause before memory is read, so that memory of start and load is released.
const REST: Duration = Duration::from_secs(30);
const JOIN_LIMIT: Duration = Duration::from_secs(60);

fn main() {
    if std::env::args().any(|argument| argument == bare::ARGUMENT) {
        return bare::main();
    }
    // `cargo test --benches` would run it too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    let port = free_port();
    let cluster = format!("role: controller\n    cluster_grpc_port: {port}");
    let controller = Controller::start(&Setup { id: "bench", cluster, ..Setup::default() }).await;
    let workers = join(&controller, port).await;
    let ours = Endpoint {
        address: controller.address().expect("HTTP is served"),
        token: Some(controller.token()),
        about: "aegis",
    };
    let listed = load::one(&ours).await;
    assert_eq!(listed["peers"].as_array().map(Vec::len), Some(NODES), "{listed:#}");
    let bare = Bare::start(&listed);
    let floor = Endpoint { address: bare.address.clone(), token: None, about: "the bare server" };
    assert_eq!(load::one(&floor).await, listed, "both answer the same");

    println!(
        "{} build, {NODES} nodes, {} bytes of result",
        if cfg!(debug_assertions) { "debug" } else { "optimised" },
        listed.to_string().len()
    );
    line("row", "figure", "ours", "floor", "ratio", "goal");
    memory(&controller, &workers, &bare, "at rest").await;
    rates(&ours, &floor).await;
    memory(&controller, &workers, &bare, "at rest, after the load").await;
    tokens();
}

/// Starts workers one after another, each once the previous one has joined.
async fn join(controller: &Controller, port: u16) -> Vec<Controller> {
    let mut workers = Vec::new();
    for number in 0..NODES {
        let id: &'static str = format!("worker-{number}").leak();
        let words = ["node", "token", "create", "--node-id", id, "--output", "json"];
        let token = controller.cli(&words).await.json()["token"].as_str().expect("a token").to_owned();
        let mut worker = Controller::prepare(&Setup { id, ..support::pair::worker_setup(port, &token) });
        worker.launch();
        until("the worker is active", JOIN_LIMIT, async || {
            let status = controller.api("/v1/cluster/nodes").await.ok()?;
            let nodes = status["nodes"].as_array()?.clone();
            let known = nodes.iter().find(|known| known["node_id"] == id)?;
            (known["status"] == "active").then_some(())
        })
        .await;
        workers.push(worker);
    }
    workers
}

fn line(row: &str, what: &str, ours: &str, floor: &str, ratio: &str, goal: &str) {
    println!("{row:>3} | {what:<44} | {ours:>10} | {floor:>10} | {ratio:>6} | {goal}");
}

async fn memory(controller: &Controller, workers: &[Controller], bare: &Bare, when: &str) {
    // Rest is time, and no condition.
    tokio::time::sleep(REST).await;
    let megabytes = |kb: u64| kb as f64 / 1024.0;
    let floor = megabytes(memory_kb(bare.id(), "VmRSS"));
    let largest = workers.iter().map(|worker| worker.memory_kb("VmRSS")).max().expect("workers");
    for (who, kb, goal) in [
        ("controller", controller.memory_kb("VmRSS"), "<= 30"),
        ("worker, the largest of them", largest, "<= 20"),
    ] {
        let (what, ours) = (format!("MB of a {who}, {when}"), megabytes(kb));
        line(
            "2",
            &what,
            &format!("{ours:.1}"),
            &format!("{floor:.1}"),
            &format!("{:.2}", ours / floor),
            goal,
        );
    }
}

/// Alternates both, so that they see the same load.
async fn rates(ours: &Endpoint, floor: &Endpoint) {
    for clients in [CLIENTS, 1] {
        let (mut of_ours, mut of_floor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_ours.push(load::run(ours, clients, ROUND).await);
            of_floor.push(load::run(floor, clients, ROUND).await);
        }
        let who = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
        let rate = |round: &Measured| round.rate;
        let goal = if clients == 1 { "" } else { ">= 0.8" };
        compared(&format!("list_peers a second, {who}"), &of_ours, &of_floor, rate, 0, goal);
        compared(&format!("ms, {who}, p50"), &of_ours, &of_floor, |round| round.milliseconds(0.5), 2, "");
        let goal = if clients == 1 { "" } else { "<= 10 ms" };
        compared(&format!("ms, {who}, p99"), &of_ours, &of_floor, |round| round.milliseconds(0.99), 2, goal);
    }
}

/// Returns the median of the rounds of each.
fn compared(
    what: &str,
    ours: &[Measured],
    floor: &[Measured],
    figure: impl Fn(&Measured) -> f64,
    digits: usize,
    goal: &str,
) {
    let median = |rounds: &[Measured]| {
        let mut figures: Vec<f64> = rounds.iter().map(&figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let (ours, floor) = (median(ours), median(floor));
    let shown = |figure: f64| format!("{figure:.digits$}");
    line("1", what, &shown(ours), &shown(floor), &format!("{:.2}", ours / floor), goal);
}

/// Counts tokens as the test of `tools.json` does.
fn tokens() {
    let listed = std::process::Command::new(cli::BINARY).arg("tools").output().expect("aegis starts");
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("the manifest");
    let answer = json!({ "tools": listed["tools"] }).to_string();
    let count = tiktoken_rs::o200k_base().expect("a vocabulary").encode_ordinary(&answer).len();
    line("15", "tokens of tools/list", &count.to_string(), "", "", "<= 4000");
}
