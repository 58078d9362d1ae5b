use std::os::unix::fs::PermissionsExt as _;

use aegis_fs::DataDirectory;
use aegis_types::{
    audit::AuditQuery,
    caller::Door,
    execution::{
        filter::ExecutionFilter,
        lifecycle::State,
        record::NewExecution,
        request::{ExecutionRequest, Submission},
    },
    ids::{EnrolmentTokenId, NodeId, Tag, UserName},
    node::{Desired, LinkKind, NodeHost, NodeRecord, OnDeadline, Role},
};

use super::*;

async fn store(directory: &Path) -> Store {
    Store::open(Arc::new(DataDirectory::own(directory).unwrap())).await.unwrap()
}

fn node(id: &str, key: u8) -> NodeRecord {
    NodeRecord::expected(NodeId::parse(id).unwrap(), Role::Worker, [key; 32], LinkKind::Direct)
}

fn execution(key: Option<&str>) -> NewExecution {
    let request = ExecutionRequest {
        image: Some("busybox".into()),
        input: Some("in".into()),
        idempotency_key: key.map(Into::into),
        ..Default::default()
    };
    NewExecution::new(Submission::check(request).unwrap(), "uid 0".into(), "d".into(), 1)
}

#[tokio::test]
async fn a_data_directory_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let first = DataDirectory::own(directory.path()).unwrap();
    let error = DataDirectory::own(directory.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(first);
    DataDirectory::own(directory.path()).unwrap();
}

#[tokio::test]
async fn in_a_directory_that_is_open_to_others_the_database_is_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let store = store(dir.path()).await;
    store.write(Write::Execution(ExecutionWrite::Create(Box::new(execution(None))))).await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{entry:?} has mode {mode:o}");
        names.push(entry.file_name());
    }
    assert!(names.contains(&"aegis.db-wal".into()), "{names:?}");
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let first = store(directory.path()).await;
    let mut stored = node("edge-1", 7);
    stored.site = Some(NodeHost {
        link: Default::default(),
        host: "192.0.2.1".into(),
        port: 22,
        user: UserName::parse("root").unwrap(),
        key_path: None,
        base_dir: "/opt/e".into(),
        by_person: true,
        link_key: None,
    });
    first.write(Write::PutNode(Box::new(stored.clone()))).await.unwrap();
    let deadline = Write::SetDesired {
        node_id: stored.node_id.clone(),
        desired: Desired::Draining,
        deadline_ms: Some(9),
        on_deadline: OnDeadline::Leave,
    };
    assert_eq!(first.write(deadline).await.unwrap(), 1);
    drop(first);
    // The writer task ends after its last handle; the lock is released with the last reference to it.
    let second = loop {
        match DataDirectory::own(directory.path()) {
            Ok(owner) => break Store::open(Arc::new(owner)).await.unwrap(),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let nodes = second.nodes().await.unwrap();
    stored.desired = Desired::Draining;
    stored.drain_deadline_ms = Some(9);
    stored.on_deadline = OnDeadline::Leave;
    assert_eq!(nodes, vec![stored]);
}

#[tokio::test]
async fn a_token_is_spent_once_however_many_try() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let token_id = EnrolmentTokenId::parse("t1").unwrap();
    let token = TokenRecord {
        token_id: token_id.clone(),
        secret_hash: [1; 32],
        node_id: None,
        tags: None,
        created_at_ms: 0,
        expires_at_ms: 100,
        role: Role::Worker,
        spent: None,
        revoked: false,
    };
    store.write(Write::CreateToken(token)).await.unwrap();
    let late = Write::SpendToken { token_id: token_id.clone(), node: Box::new(node("late", 1)), now_ms: 100 };
    assert_eq!(store.write(late).await.unwrap(), 0, "expired");
    let tries = (0..100).map(|n| {
        store.write(Write::SpendToken {
            token_id: token_id.clone(),
            node: Box::new(node(&format!("n{n}"), n)),
            now_ms: 5,
        })
    });
    let admitted = futures::future::try_join_all(tries).await.unwrap();
    assert_eq!(admitted.iter().sum::<u64>(), 1);
    assert_eq!(store.nodes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_idempotency_key_names_one_execution() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let (first, second) = (execution(Some("k")), execution(Some("k")));
    assert_eq!(
        store.write(Write::Execution(ExecutionWrite::Create(Box::new(first.clone())))).await.unwrap(),
        1
    );
    assert_eq!(store.write(Write::Execution(ExecutionWrite::Create(Box::new(second)))).await.unwrap(), 0);
    assert_eq!(store.execution_by_key("k").await.unwrap().unwrap(), first.record);
}

#[tokio::test]
async fn events_of_an_older_attempt_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let new = execution(None);
    let mut record = new.record.clone();
    let id = record.execution_id.clone();
    store.write(Write::Execution(ExecutionWrite::Create(Box::new(new)))).await.unwrap();
    assert_eq!(store.order_content(&id).await.unwrap().unwrap().input, "in");
    let node_id = NodeId::parse("n").unwrap();
    let assign = ExecutionWrite::Assign { execution_id: id.clone(), node_id: node_id.clone(), attempt: 2 };
    let assign = Write::Execution(assign);
    assert_eq!(store.write(assign.clone()).await.unwrap(), 1);
    assert_eq!(store.write(assign).await.unwrap(), 0, "assigned once");
    record.state = State::Succeeded;
    record.last_sequence = 1;
    record.node_id = Some(node_id);
    record.ended_at_ms = Some(9);
    for (attempt, changed) in [(1, 0), (2, 1)] {
        record.attempt = attempt;
        let events = vec![(1, vec![attempt as u8])];
        let write = ExecutionWrite::Record { record: Box::new(record.clone()), events };
        assert_eq!(store.write(Write::Execution(write)).await.unwrap(), changed);
    }
    assert_eq!(store.execution_events(&id, 0, 10).await.unwrap(), vec![vec![2]]);
    assert_eq!(store.execution(&id).await.unwrap().unwrap().state, State::Succeeded);
    assert!(store.open_executions().await.unwrap().is_empty());
    let content = store.order_content(&id).await.unwrap().unwrap();
    assert_eq!(
        (content.manifest.image.as_str(), content.input.as_str()),
        ("busybox", ""),
        "the input goes at the end"
    );
    let ended = store.ended_executions().await.unwrap();
    assert_eq!((ended[0].events_bytes, ended[0].ended_at_ms), (1, 9));
    store.write(Write::Execution(ExecutionWrite::DropEvents(vec![id.clone()]))).await.unwrap();
    assert!(store.execution_events(&id, 0, 10).await.unwrap().is_empty());
    assert_eq!(store.ended_executions().await.unwrap()[0].events_bytes, 0);
    store.write(Write::Execution(ExecutionWrite::Forget(vec![id.clone()]))).await.unwrap();
    assert_eq!(store.execution(&id).await.unwrap(), None);
}

