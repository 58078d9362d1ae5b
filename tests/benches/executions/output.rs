//! Rows 12 and 13: what a container writes, as an HTTP client of the controller and a reader of the
//! engine's own log get it.

use std::time::Instant;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;
use serde_json::Value;

use super::{Bench, line, percentile, support::http::open_unix};

const MIB: usize = 1024 * 1024;
const OUTPUT_BYTES: usize = 64 * MIB;
const LINE_BYTES: usize = 128;
const STAMPS: usize = 100;

pub async fn run(bench: &Bench, body: &Value) {
    throughput(bench, body).await;
    latency(bench, body).await;
}

async fn throughput(bench: &Bench, body: &Value) {
    let script = format!("yes {} | head -c {OUTPUT_BYTES}", "x".repeat(LINE_BYTES - 1));
    let command = ["sh", "-c", script.as_str()];
    let mut body = body.clone();
    body["HostConfig"]["NanoCpus"] = 1_000_000_000_u64.into();

    let name = "aegis-bench-output";
    let begun = Instant::now();
    bench.docker.create_and_start(name, &body, &command).await;
    let mut read = 0;
    let mut logs = Log::new(bench.docker.logs(name).await);
    while let Some(text) = logs.next().await {
        read += text.len();
    }
    let floor = begun.elapsed().as_secs_f64();
    assert_eq!(read, OUTPUT_BYTES, "by the engine's log");
    bench.docker.remove(name).await;

    let begun = Instant::now();
    let id = bench.submit(&command, 1.0).await;
    let mut events = Events::of(bench, &id).await;
    let (mut read, mut last) = (0, 0);
    while let Some(event) = events.next().await {
        assert_eq!(event.sequence, last + 1, "no gap");
        last = event.sequence;
        read += event.text.unwrap_or_default().len();
    }
    let ours = begun.elapsed().as_secs_f64();
    assert_eq!(read, OUTPUT_BYTES, "by the controller");
    bench.docker.gone(&id).await;
    let rate = |seconds: f64| format!("{:.0} MiB/s", (OUTPUT_BYTES / MIB) as f64 / seconds);
    line(
        "12",
        "64 MiB of output, from submit to the last byte",
        &rate(ours),
        &rate(floor),
        &format!("{:.2}", floor / ours),
        ">= 100 MiB/s",
    );
}

/// The container writes the kernel's uptime, in hundredths of a second; readers compare it with their own.
async fn latency(bench: &Bench, body: &Value) {
    let script = format!(
        "i=0; while [ $i -lt {STAMPS} ]; do i=$((i+1)); read up idle </proc/uptime; echo $up; sleep 0.1; done"
    );
    let command = ["sh", "-c", script.as_str()];
    let name = "aegis-bench-latency";
    bench.docker.create_and_start(name, body, &command).await;
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    let mut logs = Log::new(bench.docker.logs(name).await);
    while let Some(text) = logs.next().await {
        ages(&String::from_utf8_lossy(&text), &mut floor);
    }
    bench.docker.remove(name).await;

    let id = bench.submit(&command, 0.2).await;
    let mut events = Events::of(bench, &id).await;
    while let Some(event) = events.next().await {
        ages(&event.text.unwrap_or_default(), &mut ours);
    }
    bench.docker.gone(&id).await;
    assert_eq!((floor.len(), ours.len()), (STAMPS, STAMPS));
    for (share, what, goal) in [(0.5, "p50", ""), (0.99, "p99", "<= 150 ms")] {
        let (ours, floor) = (percentile(&mut ours, share), percentile(&mut floor, share));
        line(
            "13",
            &format!("from a container's write to the client, {what}"),
            &format!("{ours:.0} ms"),
            &format!("{floor:.0} ms"),
            &format!("+{:.0}", ours - floor),
            goal,
        );
    }
}

fn ages(text: &str, to: &mut Vec<f64>) {
    let now = std::fs::read_to_string("/proc/uptime").expect("the kernel's uptime");
    let seconds = |text: &str| text.split_whitespace().next()?.parse::<f64>().ok();
    let now = seconds(&now).expect("a number");
    to.extend(text.lines().filter_map(seconds).map(|written| (now - written) * 1_000.0));
}

/// The engine's log without its frames' headers.
struct Log {
    body: Incoming,
    buffer: Vec<u8>,
    read: usize,
}

impl Log {
    fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new(), read: 0 }
    }

    async fn next(&mut self) -> Option<Bytes> {
        const HEADER: usize = 8;
        loop {
            if let Some((header, rest)) = self.buffer[self.read..].split_at_checked(HEADER) {
                let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
                if let Some(text) = rest.get(..length) {
                    let text = Bytes::copy_from_slice(text);
                    self.read += HEADER + length;
                    return Some(text);
                }
            }
            self.buffer.drain(..self.read);
            self.read = 0;
            self.buffer.extend_from_slice(&part(&mut self.body).await?);
        }
    }
}

async fn part(body: &mut Incoming) -> Option<Bytes> {
    loop {
        if let Ok(data) = body.frame().await?.expect("a part").into_data() {
            return Some(data);
        }
    }
}

#[derive(Deserialize)]
struct Event {
    sequence: u64,
    text: Option<String>,
}

/// The event stream of an execution, to its end.
struct Events {
    body: Incoming,
    buffer: String,
    read: usize,
}

impl Events {
    async fn of(bench: &Bench, id: &str) -> Self {
        let body = open_unix(&bench.socket(), &format!("/v1/executions/{id}/events")).await;
        Self { body, buffer: String::new(), read: 0 }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            let Some(length) = self.buffer[self.read..].find("\n\n") else {
                self.buffer.drain(..self.read);
                self.read = 0;
                let data = part(&mut self.body).await?;
                self.buffer.push_str(std::str::from_utf8(&data).expect("the output is ASCII"));
                continue;
            };
            let message = &self.buffer[self.read..self.read + length];
            self.read += length + 2;
            let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
            match (field("event: "), field("data: ")) {
                (Some("event"), Some(json)) => return Some(serde_json::from_str(json).expect("an event")),
                (Some("end"), _) => return None,
                (Some(_), other) => panic!("{other:?}"),
                (None, _) => {}
            }
        }
    }
}
