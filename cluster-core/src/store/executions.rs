//! Executions and their events, as they are stored.

use sqlx::{AssertSqlSafe, Row as _, any::AnyRow};

use super::{Store, from_json, read_failed, to_json, unreadable};
use crate::{
    agents::AgentReference,
    cluster::peer::Amounts,
    error::{Failure, Result},
    execution::{
        artifacts::Artifacts,
        dependencies::Dependencies,
        filter::ExecutionFilter,
        lifecycle::{Life, State},
        manifest::{Demand, Manifest, WorkspaceNote},
        order::Attempt,
        request::Submission,
        retention::Ended,
        retry::RetryPolicy,
        usage::Usage,
        view::ExecutionView,
    },
    ids::{ExecutionId, HookName, NodeId, Tag},
};

/// All columns but the manifest and the input, which may have megabytes.
const RECORD: &str = "execution_id, agent, state, image, workspace, has_artifacts, order_bytes, timeout_seconds, demand, dependencies, node_id, attempt,
     retry, retries, queued_at_ms, max_attempts, lost_attempts, sequence_base, iteration, result, exit_code, failure, artifacts, cancel_reason,
     created_at_ms, started_at_ms, ended_at_ms, last_sequence, idempotency_key, request_digest, labels, caller, usage,
     notify";

/// Manifest and input of an execution. They are read when an order is made, and not kept in memory while the execution
/// is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderContent {
    pub manifest: Manifest,
    pub input: String,
}

/// An accepted submission, to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewExecution {
    pub record: ExecutionRecord,
    pub content: OrderContent,
}

impl NewExecution {
    pub fn new(submission: Submission, caller: String, request_digest: String, now_ms: i64) -> Self {
        let record =
            ExecutionRecord { caller, ..ExecutionRecord::pending(&submission, request_digest, now_ms) };
        Self { record, content: OrderContent { manifest: submission.manifest, input: submission.input } }
    }

    /// Notes what the workspace was packed into.
    pub fn set_workspace(&mut self, note: WorkspaceNote) {
        self.record.workspace = Some(note.clone());
        self.content.manifest.workspace = Some(note);
    }
}

/// What an execution that ran after others waits for a node with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unblocked {
    pub queued_at_ms: i64,
    /// The packed artifacts that it takes over.
    pub workspace: Option<WorkspaceNote>,
}

/// An execution as it is stored, without its manifest and input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionRecord {
    pub execution_id: ExecutionId,
    /// The registered one that it runs, in the version that it was resolved to.
    pub agent: Option<AgentReference>,
    /// Caller that submitted it, as the audit log names it.
    pub caller: String,
    pub state: State,
    pub image: String,
    /// The packed directory that is sent along.
    pub workspace: Option<WorkspaceNote>,
    /// Paths are kept of it when it has ended.
    pub has_artifacts: bool,
    /// About the size of its manifest and input.
    pub order_bytes: u64,
    /// From the start of its first container.
    pub timeout_seconds: u64,
    pub demand: Demand,
    /// Executions that it runs after. None once it may be placed.
    pub dependencies: Option<Dependencies>,
    /// The caller's own words for it.
    pub labels: Vec<Tag>,
    /// Hooks that are told of its end.
    pub notify: Vec<HookName>,
    pub node_id: Option<NodeId>,
    pub attempt: u32,
    /// Attempts that may have run in all, and those that were given up because their node was lost.
    pub max_attempts: u32,
    pub lost_attempts: u32,
    pub retry: Option<RetryPolicy>,
    /// Retries of its program so far.
    pub retries: u32,
    /// Time from which it waits for a node. It lies ahead while a retry waits for its pause.
    pub queued_at_ms: i64,
    /// What the numbers of this attempt's events come after: its node counts from 1.
    pub sequence_base: u64,
    pub iteration: u32,
    pub exit_code: Option<i32>,
    pub result: Option<String>,
    pub failure: Option<Failure>,
    /// What was kept of it, once it has ended.
    pub artifacts: Option<Artifacts>,
    /// What its latest attempt used.
    pub usage: Option<Usage>,
    /// Somebody asked for its end.
    pub cancel_reason: Option<String>,
    pub created_at_ms: i64,
    pub started_at_ms: Option<i64>,
    pub ended_at_ms: Option<i64>,
    pub last_sequence: u64,
    pub idempotency_key: Option<String>,
    /// Of the request, so that a key that comes again with another one is noticed.
    pub request_digest: String,
}

