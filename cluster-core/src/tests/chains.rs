//! Retries of programs, and executions that run after others.

use std::time::Duration;

use aegis_types::{
    caller::Identity,
    error::ErrorCode,
    execution::{
        after::AfterCondition,
        filter::ExecutionFilter,
        lifecycle::State,
        request::{ExecutionRequest, Submitter},
        retry::RetryPolicy,
        view::{EventKind, ExecutionView},
    },
    ids::ExecutionId,
};

use super::{END_LIMIT, Node, ended, request, stdout};
use crate::core::Core;

async fn submit(core: &Core, request: ExecutionRequest) -> ExecutionId {
    core.submit(request, Submitter::this_process()).await.unwrap().execution_id
}

fn retried(script: &str, backoff_seconds: u32) -> ExecutionRequest {
    let policy = RetryPolicy { max: 2, backoff_seconds: Some(backoff_seconds), exit_codes: vec![75] };
    ExecutionRequest { retry: Some(policy), ..request(script) }
}

/// Waits until an execution is seen in a state that `is_met` accepts.
async fn seen(core: &Core, id: &ExecutionId, is_met: impl Fn(&ExecutionView) -> bool) -> ExecutionView {
    let mut changes = core.watch_execution(id).await.unwrap();
    let view = tokio::time::timeout(END_LIMIT, changes.wait_for(|view| is_met(view))).await;
    view.expect("the state is reached").expect("the execution is open").clone()
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_failed_program_is_retried_and_numbered_on() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    let id = submit(&core, retried("echo once; exit 75", 1)).await;
    let (view, events) = ended(&core, &id).await;
    assert_eq!((view.state, view.exit_code, view.retries), (State::Failed, Some(75), 2), "{view:?}");
    assert_eq!(stdout(&events), "once\nonce\nonce\n");
    let pauses = events.iter().filter_map(|event| match &event.kind {
        EventKind::Retried { pause_ms, exit_code, .. } => Some((*pause_ms, *exit_code)),
        _ => None,
    });
    assert_eq!(pauses.collect::<Vec<_>>(), [(1000, Some(75)), (2000, Some(75))]);
    let sequences = events.iter().map(|event| event.sequence).collect::<Vec<_>>();
    assert_eq!(sequences, (1..=view.last_sequence).collect::<Vec<_>>(), "one numbering for all attempts");

    let id = submit(&core, retried("exit 3", 1)).await;
    let (view, _) = ended(&core, &id).await;
    assert_eq!((view.exit_code, view.retries), (Some(3), 0), "this code is not retried");
    core.shutdown().await;
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_pause_outlives_the_controller_and_ends_by_cancel() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let path = data.path().to_owned();
    // On a runtime of its own: its data directory is free when all of it has ended.
    let id = std::thread::scope(|scope| {
        let process = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let core = node.core(&path).await;
                let id = submit(&core, retried("exit 75", 3600)).await;
                seen(&core, &id, |view| view.retries == 1).await;
                core.shutdown().await;
                id
            })
        });
        process.join().unwrap()
    });
    let core = node.core(&path).await;
    let waits = seen(&core, &id, |view| view.waiting.is_some()).await;
    assert_eq!((waits.state, waits.attempt), (State::Pending, 1));
    assert_eq!(waits.waiting.as_deref(), Some("its program failed; retry 1 of 2 follows a pause"));
    core.cancel_execution(&id, "seen").await.unwrap();
    let (view, _) = ended(&core, &id).await;
    assert_eq!((view.state, view.retries), (State::Cancelled, 1));
    core.shutdown().await;
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn artifacts_of_one_are_the_workspace_of_the_next() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    let build = submit(
        &core,
        ExecutionRequest {
            artifacts: vec!["out".into()],
            ..request("mkdir out; echo built > out/a; while ! test -e /workspace/go; do sleep 0.1; done")
        },
    )
    .await;
    let test =
        ExecutionRequest { workspace_from: Some(build.clone()), ..request("cat out/a; echo x > out/b") };
    let test = submit(&core, test).await;
    let last = ExecutionRequest { after: vec![build.clone(), test.clone()], ..request("echo last") };
    let last = submit(&core, last).await;
    let blocked = seen(&core, &last, |view| view.waiting.is_some()).await;
    assert_eq!(blocked.state, State::Pending);
    assert!(blocked.waiting.unwrap().starts_with(&format!("runs after {build}")));
    seen(&core, &build, |view| view.state == State::Running).await;
    let container = node.containers().pop().unwrap();
    let go =
        std::process::Command::new("docker").args(["exec", &container, "touch", "/workspace/go"]).status();
    assert!(go.unwrap().success());
    let (view, events) = ended(&core, &test).await;
    assert_eq!((view.state, stdout(&events).as_str()), (State::Succeeded, "built\n"), "{view:?}");
    let (last, _) = ended(&core, &last).await;
    assert_eq!(last.state, State::Succeeded, "{last:?}");
    assert!(last.started_at_ms >= view.ended_at_ms, "it ran after both");
    core.shutdown().await;
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn a_failed_dependency_fails_those_that_need_its_success() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    let fails = submit(&core, request("sleep 1; exit 4")).await;
    let after = |condition| ExecutionRequest {
        after: vec![fails.clone()],
        after_condition: condition,
        ..request("echo ran")
    };
    let needs = submit(&core, after(None)).await;
    let next = submit(&core, ExecutionRequest { after: vec![needs.clone()], ..request("echo ran") }).await;
    let anyway = submit(&core, after(Some(AfterCondition::Ended))).await;
    for id in [&needs, &next] {
        let (view, events) = ended(&core, id).await;
        let failure = view.failure.unwrap();
        assert_eq!((view.state, failure.code), (State::Failed, ErrorCode::FailedPrecondition));
        assert!(failure.message.contains("which it runs after, ended as failed"), "{}", failure.message);
        assert_eq!((view.attempt, stdout(&events).as_str()), (0, ""), "it never ran");
    }
    let (view, _) = ended(&core, &anyway).await;
    assert_eq!(view.state, State::Succeeded);
    // What has ended is known as well, and what never was is refused.
    let late = submit(&core, after(Some(AfterCondition::Ended))).await;
    assert_eq!(ended(&core, &late).await.0.state, State::Succeeded);
    for bad in [
        ExecutionRequest { after: vec![ExecutionId::mint()], ..request("true") },
        ExecutionRequest { workspace_from: Some(fails.clone()), ..request("true") },
    ] {
        let code = core.submit(bad, Submitter::this_process()).await.unwrap_err().code();
        assert!(matches!(code, ErrorCode::NotFound | ErrorCode::InvalidArgument), "{code}");
    }
    let blocked = submit(&core, request("sleep 600")).await;
    let cancelled = submit(&core, ExecutionRequest { after: vec![blocked.clone()], ..request("true") }).await;
    core.cancel_execution(&cancelled, "seen").await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), ended(&core, &cancelled)).await;
    assert_eq!(end.expect("it ends while it is blocked").0.state, State::Cancelled);
    core.cancel_execution(&blocked, "seen").await.unwrap();
    ended(&core, &blocked).await;
    core.shutdown().await;
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn one_caller_has_no_more_open_than_the_limit() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core_with(data.path(), "runtime: { max_executions_per_caller: 1 }").await;
    let first = submit(&core, request("sleep 600")).await;
    let refused = core.submit(request("true"), Submitter::this_process()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::ResourceExhausted);
    assert!(refused.message().contains("has 1 open executions"), "{}", refused.message());
    let other = Submitter { identity: Identity::LocalToken, ..Submitter::this_process() };
    let other = core.submit(request("true"), other).await.unwrap().execution_id;
    core.cancel_execution(&first, "seen").await.unwrap();
    ended(&core, &first).await;
    let next = submit(&core, request("true")).await;
    for id in [&other, &next] {
        assert_eq!(ended(&core, id).await.0.state, State::Succeeded);
    }
    core.shutdown().await;
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn usage_is_told_at_the_end() {
    let (node, data) = (Node::mint(), tempfile::tempdir().unwrap());
    let core = node.core(data.path()).await;
    // 40 MiB in memory and a busy CPU until the node has taken a sample, which its end cannot outrun.
    let busy = "head -c 41943040 /dev/zero > /tmp/held; echo 12345; while :; do :; done";
    let id = submit(&core, request(busy)).await;
    // Its line comes when the memory is held.
    seen(&core, &id, |view| view.last_sequence >= 3).await;
    core.cancel_execution(&id, "seen").await.unwrap();
    let (view, events) = ended(&core, &id).await;
    let usage = view.usage.unwrap();
    assert_eq!(usage.output_bytes, 6, "{events:?}");
    assert!(usage.memory_peak_bytes.unwrap() >= 40 * 1024 * 1024, "{usage:?}");
    assert!(usage.cpu_ms.unwrap() > 0, "{usage:?}");
    let stored = core.executions(&ExecutionFilter::default(), 1).await.unwrap().remove(0);
    assert_eq!(stored.usage, Some(usage));
    core.shutdown().await;
}
