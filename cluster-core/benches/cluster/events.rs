//! Stored events of executions per second, compared with appends of the same bytes to a file that is synced as often.

use std::{
    fs::File,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster_core::{
    fs::DataDirectory,
    store::{ExecutionWrite, Store, Write},
    types::execution::{
        record::NewExecution,
        request::{ExecutionRequest, Submission},
    },
};

use super::{line, percentile};

const EVENT_BYTES: usize = 256;
/// Events of one write, as in a busy stream.
const TOGETHER: u64 = 256;
const WRITES: u64 = 40;
/// Each round also measures the floor: disks of shared machines change from second to second.
const ROUNDS: usize = 5;

pub async fn run() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Arc::new(DataDirectory::own(directory.path()).unwrap())).await.unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        floor.push(appended(&directory.path().join(format!("floor-{round}"))));
        ours.push(stored(&store).await);
    }
    ours.sort();
    floor.sort();
    let rate = |time: Duration| (TOGETHER * WRITES) as f64 / time.as_secs_f64();
    let (ours, floor) = (rate(percentile(&ours, 0.5)), rate(percentile(&floor, 0.5)));
    line(
        "",
        &format!("events stored, {TOGETHER} a write"),
        &format!("{ours:.0}/s"),
        &format!("{floor:.0}/s appended to a file"),
        &format!("{:.2}", ours / floor),
    );
}

fn appended(path: &std::path::Path) -> Duration {
    let mut file = File::create(path).unwrap();
    let start = Instant::now();
    for _ in 0..WRITES {
        file.write_all(&[b'x'; EVENT_BYTES * TOGETHER as usize]).unwrap();
        file.sync_data().unwrap();
    }
    start.elapsed()
}

async fn stored(store: &Store) -> Duration {
    let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
    let new = NewExecution::new(Submission::check(request).unwrap(), String::new(), String::new(), 0);
    let mut record = new.record.clone();
    store.write(Write::Execution(ExecutionWrite::Create(Box::new(new)))).await.unwrap();
    let start = Instant::now();
    for number in 0..WRITES {
        let numbers = number * TOGETHER + 1..=(number + 1) * TOGETHER;
        record.last_sequence = *numbers.end();
        let events = numbers.map(|sequence| (sequence, vec![b'x'; EVENT_BYTES])).collect();
        let write = ExecutionWrite::Record { record: Box::new(record.clone()), events };
        assert_eq!(store.write(Write::Execution(write)).await.unwrap(), 1);
    }
    start.elapsed()
}
