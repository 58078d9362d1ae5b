//! Room on the engine's disk, with images made here.

use std::{io::Write as _, sync::atomic::Ordering};

use aegis_types::execution::content::Content;
use bytes::Bytes;
use futures::StreamExt as _;

use super::*;
use crate::{
    disk::{Room, images_waited_for},
    space::{Disk, ImageBounds},
};

/// Images of one label each, removed with the value.
struct TestImages(Vec<String>);

impl TestImages {
    fn build(count: usize) -> Self {
        let id = NodeId::mint().to_string().to_lowercase();
        let names = (0..count).map(|number| format!("aegis-room-{id}:{number}")).collect::<Vec<_>>();
        for name in &names {
            let text = format!("FROM {IMAGE}\nLABEL name={name}\nCMD [\"true\"]\n");
            let mut build = Command::new("docker")
                .args(["build", "-q", "-t", name, "-"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            build.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(build.wait().unwrap().success());
        }
        Self(names)
    }
}

impl Drop for TestImages {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "-f"]).args(&self.0).output();
    }
}

/// Sends the image to the worker as a controller does, after it was removed here.
async fn send(supervisor: &Supervisor, reference: &str) {
    let engine = supervisor.engine();
    let local = engine.local_image(reference).await.unwrap().unwrap();
    let mut tar = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut engine.export(reference).reader, &mut tar).await.unwrap();
    assert!(Command::new("docker").args(["rmi", reference]).output().unwrap().status.success());
    let digest = local.content.digest();
    let content = Content::Image { reference: reference.to_owned(), digest, bytes: local.bytes };
    let pieces = futures::stream::iter([Ok(Bytes::from(tar))]).boxed();
    supervisor.incoming().receive(content, pieces).await.unwrap();
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn least_recently_used_image_goes_and_others_stay() {
    let setting = Setting::new();
    let images = TestImages::build(5);
    let [oldest, newer, waited, foreign, used] = images.0.as_slice() else { unreachable!() };
    let supervisor = setting.supervisor().await;
    for name in [oldest, newer, waited, used] {
        send(&supervisor, name).await;
    }
    // Uses after the arrival decide.
    for name in [newer, oldest, newer] {
        let order = order("true", "", |request| request.image = Some(name.clone()));
        assert!(matches!(
            events(&supervisor, &order, 0).await.last().unwrap().kind,
            EventKind::Completed { .. }
        ));
        supervisor.release(&[order.attempt()]).await.unwrap();
    }
    let container = Command::new("docker").args(["create", used.as_str()]).output().unwrap();
    let container = String::from_utf8(container.stdout).unwrap().trim().to_owned();
    let running = order("sleep 60", "", |request| request.image = Some(waited.clone()));
    let _stream = supervisor.accept(running.clone(), 0).await.unwrap();

    let here = async |name: &String| supervisor.engine().has_image(name).await.unwrap();
    let disk = Disk { total: 1_000_000_000, free: 1_000_000_000 };
    let evict = async |bytes_max: u64, free_min: u64, after_ms: i64| {
        let bounds = ImageBounds { bytes_max, free_min };
        let waited_for = || images_waited_for(&supervisor.0);
        supervisor.0.images.evict_one(waited_for, disk, bounds, now_ms() + after_ms).await.unwrap()
    };
    assert!(!evict(0, 0, 0).await);
    assert!(here(oldest).await, "an image that was just used stays");
    assert!(evict(u64::MAX, u64::MAX, 3_600_000).await);
    assert!(!here(oldest).await, "the least recently used one goes for free space");
    assert!(here(newer).await && here(waited).await && here(used).await && here(foreign).await);
    while evict(0, 0, 3_600_000).await {}
    assert!(!here(newer).await);
    for (name, why) in
        [(waited, "an execution runs it"), (used, "a container has it"), (foreign, "it is foreign")]
    {
        assert!(here(name).await, "{name}: {why}");
    }
    let recorded = std::fs::read_to_string(setting.data.path().join("images.json")).unwrap();
    assert!(recorded.contains(waited) && recorded.contains(used), "{recorded}");
    assert!(!recorded.contains(oldest) && !recorded.contains(foreign), "{recorded}");
    supervisor.cancel(&running.execution_id, 1, "seen").unwrap();
    let _ = Command::new("docker").args(["rm", "-f", &container]).output();
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn executions_end_for_room_with_a_failure_that_says_so() {
    let setting = Setting::new();
    let policy = Policy { max_workspace_mb: Some(8), ..Policy::default() };
    let supervisor = setting.with(policy).await;
    let writing = |mb: u32| {
        let script =
            format!("dd if=/dev/zero of=/workspace/x bs=1M count={mb} 2>/dev/null; echo written; sleep 60");
        order(&script, "", |request| request.empty_workspace = true)
    };
    let (small, large, over) = (writing(1), writing(4), writing(12));
    let written = async |order: &Order| {
        let mut stream = Box::pin(supervisor.accept(order.clone(), 0).await.unwrap());
        while let Some(Ok(event)) = stream.next().await {
            if matches!(event.kind, EventKind::Output { .. }) {
                return stream;
            }
        }
        panic!("it ended without output");
    };
    let (mut small_events, mut large_events) = (written(&small).await, written(&large).await);
    let end = async |events: &mut (dyn Stream<Item = Result<EventView>> + Unpin)| {
        let mut last = None;
        while let Some(Ok(event)) = events.next().await {
            last = Some(event.kind);
        }
        last
    };
    let message = |end: Option<EventKind>| match end {
        Some(EventKind::Failed { failure, exit_code: None }) => {
            assert_eq!(failure.code, ErrorCode::ResourceExhausted);
            failure.message
        }
        other => panic!("{other:?}"),
    };
    // The task itself sees what is above the policy.
    let mut over_events = written(&over).await;
    assert!(message(end(&mut over_events).await).contains("more than 8 MiB"));
    // A disk that is nearly full ends the largest one.
    let shared = &supervisor.0;
    let mut room = Room::default();
    room.end_for_room(shared, Disk { total: 1 << 40, free: 0 }).await;
    assert!(message(end(&mut large_events).await).contains("nearly full"));
    let run = shared.runs()[&large.execution_id].clone();
    let freed = async {
        while !run.is_freed.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), freed).await.expect("its space is free at once");
    let usage = supervisor.engine().disk_usage().await.unwrap();
    let volume = |order: &Order| aegis_engine::workspace_volume(&setting.node_id, &order.attempt());
    assert!(!usage.volumes.contains_key(&volume(&large)) && usage.volumes.contains_key(&volume(&small)));
    assert!(futures::poll!(small_events.next()).is_pending(), "the small one runs on");
    supervisor.cancel(&small.execution_id, 1, "seen").unwrap();
    assert!(matches!(end(&mut small_events).await, Some(EventKind::Cancelled { .. })));
    supervisor.release(&[small.attempt(), large.attempt(), over.attempt()]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn release_goes_on_after_one_that_cannot_be_removed() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let [held, other] = [(), ()].map(|()| order("true", "", |request| request.empty_workspace = true));
    for order in [&held, &other] {
        let last = events(&supervisor, order, 0).await.pop().unwrap();
        assert!(matches!(last.kind, EventKind::Completed { .. }), "{last:?}");
    }
    // Somebody else's container uses the first volume.
    let mount = format!("{}:/x", aegis_engine::workspace_volume(&setting.node_id, &held.attempt()));
    let container = Command::new("docker").args(["create", "-v", &mount, IMAGE]).output().unwrap();
    let container = String::from_utf8(container.stdout).unwrap().trim().to_owned();
    assert_eq!(
        supervisor.release(&[held.attempt(), other.attempt()]).await.unwrap_err().code(),
        ErrorCode::Engine
    );
    let names: Vec<_> = supervisor.held().into_iter().map(|held| held.execution_id).collect();
    assert_eq!(names, std::slice::from_ref(&held.execution_id), "the other one is released");
    assert!(Command::new("docker").args(["rm", &container]).output().unwrap().status.success());
    supervisor.release(&[held.attempt()]).await.unwrap();
    assert!(supervisor.held().is_empty());
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn plain_program_ends_at_the_first_signal() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let order = order("exec sleep 1000", "", |_| ());
    let mut stream = Box::pin(supervisor.accept(order.clone(), 0).await.unwrap());
    while !matches!(stream.next().await.unwrap().unwrap().kind, EventKind::IterationStarted { .. }) {}
    supervisor.cancel(&order.execution_id, 1, "seen").unwrap();
    let rest: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert!(matches!(rest.last().unwrap().kind, EventKind::Cancelled { .. }), "{rest:?}");
    let name = container_name(&setting.node_id, &order.attempt(), 1);
    let state =
        Command::new("docker").args(["inspect", "-f", "{{.State.ExitCode}}", &name]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&state.stdout).trim(), "143", "SIGTERM ended it, and no SIGKILL");
    supervisor.release(&[order.attempt()]).await.unwrap();
}
