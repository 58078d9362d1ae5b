//! Against the real engine of this machine, with an image made here.

mod calls;
mod images;
mod output;
mod room;

use std::process::Command;

use aegis_types::{
    execution::{
        order::SecretEnv,
        request::{ExecutionRequest, Submission},
        view::{EventKind, Stream as OutputStream},
    },
    fail_point::{self, FailPoint},
};
use futures::StreamExt as _;

use super::*;

mod workspaces;

const IMAGE: &str = "busybox:testbed";

struct Setting {
    directory: tempfile::TempDir,
    data: Arc<DataDirectory>,
    node_id: NodeId,
}

impl Setting {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = Arc::new(DataDirectory::own(directory.path()).unwrap());
        Self { directory, data, node_id: NodeId::mint() }
    }

    async fn supervisor(&self) -> Supervisor {
        self.with(Policy::default()).await
    }

    async fn with(&self, policy: Policy) -> Supervisor {
        let engine = Engine::new(None).unwrap();
        engine.info().await.expect("these tests need Docker: run tests/run");
        let env = vec![("AEGIS_REMOTE_LLM_URL".to_owned(), "http://llm:1".to_owned())];
        Supervisor::recover(&self.data, self.node_id.clone(), engine, policy, "aegis-net".into(), env)
            .unwrap()
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let filter = format!("label={}={}", aegis_engine::LABEL_NODE, self.node_id);
        let list = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output().unwrap();
        for id in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            let _ = Command::new("docker").args(["rm", "-f", id]).output();
        }
        let list = Command::new("docker").args(["volume", "ls", "-q", "--filter", &filter]).output().unwrap();
        for name in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            let _ = Command::new("docker").args(["volume", "rm", name]).output();
        }
    }
}

fn order(script: &str, input: &str, change: impl FnOnce(&mut ExecutionRequest)) -> Order {
    let mut request = ExecutionRequest {
        image: Some(IMAGE.into()),
        command: vec!["sh".into(), "-c".into(), script.into()],
        timeout_seconds: Some(60),
        ..Default::default()
    };
    change(&mut request);
    let submission = Submission::check(request).unwrap();
    Order {
        execution_id: ExecutionId::mint(),
        attempt: 1,
        manifest: submission.manifest,
        input: input.to_owned(),
        secrets: Default::default(),
        login: None,
    }
}

async fn events(supervisor: &Supervisor, order: &Order, after: u64) -> Vec<EventView> {
    let stream = supervisor.accept(order.clone(), after).await.unwrap();
    stream.map(Result::unwrap).collect().await
}

fn text(events: &[EventView], wanted: OutputStream) -> String {
    let mut bytes = Vec::new();
    for event in events {
        if let EventKind::Output { stream, data, .. } = &event.kind
            && *stream == wanted
        {
            bytes.extend_from_slice(data);
        }
    }
    String::from_utf8(bytes).unwrap()
}

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<EventView>>>>;

/// A worker on a runtime of its own, which dies like a killed process once `until` is over: its tasks are
/// gone, its containers are not.
fn killed_when(
    setting: &Setting,
    order: &Order,
    before: impl FnOnce(&Supervisor) + Send + 'static,
    until: impl AsyncFnOnce(Events) + Send + 'static,
) {
    let (order, node_id, data) = (order.clone(), setting.node_id.clone(), setting.data.clone());
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = Engine::new(None).unwrap();
            engine.info().await.unwrap();
            let supervisor =
                Supervisor::recover(&data, node_id, engine, Policy::default(), "n".into(), vec![]).unwrap();
            before(&supervisor);
            let stream = supervisor.accept(order, 0).await.unwrap();
            until(Box::pin(stream)).await;
        });
    });
    worker.join().unwrap();
}

