use std::{path::Path, time::Duration};

use aegis_fs::DataDirectory;
use aegis_types::caller::{Door, Identity};
use serde_json::json;

use super::*;

const KEPT: AuditSettings = AuditSettings { age: Duration::from_secs(3600), entries: 100 };

async fn store(directory: &Path) -> Store {
    Store::open(Arc::new(DataDirectory::own(directory).unwrap())).await.unwrap()
}

fn call(action: &str) -> Call {
    Call {
        actor: Actor { door: Door::Http, identity: Identity::LocalToken },
        client: Some(Client::new("claude-code", "2.1")),
        action: action.to_owned(),
        arguments: Arguments::default(),
        is_read: false,
    }
}

fn all() -> AuditQuery {
    AuditQuery { limit: 1000, ..AuditQuery::default() }
}

#[tokio::test]
async fn ended_call_is_read_at_once_and_left_call_is_abandoned() {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let metrics = Metrics::default();
    let (audit, written) =
        Audit::start(store(directory.path()).await, KEPT, metrics.clone(), stop.clone()).await.unwrap();
    let given = call("list_peers");
    given.arguments.note(&json!({ "tags": ["gpu"], "token": "marker" }));
    given.arguments.note(&json!({ "tags": ["another"] }));
    audit.begin(given).end(None).await;
    audit.begin(call("drain_node")).end(Some(ErrorCode::NotFound)).await;
    drop(audit.begin(call("submit_execution")));
    let entries = audit.read(&all()).await.unwrap();
    let told: Vec<_> = entries.iter().map(|entry| (&*entry.action, &*entry.result)).collect();
    assert_eq!(told, [("list_peers", "ok"), ("drain_node", "NotFound"), ("submit_execution", "abandoned")]);
    assert_eq!(entries[0].arguments.as_deref(), Some(r#"{"tags":["gpu"],"token":"(hidden)"}"#));
    assert_eq!((&*entries[0].who, entries[0].client.as_deref()), ("http.token", Some("claude-code 2.1")));
    assert_eq!(entries[1].arguments, None);

    let newest = audit.read(&AuditQuery { limit: 2, ..all() }).await.unwrap();
    assert_eq!(newest, entries[1..], "the newest, in order");
    let one = AuditQuery { action: Some("drain_node".into()), ..all() };
    assert_eq!(audit.read(&one).await.unwrap(), entries[1..2]);
    let later = AuditQuery { since_ms: Some(now_ms() + 60_000), ..all() };
    assert!(audit.read(&later).await.unwrap().is_empty());

    audit.begin(call("resume_node")).end(None).await;
    stop.cancel();
    written.await.unwrap();
    assert_eq!(audit.read(&all()).await.unwrap().len(), 4, "what was ended before the stop is written");
    audit.begin(call("too_late")).end(None).await;
    assert!(metrics.text(Duration::ZERO).unwrap().contains("aegis_audit_entries_lost_total 1"));
}

#[tokio::test]
async fn reads_of_one_caller_and_tool_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let (audit, written) =
        Audit::start(store(directory.path()).await, KEPT, Metrics::default(), stop.clone()).await.unwrap();
    let read = |action: &str| Call { is_read: true, ..call(action) };
    let other = Actor { door: Door::McpSocket, identity: Identity::LocalUser(0) };
    for number in 0..1000 {
        let given = read("list_peers");
        given.arguments.note(&json!({ "number": number }));
        audit.begin(given).end(None).await;
    }
    audit.begin(Call { actor: other, ..read("list_peers") }).end(None).await;
    audit.begin(read("get_execution")).end(None).await;
    audit.begin(read("list_peers")).end(Some(ErrorCode::Forbidden)).await;
    drop(audit.begin(read("list_peers")));
    for _ in 0..3 {
        audit.begin(call("drain_node")).end(None).await;
    }
    let entries = audit.read(&all()).await.unwrap();
    let of = |action: &str, result: &str| {
        let found = entries.iter().filter(|entry| entry.action == action && entry.result == result);
        found.collect::<Vec<_>>()
    };
    assert_eq!(of("drain_node", "ok").len(), 3, "changes are exact");
    assert!(of("drain_node", "ok").iter().all(|entry| entry.calls == 1 && entry.last_at.is_none()));
    assert_eq!((of("list_peers", "Forbidden").len(), of("list_peers", "abandoned").len()), (1, 1));
    let ours: Vec<_> = of("list_peers", "ok").into_iter().filter(|entry| entry.door == Door::Http).collect();
    assert_eq!(ours.iter().map(|entry| entry.calls).sum::<i64>(), 1000);
    assert!(ours.len() < 100, "{} entries", ours.len());
    // A second may end between any two reads; entries are read newest first.
    let first = ours.last().unwrap();
    assert!(
        ours.iter().any(|entry| entry.last_at.as_ref().is_some_and(|last| *last >= entry.at)),
        "{ours:?}"
    );
    assert_eq!(first.arguments.as_deref(), Some(r#"{"number":0}"#), "those of the first");
    assert_eq!((of("get_execution", "ok")[0].calls, of("list_peers", "ok").len()), (1, ours.len() + 1));

    // What is open at the end is written.
    audit.begin(read("get_execution")).end(None).await;
    stop.cancel();
    written.await.unwrap();
    audit.begin(read("get_execution")).end(None).await;
    let entries = audit.read(&all()).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.action == "get_execution").count(), 2);
}

#[tokio::test]
async fn reads_stand_before_the_change_that_follows_them() {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let (audit, written) =
        Audit::start(store(directory.path()).await, KEPT, Metrics::default(), stop.clone()).await.unwrap();
    for action in ["list_peers", "drain_node", "list_peers", "get_execution", "resume_node"] {
        let is_read = !action.ends_with("_node");
        audit.begin(Call { is_read, ..call(action) }).end(None).await;
    }
    stop.cancel();
    written.await.unwrap();
    let actions: Vec<_> = audit.read(&all()).await.unwrap().into_iter().map(|entry| entry.action).collect();
    // Reads before and after a change may be one entry, where both are written together.
    assert!(matches!(&*actions[0], "list_peers" | "get_execution"), "{actions:?}");
    assert_eq!(actions.last().map(String::as_str), Some("resume_node"), "{actions:?}");
}

#[tokio::test(start_paused = true)]
async fn read_is_complete_after_its_second() {
    let reads = reads::Reads::default();
    let row = |at_ms| AuditRow {
        at_ms,
        door: Door::Http,
        who: "http.token".into(),
        client: None,
        action: "list_peers".into(),
        arguments: None,
        result: "ok".into(),
        duration_ms: at_ms,
        calls: 1,
        last_at_ms: None,
    };
    let key = || {
        let Call { actor, client, action, .. } = call("list_peers");
        reads::Key { actor, client, action }
    };
    assert_eq!(reads.count(key(), row(7)), None);
    assert_eq!(reads.count(key(), row(8)), None);
    assert!(reads.take_complete().is_empty());
    reads.complete().await;
    let folded = AuditRow { calls: 2, last_at_ms: Some(8), duration_ms: 8, ..row(7) };
    assert_eq!(reads.count(key(), row(9)), Some(folded), "the next one opens an entry");
    reads.complete().await;
    assert_eq!(reads.take_complete(), [row(9)]);
    assert!(reads.close().is_empty());
    assert_eq!(reads.count(key(), row(10)), Some(row(10)), "nothing is kept after the end");
}

#[tokio::test]
async fn entries_are_pruned_and_numbers_go_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let row = |at_ms| AuditRow {
        at_ms,
        door: Door::McpSocket,
        who: "uid 0".into(),
        client: None,
        action: "list_peers".into(),
        arguments: None,
        result: "ok".into(),
        duration_ms: 1,
        calls: 1,
        last_at_ms: None,
    };
    let rows: Vec<_> = (1..=2500_i64).map(|number| (number, row(number))).collect();
    store.write(aegis_store::Write::Audit(aegis_store::AuditWrite::Append(rows))).await.unwrap();
    let pruned = |entries, age_ms| {
        let settings = AuditSettings { age: Duration::from_millis(age_ms), entries };
        let store = store.clone();
        async move {
            let writer = writer::Writer::open(store.clone(), settings, Metrics::default(), Arc::default())
                .await
                .unwrap();
            writer.prune(2600).await.unwrap();
            store.audit_range().await.unwrap()
        }
    };
    assert_eq!(pruned(5000, 10_000).await, Some((1, 2500)));
    assert_eq!(pruned(1000, 10_000).await, Some((1501, 2500)));
    assert_eq!(pruned(1000, 200).await, Some((2400, 2500)));
    let stop = CancellationToken::new();
    let (audit, written) = Audit::start(store.clone(), KEPT, Metrics::default(), stop.clone()).await.unwrap();
    audit.begin(call("list_peers")).end(None).await;
    audit.read(&all()).await.unwrap();
    assert_eq!(store.audit_range().await.unwrap().unwrap().1, 2501);
    stop.cancel();
    written.await.unwrap();
}
