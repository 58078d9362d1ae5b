//! A controller that runs executions itself, killed with its worker between any two of its own steps, and
//! what its callers see of attempts.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use aegis_config::{self, Overrides, Settings};
use aegis_controller::access::TokenTable;
use aegis_engine::LABEL_NODE;
use aegis_fs::DataDirectory;
use aegis_types::{
    execution::{
        lifecycle::State,
        request::{ExecutionRequest, Submitter},
        view::{EventKind, EventView, ExecutionView, Stream},
    },
    fail_point::{self, FailPoint},
    ids::{ExecutionId, NodeId},
};

use crate::core::Core;

mod chains;
mod hooks;

const IMAGE: &str = "busybox:testbed";
const END_LIMIT: Duration = Duration::from_secs(60);

/// Its containers go with it.
struct Node(NodeId);

impl Node {
    fn mint() -> Self {
        Self(NodeId::mint())
    }

    fn containers(&self) -> Vec<String> {
        let filter = format!("label={LABEL_NODE}={}", self.0);
        let list = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output().unwrap();
        String::from_utf8_lossy(&list.stdout).split_whitespace().map(str::to_owned).collect()
    }

    async fn core(&self, data: &Path) -> Core {
        self.core_with(data, "").await
    }

    /// With more lines below `spec`.
    async fn core_with(&self, data: &Path, more: &str) -> Core {
        let text = format!(
            "spec:\n  node: {{ id: {} }}\n  cluster: {{ role: hybrid, cluster_grpc_port: 0 }}\n  \
             network: {{ port: 0, grpc_port: 0 }}\n  {more}\n",
            self.0
        );
        let overrides = Overrides { data_dir: Some(data.to_owned()), ..Overrides::default() };
        let settings = Settings::of(&aegis_config::parse(&text).unwrap(), &overrides).unwrap();
        Core::start(settings, Arc::new(DataDirectory::own(data).unwrap()), TokenTable::default())
            .await
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for id in self.containers() {
            let _ = Command::new("docker").args(["rm", "-f", &id]).output();
        }
    }
}

fn request(script: &str) -> ExecutionRequest {
    ExecutionRequest {
        image: Some(IMAGE.into()),
        command: vec!["sh".into(), "-c".into(), script.into()],
        timeout_seconds: Some(60),
        queue: true,
        ..Default::default()
    }
}

async fn ended(core: &Core, id: &ExecutionId) -> (ExecutionView, Vec<EventView>) {
    let view = core.await_execution_end(id, END_LIMIT).await.unwrap();
    (view, core.execution_events(id, 0, 1000).await.unwrap())
}

fn stdout(events: &[EventView]) -> String {
    let pieces = events.iter().filter_map(|event| match &event.kind {
        EventKind::Output { data, .. } => Some(String::from_utf8_lossy(data)),
        _ => None,
    });
    pieces.collect()
}