/// A worker that is killed at its first arrival at `point`.
fn killed_at(setting: &Setting, order: &Order, point: FailPoint) {
    let reached = fail_point::arm(point, 1);
    let seen = reached.clone();
    killed_when(
        setting,
        order,
        move |_| fail_point::arm_here(&seen),
        async move |mut stream| {
            tokio::select! {
                () = reached.wait() => {}
                () = async { while stream.next().await.is_some() {} } => panic!("{point:?} was never reached"),
            }
        },
    );
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn an_execution_reads_its_input_and_its_events_are_numbered() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let script = "cat; echo err >&2; echo \"$AEGIS_INPUT $AEGIS_REMOTE_LLM_URL $A\"; touch /x; exit 3";
    let order = order(script, "héllo\n", |request| {
        request.env.insert("A".into(), "b c".into());
    });
    let all = events(&supervisor, &order, 0).await;
    assert_eq!(text(&all, OutputStream::Stdout), "héllo\nhéllo\n http://llm:1 b c\n");
    assert!(text(&all, OutputStream::Stderr).contains("Read-only file system"));
    let sequences = all.iter().map(|event| event.sequence).collect::<Vec<_>>();
    assert_eq!(sequences, (1..=all.len() as u64).collect::<Vec<_>>());
    assert!(matches!(&all.last().unwrap().kind, EventKind::Failed { exit_code: Some(3), .. }));
    assert_eq!(events(&supervisor, &order, 2).await, all[2..], "attached again, not run again");
    assert!(!supervisor.cancel(&order.execution_id, 1, "late").unwrap());
    supervisor.release(&[order.attempt()]).await.unwrap();
    assert!(supervisor.held().is_empty());
    assert!(supervisor.engine().ours(supervisor.owner()).await.unwrap().is_empty());
    let error = supervisor.accept(order, 2).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::Lost, "never started anew");
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn cancel_timeout_memory_and_missing_images_are_told_apart() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let sleeping = order("echo up; sleep 1000", "", |_| {});
    let mut stream = Box::pin(supervisor.accept(sleeping.clone(), 0).await.unwrap());
    while let Some(event) = stream.next().await {
        match event.unwrap().kind {
            EventKind::Output { .. } => {
                assert!(supervisor.cancel(&sleeping.execution_id, 1, "enough").unwrap());
            }
            EventKind::Cancelled { reason } => assert_eq!(reason, "enough"),
            kind => assert!(kind.state().is_none_or(|state| !state.is_final()), "{kind:?}"),
        }
    }
    let late = order("trap '' TERM; sleep 1000", "", |request| request.timeout_seconds = Some(1));
    let hungry = order("tail /dev/zero", "", |request| request.resources.memory_mb = Some(16));
    let absent = order("true", "", |request| request.image = Some("localhost:1/absent:1".into()));
    let unfit = order("", "", |request| request.command = vec!["/absent".into()]);
    let ends = futures::join!(
        events(&supervisor, &late, 0),
        events(&supervisor, &hungry, 0),
        events(&supervisor, &absent, 0),
        events(&supervisor, &unfit, 0)
    );
    let end = |events: &[EventView]| events.last().unwrap().kind.clone();
    assert!(matches!(end(&ends.0), EventKind::TimedOut { timeout_ms: 1000 }));
    let code = |kind: EventKind| match kind {
        EventKind::Failed { failure, .. } => failure.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(end(&ends.1)), ErrorCode::OutOfMemory);
    assert_eq!(code(end(&ends.2)), ErrorCode::ImageNotFound);
    assert_eq!(code(end(&ends.3)), ErrorCode::ContainerFailed);
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn restarted_worker_adopts_running_and_reports_ended() {
    let setting = Setting::new();
    let script = "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.05; done; exit 7";
    let order = order(script, "", |_| {});
    killed_when(
        &setting,
        &order,
        |_| (),
        async |mut stream| {
            while !matches!(stream.next().await.unwrap().unwrap().kind, EventKind::Output { .. }) {}
        },
    );
    let supervisor = setting.supervisor().await;
    let all = events(&supervisor, &order, 0).await;
    let expected = (0..40).map(|n| format!("{n}\n")).collect::<String>();
    assert_eq!(text(&all, OutputStream::Stdout), expected, "no gap and nothing twice");
    assert!(matches!(&all.last().unwrap().kind, EventKind::Failed { exit_code: Some(7), .. }));
    assert_eq!(supervisor.engine().ours(supervisor.owner()).await.unwrap().len(), 1, "one container");
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn policy_drain_fences_and_epochs_hold() {
    let setting = Setting::new();
    let policy = Policy { allowed_images: Some(vec!["agents/*".into()]), ..Default::default() };
    let supervisor = setting.with(policy).await;
    let order = order("true", "", |_| {});
    let refused = supervisor.accept(order.clone(), 0).await.err().unwrap();
    assert!(refused.to_string().contains("allowed_images"), "{refused}");
    supervisor.control().set_draining(true).unwrap();
    supervisor.control().check_epoch(5).unwrap();
    drop(supervisor);
    let again = setting.supervisor().await;
    assert!(again.control().is_draining(), "a drain survives the restart");
    assert_eq!(again.accept(order.clone(), 0).await.err().unwrap().code(), ErrorCode::FailedPrecondition);
    assert_eq!(again.control().check_epoch(4).unwrap_err().code(), ErrorCode::Fenced);
    again.control().set_draining(false).unwrap();
    let newer = Order { attempt: 2, ..order.clone() };
    events(&again, &newer, 0).await;
    let newest = Order { attempt: 3, ..order.clone() };
    let all = events(&again, &newest, 0).await;
    assert!(all.iter().all(|event| event.attempt == 3), "an older attempt that ended makes way");
    assert_eq!(again.accept(order, 0).await.err().unwrap().code(), ErrorCode::Fenced);
    assert!(setting.directory.path().join("worker.json").exists());
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn every_byte_of_a_fast_writer_that_ends_arrives() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let order = order("yes 0123456789012345678901234567890123456789 | head -c 3000000", "", |_| {});
    let all = events(&supervisor, &order, 0).await;
    let expected = "0123456789012345678901234567890123456789\n".repeat(80_000);
    let written = text(&all, OutputStream::Stdout);
    assert_eq!(written.len(), 3_000_000);
    assert!(expected.starts_with(&written), "in order and unchanged");
    assert!(matches!(all.last().unwrap().kind, EventKind::Completed { .. }));
}

fn kinds(events: &[EventView]) -> Vec<String> {
    let kind =
        |event: &EventView| serde_json::to_value(&event.kind).unwrap()["kind"].as_str().unwrap().to_owned();
    events.iter().map(kind).filter(|kind| kind != "output").collect()
}

const ITERATIVE: &str = "echo \"try $AEGIS_ITERATION after: $AEGIS_LAST_ERROR\"
if [ $AEGIS_ITERATION = 3 ]; then echo '{\"tries\": 3}'; echo; exit 0; fi
echo \"no $AEGIS_ITERATION\" >&2; exit 4";

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn it_is_tried_again_with_the_last_error_until_it_succeeds() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let order = order(ITERATIVE, "", |request| request.max_iterations = Some(5));
    let all = events(&supervisor, &order, 0).await;
    let expected = "try 1 after: \ntry 2 after: the container exited with code 4\nno 1\n\n\
                    try 3 after: the container exited with code 4\nno 2\n\n{\"tries\": 3}\n\n";
    assert_eq!(text(&all, OutputStream::Stdout), expected);
    let tries = ["iteration_started", "iteration_failed"];
    let once = ["started"].iter().chain(&tries).chain(&tries);
    let expected = once.chain(&["iteration_started", "iteration_completed", "completed"]);
    assert_eq!(kinds(&all), expected.copied().collect::<Vec<_>>());
    let EventKind::Completed { result } = &all.last().unwrap().kind else { panic!("{all:?}") };
    assert_eq!(result.as_deref(), Some("{\"tries\": 3}"));
    assert_eq!(supervisor.engine().ours(supervisor.owner()).await.unwrap().len(), 1, "the last one's");

    let hopeless = self::order("exit 9", "", |request| request.max_iterations = Some(2));
    let all = events(&supervisor, &hopeless, 0).await;
    assert!(matches!(all.last().unwrap().kind, EventKind::Failed { exit_code: Some(9), .. }));

    let slow = self::order("[ $AEGIS_ITERATION = 2 ] || sleep 1000", "", |request| {
        request.max_iterations = Some(2);
        request.iteration_timeout_seconds = Some(1);
    });
    let all = events(&supervisor, &slow, 0).await;
    let failed = all.iter().find_map(|event| match &event.kind {
        EventKind::IterationFailed { failure, .. } => Some(failure.code),
        _ => None,
    });
    assert_eq!(failed, Some(ErrorCode::Timeout));
    assert!(matches!(all.last().unwrap().kind, EventKind::Completed { .. }));
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn secrets_reach_the_container_and_no_reader() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let script = "printf 'key=%s ' $KEY | cat; printf '%s' $KEY | wc -c; echo $KEY >&2; exit 1";
    let mut order = order(script, "", |_| ());
    order.secrets = SecretEnv([("KEY".to_owned(), "marker-7f3a".to_owned())].into());
    let all = events(&supervisor, &order, 0).await;
    assert_eq!(text(&all, OutputStream::Stdout), "key=*********** 11\n");
    let told = format!("{all:?} {order:?}");
    assert!(!told.contains("marker-7f3a"), "{told}");
}