#[tokio::test]
async fn many_events_are_stored_in_order_and_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let new = execution(None);
    let (mut record, id) = (new.record.clone(), new.record.execution_id.clone());
    store.write(Write::Execution(ExecutionWrite::Create(Box::new(new)))).await.unwrap();
    let event = |sequence: u64, version: u8| (sequence, vec![sequence as u8, version]);
    // In the second batch, some events are known already.
    for (events, version) in [(1..=75_u64, 0), (60..=150, 1)] {
        record.last_sequence = *events.end();
        let events = events.map(|sequence| event(sequence, version)).collect();
        let write = ExecutionWrite::Record { record: Box::new(record.clone()), events };
        assert_eq!(store.write(Write::Execution(write)).await.unwrap(), 1);
    }
    let expected: Vec<_> = (1..=150).map(|sequence| event(sequence, u8::from(sequence > 75)).1).collect();
    assert_eq!(store.execution_events(&id, 0, 1000).await.unwrap(), expected);
}

#[tokio::test]
async fn a_newer_schema_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let owner = Arc::new(DataDirectory::own(directory.path()).unwrap());
    let first = Store::open(owner.clone()).await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'later', 1, $1, 0)";
    sqlx::query(sql).bind(vec![0_u8]).execute(&first.read).await.unwrap();
    let error = Store::open(owner).await.unwrap_err();
    assert!(error.to_string().contains("99"), "{error}");
}