/// Everything of it dies at the point, as a killed process does; the answer is the execution's id.
fn killed_at(point: FailPoint, node: &Node, data: &Path) -> ExecutionId {
    let (id, data) = (node.0.clone(), data.to_owned());
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let armed = fail_point::arm(point, 1);
            fail_point::arm_here(&armed);
            // Not dropped with its containers: it is killed.
            let node = std::mem::ManuallyDrop::new(Node(id));
            let core = node.core(&data).await;
            let id = core
                .submit(request("cat; sleep 0.3; echo over; exit 3"), Submitter::this_process())
                .await
                .unwrap()
                .execution_id;
            tokio::time::timeout(END_LIMIT, armed.wait()).await.expect("the point is reached");
            id
        })
    });
    process.join().unwrap()
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn killed_between_any_two_steps_of_the_controller_it_runs_once() {
    for point in FailPoint::CONTROLLER {
        let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
        let id = killed_at(point, &node, data.path());
        let core = node.core(data.path()).await;
        let (view, events) = ended(&core, &id).await;
        assert_eq!((view.state, view.exit_code), (State::Failed, Some(3)), "{point:?}: {view:?}");
        assert_eq!((view.attempt, stdout(&events).as_str()), (1, "over\n"), "{point:?}");
        let sequences = events.iter().map(|event| event.sequence).collect::<Vec<_>>();
        assert_eq!(sequences, (1..=view.last_sequence).collect::<Vec<_>>(), "{point:?}");
        let let_go = async {
            while !node.containers().is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(END_LIMIT, let_go).await.expect("no container is left");
        core.shutdown().await;
    }
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn lost_execution_restarts_only_within_max_attempts() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    let begun = async |max_attempts| {
        let asked = ExecutionRequest { max_attempts: Some(max_attempts), ..request("sleep 1000") };
        core.submit(asked, Submitter::this_process()).await.unwrap().execution_id
    };
    let runs = async |id: &ExecutionId, attempt| {
        let running = async {
            loop {
                let view = core.execution(id).await.unwrap();
                if view.state == State::Running && view.attempt == attempt {
                    return;
                }
                core.await_execution_change(id, view.last_sequence, Duration::from_secs(1)).await.unwrap();
            }
        };
        tokio::time::timeout(END_LIMIT, running).await.expect("the attempt runs");
    };
    let take_away = || {
        for container in node.containers() {
            let _ = Command::new("docker").args(["rm", "-f", &container]).output();
        }
    };
    let id = begun(1).await;
    runs(&id, 1).await;
    take_away();
    let (view, _) = ended(&core, &id).await;
    assert_eq!((view.state, view.attempt), (State::Failed, 1));
    assert_eq!(view.failure.unwrap().code, aegis_types::error::ErrorCode::Lost);

    let id = begun(2).await;
    runs(&id, 1).await;
    take_away();
    runs(&id, 2).await;
    core.cancel_execution(&id, "seen").await.unwrap();
    let (view, events) = ended(&core, &id).await;
    assert_eq!(view.state, State::Cancelled);
    let given_up =
        |event: &&EventView| event.attempt == 1 && matches!(event.kind, EventKind::Reassigned { .. });
    assert_eq!(events.iter().filter(given_up).count(), 1);
    let sequences = events.iter().map(|event| event.sequence).collect::<Vec<_>>();
    assert_eq!(sequences, (1..=view.last_sequence).collect::<Vec<_>>(), "one numbering for both attempts");
    core.shutdown().await;
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn the_oldest_goes_and_readers_are_told_of_events_that_are_gone() {
    const RETENTION: &str = "runtime: { retention: { executions: 2, events_mb: 1 } }";
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    // On a runtime of its own: its data directory is free when all of it has ended.
    let ids = std::thread::scope(|scope| {
        let process = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let core = node.core_with(data.path(), RETENTION).await;
                let mut ids = Vec::new();
                for script in ["echo first", "head -c 2000000 /dev/zero", "echo third"] {
                    let id =
                        core.submit(request(script), Submitter::this_process()).await.unwrap().execution_id;
                    assert_eq!(ended(&core, &id).await.0.state, State::Succeeded);
                    ids.push(id);
                }
                core.shutdown().await;
                ids
            })
        });
        process.join().unwrap()
    });
    // It looks as it starts, and then from time to time.
    let core = node.core_with(data.path(), RETENTION).await;
    let last = core.execution(&ids[1]).await.unwrap().last_sequence;
    let gone = async {
        loop {
            let events = core.execution_events(&ids[1], 0, 1000).await.unwrap();
            if events.iter().any(|event| matches!(event.kind, EventKind::Gap { .. })) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let events = tokio::time::timeout(END_LIMIT, gone).await.expect("the oldest events go");
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(matches!(events[0].kind, EventKind::Gap { first: 1, last: gone } if gone == last), "{events:?}");
    assert!(
        core.execution_events(&ids[1], last, 1000).await.unwrap().is_empty(),
        "who has read all misses none"
    );
    assert_eq!(core.execution(&ids[0]).await.unwrap_err().code(), aegis_types::error::ErrorCode::NotFound);
    assert_eq!(stdout(&ended(&core, &ids[2]).await.1), "third\n");
    core.shutdown().await;
}

/// Bytes of a stream before and behind the gap, and the size of the gap.
type Kept = (Vec<u8>, Option<(u64, bool)>, Vec<u8>);

async fn kept(core: &Core, id: &ExecutionId, wanted: Stream) -> Kept {
    let (mut head, mut gap, mut tail, mut after) = (Vec::new(), None, Vec::new(), 0);
    loop {
        let events = core.execution_events(id, after, 1000).await.unwrap();
        let Some(last) = events.last() else { return (head, gap, tail) };
        after = last.sequence;
        for event in events {
            match event.kind {
                EventKind::Output { stream, data, .. } if stream == wanted => match gap {
                    Some(_) => tail.extend(data),
                    None => head.extend(data),
                },
                EventKind::OutputSkipped { stream, bytes, at_least } if stream == wanted => {
                    assert_eq!(gap.replace((bytes, at_least)), None, "one gap a stream");
                }
                _ => {}
            }
        }
    }
}

/// The lines that `seq FIRST LAST` prints.
fn numbers(first: u64, last: u64) -> Vec<u8> {
    (first..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Compares what is kept with the bytes that the container is known to have written.
fn assert_kept(written: &[u8], (head, gap, tail): &Kept, script: &str) {
    let skipped = usize::try_from(gap.map_or(0, |(bytes, _)| bytes)).unwrap();
    assert!(gap.is_none_or(|(_, at_least)| !at_least), "{script}: {gap:?}");
    assert_eq!(head.len() + skipped + tail.len(), written.len(), "{script}: {gap:?}");
    assert!(written.starts_with(head) && written.ends_with(tail), "{script}");
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn output_of_any_size_keeps_its_bytes_or_marks_a_gap() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    let line = |count| [vec![b'x'; count], b"\nend\n".to_vec()].concat();
    let many = [numbers(1_000_000_000_000_000, 1_000_000_000_700_000), b"{\"a\":2}\n".to_vec()].concat();
    for (script, stdout, stderr, result) in [
        ("printf x", b"x".to_vec(), Vec::new(), None),
        ("seq 1 1000; seq 1 500 >&2", numbers(1, 1000), numbers(1, 500), None),
        ("head -c 3000001 /dev/zero | tr '\\0' x; echo; echo end", line(3_000_001), Vec::new(), None),
        ("seq 1 400000; seq 1 200000 >&2", numbers(1, 400_000), numbers(1, 200_000), None),
        ("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo end", line(20_000_000), Vec::new(), None),
        ("seq 1000000000000000 1000000000700000; echo '{\"a\":2}'", many, Vec::new(), Some("{\"a\":2}")),
    ] {
        let id = core.submit(request(script), Submitter::this_process()).await.unwrap().execution_id;
        let view = core.await_execution_end(&id, END_LIMIT).await.unwrap();
        assert_eq!((view.state, view.result.as_deref()), (State::Succeeded, result), "{script}");
        assert_kept(&stdout, &kept(&core, &id, Stream::Stdout).await, script);
        assert_kept(&stderr, &kept(&core, &id, Stream::Stderr).await, script);
    }
    core.shutdown().await;
}

/// The engine drops most of it: nothing is wrong, and the end is the end.
#[tokio::test]
#[ignore = "needs Docker and busybox:testbed, writes 300 MB; run by tests/run"]
async fn output_beyond_the_engines_log_keeps_head_and_end() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    let script = "yes $(printf %0999d 7) | head -n 300000; seq 1 3; seq 1 3 >&2; exit 7";
    let asked = ExecutionRequest { timeout_seconds: Some(600), ..request(script) };
    let id = core.submit(asked, Submitter::this_process()).await.unwrap().execution_id;
    let view = core.await_execution_end(&id, END_LIMIT * 10).await.unwrap();
    assert_eq!((view.state, view.exit_code), (State::Failed, Some(7)));
    let (head, gap, tail) = kept(&core, &id, Stream::Stdout).await;
    let written = [format!("{:0999}\n", 7).into_bytes().repeat(300_000), numbers(1, 3)].concat();
    assert!(written.starts_with(&head) && head.len() == 10 * 1024 * 1024, "{}", head.len());
    assert!(written.ends_with(&tail) && tail.len() > 200_000, "{}", tail.len());
    let missing = (written.len() - head.len() - tail.len()) as u64;
    assert!(gap.is_some_and(|(bytes, at_least)| at_least && bytes < missing), "{gap:?} {missing}");
    let (head, _, tail) = kept(&core, &id, Stream::Stderr).await;
    assert_eq!([head, tail].concat(), b"1\n2\n3\n");
    core.shutdown().await;
}

/// An image with a volume and a health check, removed with the value.
struct HostileImage(String);

impl HostileImage {
    fn build(name: &str) -> Self {
        use std::io::Write as _;
        let text =
            format!("FROM {IMAGE}\nVOLUME /data\nHEALTHCHECK CMD true\nENV NVIDIA_VISIBLE_DEVICES=all\n");
        let mut build = Command::new("docker")
            .args(["build", "-q", "-t", name, "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        build.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(build.wait().unwrap().success());
        Self(name.to_owned())
    }
}

impl Drop for HostileImage {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn image_volume_is_bounded_memory_without_cores_or_gpus() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let image = HostileImage::build("aegis-test-volume:1");
    let core = node.core(data.path()).await;
    let script = "echo a > /data/a && ulimit -c && echo $NVIDIA_VISIBLE_DEVICES && \
                  grep -c ' /data tmpfs .*size=65536k' /proc/mounts; dd if=/dev/zero of=/data/b bs=1M count=80";
    let asked = ExecutionRequest { image: Some(image.0.clone()), ..request(script) };
    let id = core.submit(asked, Submitter::this_process()).await.unwrap().execution_id;
    let (view, events) = ended(&core, &id).await;
    assert_eq!((view.state, view.exit_code), (State::Failed, Some(1)), "{events:?}");
    assert!(stdout(&events).starts_with("0\nvoid\n1\n"), "{events:?}");
    core.shutdown().await;
}