/// Killed between every two steps that leave something behind, a worker that comes back runs it to its end,
/// and runs it once.
#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn killed_between_any_two_steps_it_runs_once() {
    for point in FailPoint::WORKER {
        let setting = Setting::new();
        let order = order("cat; echo to stderr >&2; exit $((AEGIS_ITERATION - 2))", "once\n", |request| {
            request.max_iterations = Some(2);
        });
        killed_at(&setting, &order, point);
        let supervisor = setting.supervisor().await;
        let all = events(&supervisor, &order, 0).await;
        assert_eq!(text(&all, OutputStream::Stdout), "once\nonce\n", "{point:?}: once in each iteration");
        let sequences = all.iter().map(|event| event.sequence).collect::<Vec<_>>();
        assert_eq!(sequences, (1..=all.len() as u64).collect::<Vec<_>>(), "{point:?}");
        let tried = ["iteration_started", "iteration_failed", "iteration_started", "iteration_completed"];
        assert_eq!(kinds(&all)[1..5], tried, "{point:?}");
        assert!(matches!(all.last().unwrap().kind, EventKind::Completed { .. }), "{point:?}");
        assert_eq!(supervisor.engine().ours(supervisor.owner()).await.unwrap().len(), 1, "{point:?}");
        supervisor.release(&[order.attempt()]).await.unwrap();
        assert!(supervisor.engine().ours(supervisor.owner()).await.unwrap().is_empty(), "{point:?}");
    }
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn iterations_share_their_workspace_and_a_file_is_the_result() {
    let setting = Setting::new();
    let supervisor = setting.supervisor().await;
    let script = "echo $AEGIS_ITERATION >> seen; [ $AEGIS_ITERATION = 2 ] || exit 1
        printf '%s of %s' \"$(tr '\\n' ' ' < seen)\" $KEY > /workspace/result.txt";
    let mut order = order(script, "", |request| {
        request.max_iterations = Some(2);
        request.result_file = Some("result.txt".into());
    });
    order.secrets = SecretEnv([("KEY".to_owned(), "marker-7f3a".to_owned())].into());
    let all = events(&supervisor, &order, 0).await;
    let EventKind::Completed { result } = &all.last().unwrap().kind else { panic!("{all:?}") };
    assert_eq!(result.as_deref(), Some("1 2  of ***********"));
    supervisor.release(&[order.attempt()]).await.unwrap();
    assert!(supervisor.engine().our_volumes(supervisor.owner()).await.unwrap().is_empty());
}