#[tokio::test]
async fn damaged_database_is_refused_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let owner = Arc::new(DataDirectory::own(directory.path()).unwrap());
    let path = owner.private_file("aegis.db").unwrap();
    let bytes = [0xa5; 40_000];
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(owner).await.unwrap_err();
    assert!(error.message().contains("is damaged"), "{error}");
    assert!(error.remedy_text().unwrap().contains("backup"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

/// A limit on the pages of the file simulates a full disk: SQLite reports SQLITE_FULL for both.
#[tokio::test]
async fn after_a_full_disk_nothing_is_acknowledged_that_is_not_stored() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PAGES_MAX: AtomicU32 = AtomicU32::new(60);
    let directory = tempfile::tempdir().unwrap();
    let reader = store(directory.path()).await;
    let options = format!("sqlite://{}/aegis.db", directory.path().display());
    let writer = AnyPoolOptions::new()
        .max_connections(1)
        .after_connect(|connection, _| {
            Box::pin(async move {
                let limit = format!("PRAGMA max_page_count = {}", PAGES_MAX.load(Ordering::Relaxed));
                connection.execute(sqlx::AssertSqlSafe(limit)).await.map(drop)
            })
        })
        .connect_with(options.parse::<AnyConnectOptions>().unwrap())
        .await
        .unwrap();
    let put = |name, bytes: usize| Write::SetMeta { name, value: "x".repeat(bytes) };
    commit(&writer, &[put("small", 10)]).await.unwrap();
    let error = commit(&writer, &[put("first", 10), put("large", 1_000_000)]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Storage);
    assert!(reader.meta("first").await.unwrap().is_none(), "all or none");
    PAGES_MAX.store(1_000_000, Ordering::Relaxed);
    assert_eq!(commit(&writer, &[put("large", 1_000_000)]).await.unwrap(), [1]);
    assert_eq!(reader.meta("large").await.unwrap().map(|text| text.len()), Some(1_000_000));
    assert!(reader.meta("small").await.unwrap().is_some());
}

#[tokio::test]
async fn layers_are_replaced_only_over_the_version_that_is_expected() {
    use aegis_config::layers::{ConfigSnapshot, Scope};
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let layer = |version: &str| ConfigSnapshot {
        scope: Scope::Global,
        json: serde_json::json!({ "v": version }),
        version: version.to_owned(),
    };
    let put = |version: &str, if_version: Option<&str>| {
        let (layer, if_version) = (layer(version), if_version.map(str::to_owned));
        store.write(Write::Config(Box::new(ConfigWrite::PutLayer { layer, if_version, now_ms: 1 })))
    };
    assert_eq!(put("a", Some("z")).await.unwrap(), 0, "there is none yet");
    assert_eq!(put("a", None).await.unwrap(), 1);
    assert_eq!(put("b", Some("z")).await.unwrap(), 0);
    assert_eq!(store.config_layer(&Scope::Global).await.unwrap(), Some(layer("a")));
    assert_eq!(put("b", Some("a")).await.unwrap(), 1);
    assert_eq!(store.config_layers().await.unwrap(), [layer("b")]);
    let delete = |if_version: Option<&str>| {
        let if_version = if_version.map(str::to_owned);
        let write = ConfigWrite::DeleteLayer { scope: Scope::Global, if_version };
        store.write(Write::Config(Box::new(write)))
    };
    assert_eq!(delete(Some("a")).await.unwrap(), 0);
    assert_eq!(delete(None).await.unwrap(), 1);
}

#[tokio::test]
async fn what_a_node_should_run_is_kept_apart_from_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let node_id = NodeId::parse("a").unwrap();
    let register = |runtimes: &[&str]| ConfigWrite::Register {
        node_id: node_id.clone(),
        config_version: "v1".into(),
        runtimes: runtimes.iter().map(ToString::to_string).collect(),
        now_ms: 5,
    };
    let assign = |version: &str| ConfigWrite::AssignVersion {
        node_id: node_id.clone(),
        config_version: version.into(),
        now_ms: 7,
    };
    let tenant = Some(aegis_types::ids::TenantSlug::parse("acme").unwrap());
    {
        let store = store(directory.path()).await;
        let write = |write| store.write(Write::Config(Box::new(write)));
        assert_eq!(write(assign("v0")).await.unwrap(), 0, "not registered yet");
        write(register(&["docker"])).await.unwrap();
        let assign_tenant =
            ConfigWrite::AssignTenant { node_id: node_id.clone(), tenant: tenant.clone(), now_ms: 6 };
        write(assign_tenant).await.unwrap();
        assert_eq!(write(assign("v2")).await.unwrap(), 1);
        assert_eq!(write(assign("v2")).await.unwrap(), 0, "nothing new");
        // The node registers again with another runtime: its configuration stays assigned.
        write(register(&["docker", "wasm"])).await.unwrap();
    }
    let store = store(directory.path()).await;
    let (config, runtimes) = store.assignment(&node_id).await.unwrap().unwrap();
    assert_eq!((config.config_version.as_str(), config.assigned_at_ms), ("v2", 7));
    assert_eq!((config.tenant, runtimes.runtimes), (tenant, vec!["docker".to_owned(), "wasm".to_owned()]));
}

