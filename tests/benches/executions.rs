//! Duration of an execution, compared with the same container made through the engine alone in the same run: only
//! ratios count.
//!
//! `cargo bench -p aegis --bench executions` needs Docker and `busybox:testbed`, and prints one line per figure. A
//! controller with its own node runs in a separate process, as for a user. For both, the engine's events define when a
//! container started.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "executions/docker.rs"]
mod docker;
#[path = "executions/output.rs"]
mod output;
#[path = "executions/slow_disk.rs"]
mod slow_disk;
#[path = "../e2e/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use docker::Docker;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use support::{
    IMAGE,
    controller::{Controller, Setup},
    http,
};

const ROUNDS: usize = 50;
const CONTAINERS: usize = 48;
const AT_ONCE: usize = 16;

struct Bench {
    controller: Controller,
    docker: Docker,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // `cargo test --benches` would run it too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("{} build", if cfg!(debug_assertions) { "debug" } else { "optimised" });
    line("row", "figure", "ours", "floor", "ratio", "goal");
    if !is_wanted("slow-disk") {
        beside_the_engine().await;
    }
    slow_disk::run().await;
}

/// Selects figures: `cargo bench … -- slow-disk` measures only that one.
fn is_wanted(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

async fn beside_the_engine() {
    let setup = Setup { id: "bench", runtime: "{policy: {max_output_mb: 256}}", ..Setup::default() };
    let controller = Controller::start(&setup).await;
    let docker = Docker::new().await;
    let bench = Bench { controller, docker };
    let body = bench.body_of_ours().await;
    bench.start_of_one(&body).await;
    bench.starts_at_once(&body).await;
    output::run(&bench, &body).await;
}

pub fn line(row: &str, what: &str, ours: &str, floor: &str, ratio: &str, goal: &str) {
    println!("{row:>3} | {what:<48} | {ours:>12} | {floor:>12} | {ratio:>6} | {goal}");
}

/// Prints milliseconds, and the overhead.
fn times(row: &str, what: &str, share: f64, ours: &mut [f64], floor: &mut [f64], goal: &str) {
    let (ours, floor) = (percentile(ours, share), percentile(floor, share));
    let added = format!("+{:.0} ms", ours - floor);
    line(row, what, &format!("{ours:.0} ms"), &format!("{floor:.0} ms"), &added, goal);
}

pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * share) as usize).min(values.len() - 1)]
}

impl Bench {
    fn socket(&self) -> PathBuf {
        self.controller.data.join("api.sock")
    }

    async fn submit(&self, command: &[&str], cpu: f64) -> String {
        let body =
            json!({ "image": IMAGE, "command": command, "resources": { "cpu": cpu, "memory_mb": 64 } });
        let view = http::post_unix(&self.socket(), "/v1/executions", &body).await.expect("an answer");
        view["execution_id"].as_str().unwrap_or_else(|| panic!("{view}")).to_owned()
    }

    async fn ended(&self, id: &str) {
        let path = format!("/v1/executions/{id}?wait_seconds=30");
        let view = self.controller.api(&path).await.expect("an answer");
        assert_eq!(view["state"], "succeeded", "{view:#}");
    }

    /// Returns the engine request of an execution, which the floor repeats.
    async fn body_of_ours(&self) -> Value {
        let id = self.submit(&["sleep", "1"], 0.2).await;
        self.docker.started(&id).await;
        let body = self.docker.body_of(&id).await;
        self.docker.gone(&id).await;
        body
    }

    /// Alternates both, so that they see the same load.
    async fn start_of_one(&self, body: &Value) {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let name = format!("aegis-bench-one-{round}");
            let since = docker::now();
            self.docker.create_and_start(&name, body, &["true"]).await;
            floor.push(milliseconds(since, self.docker.started(&name).await));
            self.docker.remove(&name).await;
            self.docker.gone(&name).await;

            let since = docker::now();
            let id = self.submit(&["true"], 0.2).await;
            ours.push(milliseconds(since, self.docker.started(&id).await));
            self.ended(&id).await;
            self.docker.gone(&id).await;
        }
        times("5", "submit to container started, p50", 0.5, &mut ours, &mut floor, "<= 10 ms more");
        times("5", "submit to container started, p99", 0.99, &mut ours, &mut floor, "<= 30 ms more");
    }

    async fn starts_at_once(&self, body: &Value) {
        let begun = Instant::now();
        let whole = stream::iter(0..CONTAINERS).map(|number| async move {
            let name = format!("aegis-bench-many-{number}");
            self.docker.create_and_start(&name, body, &["true"]).await;
            self.docker.wait(&name).await;
            self.docker.remove(&name).await;
        });
        whole.buffer_unordered(AT_ONCE).for_each(async |()| {}).await;
        let floor = CONTAINERS as f64 / begun.elapsed().as_secs_f64();

        let begun = Instant::now();
        let whole = stream::iter(0..CONTAINERS).map(|_| async move {
            let id = self.submit(&["true"], 0.2).await;
            self.ended(&id).await;
            self.docker.gone(&id).await;
        });
        whole.buffer_unordered(AT_ONCE).for_each(async |()| {}).await;
        let ours = CONTAINERS as f64 / begun.elapsed().as_secs_f64();
        line(
            "6",
            &format!("containers, {AT_ONCE} at a time, from start to removal"),
            &format!("{ours:.1}/s"),
            &format!("{floor:.1}/s"),
            &format!("{:.2}", ours / floor),
            ">= 0.98",
        );
    }
}

fn milliseconds(since: Duration, until: Duration) -> f64 {
    (until.as_secs_f64() - since.as_secs_f64()) * 1_000.0
}