impl ExecutionRecord {
    /// Accepted, and nothing more.
    pub fn pending(submission: &Submission, request_digest: String, now_ms: i64) -> Self {
        Self {
            execution_id: ExecutionId::mint(),
            agent: submission.agent.clone(),
            caller: String::new(),
            state: State::Pending,
            image: submission.manifest.image.clone(),
            workspace: submission.manifest.workspace.clone(),
            has_artifacts: !submission.manifest.artifacts.is_empty(),
            order_bytes: (to_json(&submission.manifest).len() + submission.input.len()) as u64,
            timeout_seconds: submission.manifest.timeout_seconds,
            demand: submission.demand.clone(),
            dependencies: submission.dependencies.clone(),
            labels: submission.labels.clone(),
            notify: submission.notify.clone(),
            node_id: None,
            attempt: 0,
            max_attempts: submission.max_attempts,
            lost_attempts: 0,
            retry: submission.retry.clone(),
            retries: 0,
            queued_at_ms: now_ms,
            sequence_base: 0,
            iteration: 0,
            exit_code: None,
            result: None,
            failure: None,
            artifacts: None,
            usage: None,
            cancel_reason: None,
            created_at_ms: now_ms,
            started_at_ms: None,
            ended_at_ms: None,
            last_sequence: 0,
            idempotency_key: submission.idempotency_key.clone(),
            request_digest,
        }
    }

    /// The assignment of this moment.
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }

    /// Notes that it may be placed.
    pub fn unblock(&mut self, unblocked: Unblocked) {
        self.dependencies = None;
        self.queued_at_ms = unblocked.queued_at_ms;
        self.workspace = unblocked.workspace.or(self.workspace.take());
    }

    pub fn life(&self) -> Life {
        Life {
            state: self.state,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            lost_attempts: self.lost_attempts,
            retries_left: self.retry.as_ref().map_or(0, |retry| retry.max.saturating_sub(self.retries)),
            is_cancelled: self.cancel_reason.is_some(),
        }
    }

    pub fn view(&self) -> ExecutionView {
        ExecutionView {
            execution_id: self.execution_id.clone(),
            agent: self.agent.clone(),
            state: self.state,
            image: self.image.clone(),
            labels: self.labels.clone(),
            node_id: self.node_id.clone(),
            attempt: self.attempt,
            retries: self.retries,
            iteration: self.iteration,
            exit_code: self.exit_code,
            result: self.result.clone(),
            failure: self.failure.clone(),
            artifacts: self.artifacts.clone(),
            usage: self.usage.clone(),
            waiting: None,
            created_at_ms: self.created_at_ms,
            started_at_ms: self.started_at_ms,
            ended_at_ms: self.ended_at_ms,
            last_sequence: self.last_sequence,
        }
    }
}

impl Store {
    pub async fn execution(&self, execution_id: &ExecutionId) -> Result<Option<ExecutionRecord>> {
        self.one_execution("execution_id", execution_id.as_str()).await
    }

    pub async fn execution_by_key(&self, idempotency_key: &str) -> Result<Option<ExecutionRecord>> {
        self.one_execution("idempotency_key", idempotency_key).await
    }

    async fn one_execution(&self, column: &'static str, key: &str) -> Result<Option<ExecutionRecord>> {
        let sql = format!("SELECT {RECORD} FROM executions WHERE {column} = $1");
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(key)
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        row.as_ref().map(execution).transpose()
    }

    /// Returns what an execution runs. The input of an ended one is not kept.
    pub async fn order_content(&self, execution_id: &ExecutionId) -> Result<Option<OrderContent>> {
        let sql = "SELECT manifest, input FROM executions WHERE execution_id = $1";
        let row = sqlx::query(sql).bind(execution_id.as_str()).fetch_optional(&self.read).await;
        let Some(row) = row.map_err(read_failed)? else { return Ok(None) };
        let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
        Ok(Some(OrderContent { manifest: from_json("manifest", &text("manifest")?)?, input: text("input")? }))
    }