#[tokio::test]
async fn audit_batches_of_any_size_are_stored_completely() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let entry = |number: i64| AuditRow {
        at_ms: number,
        door: if number % 2 == 0 { Door::Http } else { Door::McpSocket },
        who: format!("uid {number}"),
        client: (number % 3 == 0).then(|| format!("client {number}")),
        action: format!("action {number}"),
        arguments: (number % 5 == 0).then(|| format!("{{\"n\":{number}}}")),
        result: format!("result {number}"),
        duration_ms: number * 2,
        calls: 1,
        last_at_ms: None,
    };
    let mut next = 1;
    for together in [1, 7, 8, 9, 64, 65, 256] {
        let rows: Vec<_> = (next..next + together).map(|number| (number, entry(number))).collect();
        let appended = store.write(Write::Audit(AuditWrite::Append(rows))).await.unwrap();
        assert_eq!(i64::try_from(appended).unwrap(), together);
        next += together;
    }
    let query = AuditQuery { limit: 1000, ..AuditQuery::default() };
    assert_eq!(store.audit(&query).await.unwrap(), (1..next).map(entry).collect::<Vec<_>>());
    let twice = Write::Audit(AuditWrite::Append(vec![(next, entry(next)), (1, entry(1))]));
    store.write(twice).await.unwrap_err();
    assert_eq!(store.audit_range().await.unwrap(), Some((1, next - 1)), "all of them, or none");
}

#[tokio::test]
async fn open_executions_are_held_without_manifest_and_input() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let request = ExecutionRequest {
        image: Some("busybox".into()),
        input: Some("i".repeat(1024 * 1024)),
        env: (0..8).map(|n| (format!("V{n}"), "v".repeat(100_000))).collect(),
        artifacts: vec!["out".into()],
        ..Default::default()
    };
    for _ in 0..3 {
        let new =
            NewExecution::new(Submission::check(request.clone()).unwrap(), "uid 0".into(), "d".into(), 1);
        store.write(Write::Execution(ExecutionWrite::Create(Box::new(new)))).await.unwrap();
    }
    let open = store.open_executions().await.unwrap();
    assert_eq!(
        (open.len(), store.recent_executions(&ExecutionFilter::default(), 10).await.unwrap().len()),
        (3, 3)
    );
    for record in &open {
        // The debug text of a record includes all its strings.
        let retained = std::mem::size_of_val(record) + format!("{record:?}").len();
        assert!(retained < 4096, "{retained} bytes");
        assert!(record.order_bytes > 1_800_000 && record.has_artifacts);
        let content = store.order_content(&record.execution_id).await.unwrap().unwrap();
        assert_eq!((content.input.len(), content.manifest.env.len()), (1024 * 1024, 8));
    }
}

