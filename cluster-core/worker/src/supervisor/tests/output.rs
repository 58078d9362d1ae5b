//! The property of output: no byte is lost or doubled without a mark.
//!
//! A container writes bytes that its seed determines. Its worker is killed at random points, and loses the end of
//! its log that was not on disk. What was told is then compared with what was written: all of it, or the beginning
//! and the end with the exact size of the gap between them.

use std::{
    fs,
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use aegis_engine::{LABEL_ATTEMPT, LABEL_EXECUTION, LABEL_NODE, LABEL_OWNER, log_file_mb};
use aegis_identity::sha256;
use aegis_proto::aegis::runtime::v1 as pb;
use prost::Message as _;

use super::*;

/// Repeats a run: `AEGIS_OUTPUT_SEED=7 cargo test … output::`.
const SEED: &str = "AEGIS_OUTPUT_SEED";
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// The content of lines repeats after so many bytes. It is prime, so that parts of 16 KiB differ.
const BLOCK_BYTES: usize = 4099;
/// Engines keep longer lines in parts.
const PART_BYTES: usize = 16 * KIB;
/// Lines for stderr: one in so many.
const STDERR_EVERY: u32 = 5;
/// Pauses of the program in each case, so that kills hit it while it writes.
const PAUSES: usize = 12;
/// The worst frame around a line of the driver `local`.
const FRAME_BYTES: usize = 32;

/// The minimal standard generator: its numbers are exact in awk's floating point.
#[derive(Clone, Copy)]
struct Numbers(u32);

impl Numbers {
    fn new(seed: u32) -> Self {
        Self(seed % 2_147_483_646 + 1)
    }

    fn next(&mut self) -> u32 {
        self.0 = u32::try_from(u64::from(self.0) * 16_807 % 2_147_483_647).unwrap();
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// Keeps bytes as they are.
    Local,
    /// Keeps text: other bytes are replaced.
    JsonFile,
}

/// One case.
#[derive(Debug, Clone, Copy)]
struct Case {
    seed: u32,
    driver: Driver,
    bytes: usize,
    longest_line: usize,
    budget_mb: u32,
    kills: usize,
}

impl Case {
    fn small(numbers: &mut Numbers) -> Self {
        let driver = if numbers.below(3) == 0 { Driver::JsonFile } else { Driver::Local };
        // Few bytes and many are as likely.
        let [bytes, longest_line] = [22, 20].map(|bits| {
            let bits = numbers.below(bits);
            1 + numbers.below(2 << bits)
        });
        // Short lines take the engine, and this test, the longest.
        let bytes = bytes.min(longest_line.saturating_mul(40_000));
        let kills = numbers.below(4);
        Self { seed: numbers.next(), driver, bytes, longest_line, budget_mb: 1, kills }
    }

    /// First code of the content's bytes, and the number of codes. A line's end is not among them.
    fn codes(&self) -> (u32, u32) {
        match self.driver {
            Driver::Local => (33, 222),
            Driver::JsonFile => (32, 95),
        }
    }

    /// A program for awk that writes the same as [`Self::written`] tells.
    fn script(&self) -> String {
        let Self { seed, bytes, longest_line: longest, .. } = self;
        let (first, count) = self.codes();
        let (seed, step) = (Numbers::new(*seed).0, (bytes / PAUSES).max(1));
        format!(
            "exec awk 'function next_number() {{ return x = (x * 16807) % 2147483647 }}
BEGIN {{
  x = {seed}
  for (i = 0; i < {BLOCK_BYTES}; i++) block = block sprintf(\"%c\", {first} + next_number() % {count})
  for (content = block; length(content) < {longest} + {BLOCK_BYTES} + 1; ) content = content content
  for (pause = {step}; written < {bytes}; written += size + 1) {{
    if (written >= pause) {{ fflush(\"\"); system(\"sleep 0.03\"); pause += {step} }}
    size = next_number() % {longest}
    if (size > 0 && size % {PART_BYTES} == 0) size++
    line = substr(content, 1 + next_number() % {BLOCK_BYTES}, size)
    if (next_number() % {STDERR_EVERY} == 0) print line | \"cat >&2\"; else print line
  }}
  print \"end\"; print \"end\" | \"cat >&2\"
}}'"
        )
    }

    /// Bytes that the program writes to stdout and to stderr.
    ///
    /// Both end with a short line: the driver `local` of Docker 20.10 loses the last end of a line that it keeps in
    /// parts, and of lines whose length is a multiple of a part, which are left out too.
    fn written(&self) -> [Vec<u8>; 2] {
        let (first, count) = self.codes();
        let mut numbers = Numbers::new(self.seed);
        let block: Vec<u8> =
            (0..BLOCK_BYTES).map(|_| u8::try_from(first + numbers.next() % count).unwrap()).collect();
        let content = block.repeat(self.longest_line / BLOCK_BYTES + 2);
        let (mut streams, mut written) = ([Vec::new(), Vec::new()], 0);
        while written < self.bytes {
            let mut size = numbers.below(self.longest_line);
            if size > 0 && size.is_multiple_of(PART_BYTES) {
                size += 1;
            }
            let begin = numbers.below(BLOCK_BYTES);
            let stream = usize::from(numbers.next().is_multiple_of(STDERR_EVERY));
            streams[stream].extend_from_slice(&content[begin..begin + size]);
            streams[stream].push(b'\n');
            written += size + 1;
        }
        streams.map(|stream| [stream, b"end\n".to_vec()].concat())
    }

    fn budget(&self) -> usize {
        self.budget_mb as usize * MIB
    }

    fn policy(&self) -> Policy {
        Policy { max_output_mb: Some(self.budget_mb), ..Policy::default() }
    }

    /// Checks what was told against what was written.
    fn check(&self, events: &[EventView]) {
        let written = self.written();
        let total: usize = written.iter().map(Vec::len).sum();
        let lines: usize = written.iter().map(|stream| memchr::memchr_iter(b'\n', stream).count()).sum();
        let file = log_file_mb(self.budget_mb) as usize * MIB;
        let is_in_one_file = total + (lines + total / PART_BYTES) * (FRAME_BYTES + 160) < file;
        for (stream, bytes) in [OutputStream::Stdout, OutputStream::Stderr].into_iter().zip(&written) {
            let Told { head, gap, tail } = Told::of(events, stream);
            assert!(
                bytes.starts_with(&head),
                "{self:?}: {stream:?} begins otherwise: {}",
                differs(bytes, &head)
            );
            assert!(bytes.ends_with(&tail), "{self:?}: {stream:?} ends otherwise");
            let Some((skipped, at_least)) = gap else {
                let whole = [head, tail].concat();
                assert_eq!(whole.len(), bytes.len(), "{self:?}: {stream:?} lacks its end without a mark");
                assert_eq!(sha256(&whole), sha256(bytes), "{self:?}: {stream:?}");
                continue;
            };
            let told = head.len() + usize::try_from(skipped).unwrap() + tail.len();
            if at_least {
                assert!(!is_in_one_file, "{self:?}: {stream:?} was never dropped by the engine");
                assert!(told <= bytes.len(), "{self:?}: {stream:?} has a gap of {skipped} that is too large");
            } else {
                assert_eq!(told, bytes.len(), "{self:?}: {stream:?} has a gap of {skipped}");
            }
            assert!(
                total > self.budget() || !is_in_one_file,
                "{self:?}: {stream:?} was cut within the budget"
            );
        }
        if is_in_one_file && total > self.budget() {
            assert_eq!(before_the_mark(events), self.budget(), "{self:?}: the budget is used up");
        }
        let end = &events.last().unwrap().kind;
        assert!(matches!(end, EventKind::Completed { result: None }), "{self:?}: {end:?}");
    }
}

/// Bytes of output before the mark that ends the beginning.
fn before_the_mark(events: &[EventView]) -> usize {
    let outputs = events.iter().filter_map(|event| match &event.kind {
        EventKind::Output { data, truncated, .. } => Some((data.len(), *truncated)),
        _ => None,
    });
    outputs.take_while(|(_, is_mark)| !is_mark).map(|(bytes, _)| bytes).sum()
}

/// Returns the first position at which reported and written bytes differ.
fn differs(written: &[u8], told: &[u8]) -> String {
    let at = written.iter().zip(told).position(|(a, b)| a != b).unwrap_or(written.len().min(told.len()));
    let around = |bytes: &[u8]| {
        let (from, to) = (at.saturating_sub(40).min(bytes.len()), (at + 40).min(bytes.len()));
        String::from_utf8_lossy(&bytes[from..to]).into_owned()
    };
    format!("at byte {at} of {}: {:?} and not {:?}", written.len(), around(told), around(written))
}

/// One stream as its events tell it.
#[derive(Default)]
struct Told {
    head: Vec<u8>,
    gap: Option<(u64, bool)>,
    tail: Vec<u8>,
}

impl Told {
    fn of(events: &[EventView], wanted: OutputStream) -> Self {
        let mut told = Self::default();
        for event in events {
            match &event.kind {
                EventKind::Output { stream, data, .. } if *stream == wanted => {
                    let part = if told.gap.is_some() { &mut told.tail } else { &mut told.head };
                    part.extend_from_slice(data);
                }
                EventKind::OutputSkipped { stream, bytes, at_least } if *stream == wanted => {
                    assert_eq!(told.gap.replace((*bytes, *at_least)), None, "one gap a stream");
                }
                EventKind::Gap { first, last } => panic!("events {first} to {last} are lost"),
                _ => {}
            }
        }
        told
    }
}

/// A worker on a runtime of its own, which takes the order, tells its events until they have so many bytes of output
/// or to their end, and dies.
fn live(
    setting: &Setting,
    case: &Case,
    order: &Order,
    told: &[EventView],
    enough: Option<usize>,
) -> Vec<EventView> {
    let after = told.last().map_or(0, |event| event.sequence);
    std::thread::scope(|threads| {
        let worker = threads.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let supervisor = setting.with(case.policy()).await;
                let mut stream = Box::pin(supervisor.accept(order.clone(), after).await.unwrap());
                let (mut events, mut bytes) = (Vec::new(), 0);
                while let Some(event) = stream.next().await {
                    let event = event.unwrap();
                    if let EventKind::Output { data, .. } = &event.kind {
                        bytes += data.len();
                    }
                    events.push(event);
                    if enough.is_some_and(|enough| bytes >= enough) {
                        break;
                    }
                }
                events
            })
        });
        worker.join().unwrap()
    })
}

/// Cuts a part of the log that its worker has not told off, as a power cut may.
fn tear(setting: &Setting, order: &Order, told: u64, numbers: &mut Numbers) {
    let path =
        setting.directory.path().join("executions").join(order.execution_id.as_str()).join(EVENTS_FILE);
    let bytes = fs::read(&path).unwrap();
    let mut rest = bytes.as_slice();
    while let Ok(event) = pb::ExecutionEvent::decode_length_delimited(&mut rest) {
        if event.sequence >= told {
            break;
        }
    }
    let length = bytes.len() - numbers.below(rest.len() + 1);
    fs::write(&path, &bytes[..length]).unwrap();
}

/// Makes the container as its worker would, with another driver for its log. The worker finds it under its name.
fn create_with_json_file(setting: &Setting, case: &Case, order: &Order, owner: &str) {
    let Attempt { execution_id, number } = order.attempt();
    let labels = [
        (LABEL_NODE, setting.node_id.to_string()),
        (LABEL_EXECUTION, execution_id.to_string()),
        (LABEL_ATTEMPT, number.to_string()),
        (LABEL_OWNER, owner.to_owned()),
    ];
    let labels =
        labels.into_iter().flat_map(|(name, value)| ["--label".to_owned(), format!("{name}={value}")]);
    let size = format!("max-size={}m", log_file_mb(case.budget_mb));
    let created = Command::new("docker")
        .args(["create", "--network=none", "--name", &container_name(&setting.node_id, &order.attempt(), 1)])
        .args(labels)
        .args(["--log-driver=json-file", "--log-opt", &size, "--log-opt", "max-file=2", IMAGE])
        .args(&order.manifest.command)
        .stdout(Stdio::null())
        .status();
    assert!(created.unwrap().success());
}

async fn run(case: Case) {
    let setting = Setting::new();
    let order = order(&case.script(), "", |request| {
        request.timeout_seconds = Some(1200);
        request.resources.cpu = Some(1.0);
        request.resources.memory_mb = Some(256);
    });
    if case.driver == Driver::JsonFile {
        let owner = setting.with(case.policy()).await.owner().to_owned();
        create_with_json_file(&setting, &case, &order, &owner);
    }
    let mut numbers = Numbers::new(case.seed ^ 0x5eed);
    let mut events = Vec::new();
    for _ in 0..case.kills {
        let enough = numbers.below(case.bytes.min(case.budget()));
        events.extend(live(&setting, &case, &order, &events, Some(enough)));
        let told = events.last().map_or(0, |event| event.sequence);
        if numbers.below(2) == 0 {
            tear(&setting, &order, told, &mut numbers);
        }
    }
    events.extend(live(&setting, &case, &order, &events, None));
    case.check(&events);
    // What was told over all lives is what the log holds.
    let again = live(&setting, &case, &order, &[], None);
    assert!(again == events, "{case:?}: the log holds something else");
}

async fn run_all(cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        let begun = std::time::Instant::now();
        run(case).await;
        println!("{case:?}: {:.1} s", begun.elapsed().as_secs_f64());
    }
}

/// Returns the seed of this run's random cases, and prints it.
fn seed() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var(SEED).map_or(now, |seed| seed.parse().unwrap());
    println!("{SEED}={seed}");
    seed
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn told_output_is_the_written_output() {
    let case = |driver, bytes, longest_line, kills| Case {
        seed: 14,
        driver,
        bytes,
        longest_line,
        budget_mb: 1,
        kills,
    };
    run_all([
        case(Driver::Local, 1, 1, 0),
        case(Driver::JsonFile, 50_000, 3, 2),
        case(Driver::Local, MIB - 5_000, 200, 2),
        case(Driver::Local, 3 * MIB, 100_000, 2),
        case(Driver::JsonFile, 2 * MIB, 50_000, 1),
    ])
    .await;
    let mut numbers = Numbers::new(seed());
    run_all((0..8).map(|_| Case::small(&mut numbers))).await;
}

/// The long form: up to 100 MB, lines of up to 10 MB, and more than the engine keeps.
#[tokio::test]
#[ignore = "takes minutes; run by tests/run --all"]
async fn told_output_is_the_written_output_long_form() {
    let case = |driver, bytes, longest_line, budget_mb, kills| Case {
        seed: 14,
        driver,
        bytes,
        longest_line,
        budget_mb,
        kills,
    };
    run_all([
        case(Driver::Local, 100 * MIB, 1000, 128, 3),
        case(Driver::Local, 100 * MIB, 10 * MIB, 10, 3),
        case(Driver::Local, 60 * MIB, 10 * MIB, 128, 3),
        case(Driver::JsonFile, 60 * MIB, 2000, 10, 2),
        case(Driver::JsonFile, 40 * MIB, 10 * MIB, 64, 2),
        // Two files of 80 MiB hold a part of its lines.
        case(Driver::Local, 9 * MIB, 2, 10, 2),
        // The same, and the engine drops the beginning.
        case(Driver::Local, 200 * MIB, 3000, 10, 2),
    ])
    .await;
    let mut numbers = Numbers::new(seed());
    run_all((0..60).map(|_| Case::small(&mut numbers))).await;
}