    /// Executions that have not ended, oldest first. A lost one is among them: its node may return.
    pub async fn open_executions(&self) -> Result<Vec<ExecutionRecord>> {
        let sql = format!(
            "SELECT {RECORD} FROM executions WHERE state IN ('pending', 'assigned', 'starting', 'running', 'lost')
             ORDER BY created_at_ms, execution_id"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(execution).collect()
    }

    /// Returns what open executions occupy on the nodes that they are assigned to.
    pub async fn assignments(&self) -> Result<Vec<(ExecutionId, NodeId, Amounts)>> {
        let sql = "SELECT execution_id, node_id, demand FROM executions
             WHERE state IN ('assigned', 'starting', 'running', 'lost') AND node_id IS NOT NULL";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        let assigned = |row: &AnyRow| {
            let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
            let demand: Demand = from_json("demand", &text("demand")?)?;
            Ok((ExecutionId::parse(text("execution_id")?)?, NodeId::parse(text("node_id")?)?, demand.amounts))
        };
        rows.iter().map(assigned).collect()
    }

    /// What has ended, newest first.
    pub async fn ended_executions(&self) -> Result<Vec<Ended>> {
        let sql = "SELECT execution_id, ended_at_ms, events_bytes, artifacts FROM executions
             WHERE ended_at_ms IS NOT NULL AND state IN ('succeeded', 'failed', 'cancelled')
             ORDER BY ended_at_ms DESC";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        let ended = |row: &AnyRow| {
            let number = |column| row.try_get::<i64, _>(column).map_err(read_failed);
            Ok(Ended {
                execution_id: ExecutionId::parse(
                    row.try_get::<String, _>("execution_id").map_err(read_failed)?,
                )?,
                ended_at_ms: number("ended_at_ms")?,
                events_bytes: u64::try_from(number("events_bytes")?).unwrap_or(0),
                artifacts_bytes: artifacts(row)?.map_or(0, |artifacts| artifacts.bytes),
            })
        };
        rows.iter().map(ended).collect()
    }

    /// Returns the bytes of an execution's events that were stored.
    pub async fn event_bytes(&self, execution_id: &ExecutionId) -> Result<u64> {
        let sql = "SELECT events_bytes FROM executions WHERE execution_id = $1";
        let row = sqlx::query(sql).bind(execution_id.as_str()).fetch_optional(&self.read).await;
        let Some(row) = row.map_err(read_failed)? else { return Ok(0) };
        let bytes: i64 = row.try_get("events_bytes").map_err(read_failed)?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// The newest executions that a filter lets through, newest first.
    pub async fn recent_executions(
        &self,
        filter: &ExecutionFilter,
        limit: u32,
    ) -> Result<Vec<ExecutionRecord>> {
        let (conditions, texts) = conditions(filter);
        let sql = format!(
            "SELECT {RECORD} FROM executions {conditions} ORDER BY created_at_ms DESC, execution_id DESC LIMIT $1"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(i64::from(limit));
        for text in texts {
            query = query.bind(text);
        }
        let rows = query.fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(execution).collect()
    }

    /// Encoded events after a sequence number, in order.
    pub async fn execution_events(
        &self,
        execution_id: &ExecutionId,
        after_sequence: u64,
        limit: u32,
    ) -> Result<Vec<Vec<u8>>> {
        let sql = "SELECT event FROM execution_events WHERE execution_id = $1 AND sequence > $2
             ORDER BY sequence LIMIT $3";
        let rows = sqlx::query(sql)
            .bind(execution_id.as_str())
            .bind(i64::try_from(after_sequence).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&self.read)
            .await
            .map_err(read_failed)?;
        rows.iter().map(|row| row.try_get("event").map_err(read_failed)).collect()
    }
}

/// Returns a filter's WHERE clause, and the values of its parameters from `$2` on. `json_each` is SQLite's.
fn conditions(filter: &ExecutionFilter) -> (String, Vec<String>) {
    let (mut conditions, mut texts) = (Vec::new(), Vec::new());
    let mut parameter = |text: &str| {
        texts.push(text.to_owned());
        format!("${}", texts.len() + 1)
    };
    if !filter.states.is_empty() {
        // Names of a closed set.
        let names: Vec<_> = filter.states.iter().map(|state| format!("'{}'", state.name())).collect();
        conditions.push(format!("state IN ({})", names.join(", ")));
    }
    if let Some(node_id) = &filter.node_id {
        conditions.push(format!("node_id = {}", parameter(node_id.as_str())));
    }
    if let Some(agent) = &filter.agent {
        let agent = parameter(&agent.to_string());
        conditions.push(format!("(agent = {agent} OR agent LIKE {agent} || '@%')"));
    }
    for label in &filter.labels {
        let label = parameter(label.as_str());
        conditions.push(format!("EXISTS (SELECT 1 FROM json_each(labels) WHERE value = {label})"));
    }
    if let Some(before) = &filter.before {
        let before = parameter(before.as_str());
        conditions.push(format!(
            "(created_at_ms, execution_id) <
                 (SELECT created_at_ms, execution_id FROM executions WHERE execution_id = {before})"
        ));
    }
    let clause =
        if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    (clause, texts)
}

fn artifacts(row: &AnyRow) -> Result<Option<Artifacts>> {
    let json = row.try_get::<Option<String>, _>("artifacts").map_err(read_failed)?;
    json.map(|json| from_json("artifacts", &json)).transpose()
}

fn execution(row: &AnyRow) -> Result<ExecutionRecord> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    let maybe = |column| row.try_get::<Option<String>, _>(column).map_err(read_failed);
    let number = |column| row.try_get::<i64, _>(column).map_err(read_failed);
    let time = |column| row.try_get::<Option<i64>, _>(column).map_err(read_failed);
    let state = text("state")?;
    Ok(ExecutionRecord {
        execution_id: ExecutionId::parse(text("execution_id")?)?,
        caller: text("caller")?,
        agent: maybe("agent")?.map(|text| text.parse()).transpose()?,
        state: State::from_name(&state).ok_or_else(|| unreadable("execution state", &state))?,
        image: text("image")?,
        workspace: maybe("workspace")?.map(|json| from_json("workspace", &json)).transpose()?,
        has_artifacts: number("has_artifacts")? != 0,
        order_bytes: u64::try_from(number("order_bytes")?).unwrap_or(0),
        timeout_seconds: u64::try_from(number("timeout_seconds")?).unwrap_or(0),
        demand: from_json("demand", &text("demand")?)?,
        dependencies: maybe("dependencies")?.map(|json| from_json("dependencies", &json)).transpose()?,
        labels: from_json("list of labels", &text("labels")?)?,
        notify: from_json("list of hooks", &text("notify")?)?,
        node_id: maybe("node_id")?.map(NodeId::parse).transpose()?,
        attempt: u32::try_from(number("attempt")?).map_err(|e| unreadable("attempt", e))?,
        max_attempts: u32::try_from(number("max_attempts")?).map_err(|e| unreadable("max_attempts", e))?,
        lost_attempts: u32::try_from(number("lost_attempts")?).map_err(|e| unreadable("lost_attempts", e))?,
        retry: maybe("retry")?.map(|json| from_json("retry policy", &json)).transpose()?,
        retries: u32::try_from(number("retries")?).map_err(|e| unreadable("retries", e))?,
        queued_at_ms: number("queued_at_ms")?,
        sequence_base: u64::try_from(number("sequence_base")?).map_err(|e| unreadable("sequence", e))?,
        iteration: u32::try_from(number("iteration")?).map_err(|e| unreadable("iteration", e))?,
        result: maybe("result")?,
        exit_code: time("exit_code")?.and_then(|code| i32::try_from(code).ok()),
        failure: maybe("failure")?.map(|json| from_json("failure", &json)).transpose()?,
        artifacts: artifacts(row)?,
        usage: maybe("usage")?.map(|json| from_json("usage", &json)).transpose()?,
        cancel_reason: maybe("cancel_reason")?,
        created_at_ms: number("created_at_ms")?,
        started_at_ms: time("started_at_ms")?,
        ended_at_ms: time("ended_at_ms")?,
        last_sequence: u64::try_from(number("last_sequence")?).map_err(|e| unreadable("sequence", e))?,
        idempotency_key: maybe("idempotency_key")?,
        request_digest: text("request_digest")?,
    })
}