#[tokio::test]
async fn list_of_executions_is_filtered_and_paged() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let labels = |words: &[&str]| words.iter().map(|word| Tag::parse(*word).unwrap()).collect::<Vec<_>>();
    let mut ids = Vec::new();
    for (agent, words) in [
        (Some("review@1"), &["nightly", "pr=4"][..]),
        (Some("review@2"), &["pr=42"]),
        (Some("reviewer@1"), &[]),
        (None, &["nightly"]),
    ] {
        let request =
            ExecutionRequest { image: Some("busybox".into()), labels: labels(words), ..Default::default() };
        let mut new = NewExecution::new(Submission::check(request).unwrap(), "uid 0".into(), "d".into(), 1);
        new.record.agent = agent.map(|agent| agent.parse().unwrap());
        new.record.created_at_ms = 1_000 + i64::try_from(ids.len() / 2).unwrap();
        ids.push(new.record.execution_id.clone());
        store.write(Write::Execution(ExecutionWrite::Create(Box::new(new)))).await.unwrap();
    }
    let assign = ExecutionWrite::Assign {
        execution_id: ids[1].clone(),
        node_id: NodeId::parse("a").unwrap(),
        attempt: 1,
    };
    store.write(Write::Execution(assign)).await.unwrap();
    let found = async |filter: ExecutionFilter| {
        let found = store.recent_executions(&filter, 10).await.unwrap();
        let place = |id| ids.iter().position(|known| known == id).unwrap();
        let mut found: Vec<_> = found.iter().map(|record| place(&record.execution_id)).collect();
        found.sort();
        found
    };
    let by_agent =
        |agent: &str| ExecutionFilter { agent: Some(agent.parse().unwrap()), ..Default::default() };
    assert_eq!(found(ExecutionFilter::default()).await, [0, 1, 2, 3]);
    assert_eq!(found(by_agent("review")).await, [0, 1]);
    assert_eq!(found(by_agent("review@2")).await, [1]);
    let by_label = |words: &[&str]| ExecutionFilter { labels: labels(words), ..Default::default() };
    assert_eq!(found(by_label(&["nightly"])).await, [0, 3]);
    assert_eq!(found(by_label(&["nightly", "pr=4"])).await, [0], "all of them");
    let on_a = ExecutionFilter { node_id: Some(NodeId::parse("a").unwrap()), ..Default::default() };
    assert_eq!(found(on_a).await, [1]);
    let states = vec![State::Pending, State::Failed];
    assert_eq!(found(ExecutionFilter { states, ..by_agent("review") }).await, [0]);

    let (mut paged, mut before) = (Vec::new(), None);
    loop {
        let filter = ExecutionFilter { before: before.take(), ..Default::default() };
        let page = store.recent_executions(&filter, 1).await.unwrap();
        let Some(record) = page.into_iter().next() else { break };
        assert_eq!(
            record.labels.len(),
            [2, 1, 0, 1][ids.iter().position(|id| *id == record.execution_id).unwrap()]
        );
        before = Some(record.execution_id.clone());
        paged.push(record.execution_id);
    }
    let whole = store.recent_executions(&ExecutionFilter::default(), 10).await.unwrap();
    assert_eq!(paged, whole.into_iter().map(|record| record.execution_id).collect::<Vec<_>>());
}

#[tokio::test]
async fn list_by_creation_uses_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let sql = "EXPLAIN QUERY PLAN SELECT image FROM executions ORDER BY created_at_ms DESC, execution_id DESC LIMIT 9";
    let plan = sqlx::query(sql).fetch_all(&store.read).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| sqlx::Row::get(row, "detail")).collect();
    assert!(plan.iter().any(|step| step.contains("executions_by_creation")), "{plan:?}");
    assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
}

/// A database from before the columns keeps the displayed data of its executions.
#[tokio::test]
async fn migration_fills_columns_of_known_executions() {
    let directory = tempfile::tempdir().unwrap();
    let (open, ended) = (execution(None), execution(None));
    {
        let store = store(directory.path()).await;
        for new in [&open, &ended] {
            store.write(Write::Execution(ExecutionWrite::Create(Box::new(new.clone())))).await.unwrap();
        }
    }
    let path = directory.path().join("aegis.db");
    let mut connection = AnyConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    let ended_id = ended.record.execution_id.as_str();
    for sql in [
        format!("UPDATE executions SET state = 'failed', ended_at_ms = 1 WHERE execution_id = '{ended_id}'"),
        "UPDATE executions SET image = '', order_bytes = 0".to_owned(),
        "DROP INDEX executions_by_creation".to_owned(),
        "ALTER TABLE executions DROP COLUMN image".to_owned(),
        "ALTER TABLE executions DROP COLUMN workspace".to_owned(),
        "ALTER TABLE executions DROP COLUMN has_artifacts".to_owned(),
        "ALTER TABLE executions DROP COLUMN order_bytes".to_owned(),
        "ALTER TABLE executions DROP COLUMN timeout_seconds".to_owned(),
        "DELETE FROM _sqlx_migrations WHERE version = 22".to_owned(),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let store = store(directory.path()).await;
    let known = store.open_executions().await.unwrap();
    assert_eq!(known, std::slice::from_ref(&open.record));
    let input = async |id| store.order_content(id).await.unwrap().unwrap().input;
    assert_eq!(input(&open.record.execution_id).await, "in");
    assert_eq!(input(&ended.record.execution_id).await, "");
}