/// The container obeys and exits with 0, which is not its own end.
#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn killed_while_it_stops_a_container_it_tells_that_it_did() {
    for point in FailPoint::STOPPING {
        let setting = Setting::new();
        let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";
        let order = order(script, "", |request| request.timeout_seconds = Some(2));
        killed_at(&setting, &order, point);
        let supervisor = setting.supervisor().await;
        let all = events(&supervisor, &order, 0).await;
        let end = &all.last().unwrap().kind;
        assert!(matches!(end, EventKind::TimedOut { timeout_ms: 2000 }), "{point:?}: {end:?}");
        assert_eq!(text(&all, OutputStream::Stdout), "up\n", "{point:?}");
    }
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn refused_create_is_a_failure_of_the_container() {
    let setting = Setting::new();
    let policy = Policy { allowed_capabilities: Some(vec!["BOGUS".into()]), ..Policy::default() };
    let supervisor = setting.with(policy).await;
    let capability = order("true", "", |request| request.security.capabilities = vec!["BOGUS".into()]);
    let cores = order("true", "", |request| request.resources.cpu = Some(1000.0));
    for order in [capability, cores] {
        let events = events(&supervisor, &order, 0).await;
        let Some(EventKind::Failed { failure, .. }) = events.last().map(|event| &event.kind) else {
            panic!("{events:?}");
        };
        assert_eq!(failure.code, ErrorCode::ContainerFailed, "{failure:?}");
    }
}
