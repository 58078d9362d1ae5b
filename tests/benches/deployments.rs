//! Duration of a deployment, compared with a manual one on the same host in the same run: only ratios count.
//!
//! `cargo bench -p aegis --bench deployments` uses the hosts in `AEGIS_TESTBED_HOSTS`, and at the end deploys all
//! of them at once. It prints one line per figure, and fails only on errors. "Fresh" is a host without a stack whose
//! images are present. "To healthy" ends with the step `health`, since a manual deployment joins no cluster.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../e2e/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    controller::{Controller, Setup},
    poll::until,
    testbed::{self, Host},
};

const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);

struct Bench {
    controller: Controller,
    hosts: Vec<Host>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // `cargo test --benches` would run it too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    testbed::reset();
    let hosts = testbed::all_hosts();
    let mut setup = Setup::for_hosts(&hosts);
    setup.deploy.push_str(&format!("\n    max_parallel: {}", hosts.len()));
    let controller = Controller::start(&setup).await;
    let bench = Bench { controller, hosts };
    let everyone: Vec<&Host> = bench.hosts.iter().collect();
    for host in &everyone {
        bench.controller.approve(host).await;
    }
    // Brings the node's image to every host.
    bench.deploy(&everyone).await;
    println!(
        "{} build, {} hosts; seconds",
        if cfg!(debug_assertions) { "debug" } else { "optimised" },
        bench.hosts.len()
    );
    line("row", "figure", "ours", "floor", "ratio", "goal");
    let one = bench.one_host().await;
    bench.all_at_once(&everyone, one).await;
}

fn line(row: &str, what: &str, ours: &str, floor: &str, ratio: &str, goal: &str) {
    println!("{row:>3} | {what:<44} | {ours:>8} | {floor:>8} | {ratio:>6} | {goal}");
}

fn compared(row: &str, what: &str, ours: f64, floor: f64, goal: &str) {
    line(row, what, &format!("{ours:.2}"), &format!("{floor:.2}"), &format!("{:.2}", ours / floor), goal);
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

impl Bench {
    /// Alternates manual and real deployments, so that both see the same load. Returns the time of a whole fresh
    /// deployment.
    async fn one_host(&self) -> f64 {
        let host = &self.hosts[0];
        let (mut fresh, mut unchanged, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        let (mut hand_fresh, mut hand_unchanged) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            self.remove(&[host]).await;
            let by_hand = host.by_hand();
            hand_fresh.push(by_hand["fresh_seconds"].as_f64().expect("seconds"));
            hand_unchanged.push(by_hand["unchanged_seconds"].as_f64().expect("seconds"));
            let rollout = self.deploy(&[host]).await;
            whole.push(seconds(&rollout));
            fresh.push(self.to_healthy(&rollout, true).await);
            let rollout = self.deploy(&[host]).await;
            unchanged.push(self.to_healthy(&rollout, false).await);
        }
        let (whole, hand_fresh) = (median(whole), median(hand_fresh));
        compared("10", "one host fresh, to healthy; by hand", median(fresh), hand_fresh, "<= 1.0");
        compared(
            "10",
            "one host unchanged, to healthy; by hand",
            median(unchanged),
            median(hand_unchanged),
            "<= 0.5",
        );
        compared("", "one host fresh, to joined and proven; by hand", whole, hand_fresh, "");
        whole
    }

    async fn all_at_once(&self, everyone: &[&Host], one: f64) {
        self.remove(everyone).await;
        // The slowest of them, each with all the others beside it.
        let by_hand = std::thread::scope(|scope| {
            let all: Vec<_> = everyone.iter().map(|host| scope.spawn(|| host.by_hand())).collect();
            let fresh = all.into_iter().map(|one| one.join().expect("by hand")["fresh_seconds"].as_f64());
            fresh.map(|seconds| seconds.expect("seconds")).fold(0.0, f64::max)
        });
        let before = self.controller.memory_kb("VmRSS");
        let rollout = self.deploy(everyone).await;
        let took = seconds(&rollout);
        let what = format!("{} hosts at once, fresh; one host", everyone.len());
        compared("11", &what, took, one, "<= 2.0");
        compared("", "the same; by hand on all at once, the slowest", took, by_hand, "");
        let megabytes = |figure| self.controller.memory_kb(figure) as f64 / 1024.0;
        let (now, peak) = (megabytes("VmRSS"), megabytes("VmHWM"));
        let before = before as f64 / 1024.0;
        line(
            "11",
            "memory of the controller, MB: now, before",
            &format!("{now:.0}"),
            &format!("{before:.0}"),
            "",
            "<= 100",
        );
        line("", "its peak", &format!("{peak:.0}"), "", "", "");
    }

    /// Deploys and waits for a successful end.
    async fn deploy(&self, hosts: &[&Host]) -> Value {
        let targets: Vec<Value> = hosts
            .iter()
            .map(|host| json!({ "host": host.ip, "identity": host.name, "ssh_port": host.port }))
            .collect();
        let order = json!({
            "hosts": targets, "max_failures": 0,
            "shared": { "ssh_user": hosts[0].user, "ssh_key_path": hosts[0].key(), "services": "node" },
        });
        let begun = self.post("/deploy/edge-nodes", &order).await;
        let path = format!("/rollouts/{}", begun["rollout_id"].as_str().expect("an id"));
        let ended = until("the rollout ends", LIMIT, async || {
            self.controller.api(&path).await.ok().filter(|view| view["state"] != "running")
        })
        .await;
        assert_eq!(ended["state"], "succeeded", "{ended:#}");
        ended
    }

    /// Removes stacks, volumes and nodes, but not the images.
    async fn remove(&self, hosts: &[&Host]) {
        for host in hosts {
            host.sh("docker tag $(docker image ls -q aegis-node | head -1) kept:by-the-benchmark");
            let reference =
                host.sh("docker image ls --format '{{.Repository}}:{{.Tag}}' aegis-node | head -1");
            let words = ["node", "remove", &host.name, "--volumes", "--force"];
            self.controller.cli(&words).await.succeeded();
            host.sh(&format!("docker tag kept:by-the-benchmark {}", reference.trim()));
        }
    }

    /// Measures from the call to the end of the step `health`.
    async fn to_healthy(&self, rollout: &Value, told: bool) -> f64 {
        let id = rollout["members"][0]["deployment_id"].as_str().expect("an id");
        let view = self.controller.api(&format!("/deployments/{id}")).await.expect("a deployment");
        let steps = view["steps"].as_array().expect("steps");
        if told {
            let each: Vec<String> =
                steps.iter().map(|step| format!("{} {}", step["name"], step["duration_ms"])).collect();
            eprintln!("      {}", each.join(", ").replace('"', ""));
        }
        let health = steps.iter().find(|step| step["name"] == "health").expect("a step");
        let number = |value: &Value| value.as_f64().expect("milliseconds");
        let end = number(&health["started_at_ms"]) + number(&health["duration_ms"]);
        (end - number(&rollout["created_at_ms"])) / 1000.0
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        support::http::post_unix(&self.controller.data.join("api.sock"), path, body).await.expect("an answer")
    }
}

fn seconds(rollout: &Value) -> f64 {
    let number = |name: &str| rollout[name].as_f64().expect("milliseconds");
    (number("updated_at_ms") - number("created_at_ms")) / 1000.0
}
