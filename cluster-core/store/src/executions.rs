//! Stored executions and their events.

use aegis_types::{
    error::Result,
    execution::{
        artifacts::Artifacts,
        filter::ExecutionFilter,
        lifecycle::State,
        manifest::PlacementRequest,
        record::{Ended, ExecutionRecord, OrderContent},
    },
    ids::{ExecutionId, NodeId},
    resources::Amounts,
};
use sqlx::{AssertSqlSafe, Row as _, any::AnyRow};

use super::{Store, from_json, read_failed, unreadable};

/// All columns except the manifest and the input, which may have megabytes.
const RECORD: &str = "execution_id, agent, state, image, workspace, has_artifacts, order_bytes, timeout_seconds, demand, dependencies, node_id, attempt,
     retry, retries, queued_at_ms, max_attempts, lost_attempts, sequence_base, iteration, result, exit_code, failure, artifacts, cancel_reason,
     created_at_ms, started_at_ms, ended_at_ms, last_sequence, idempotency_key, request_digest, labels, caller, usage,
     notify";

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

    /// Returns the order of an execution. The input of an ended execution is not kept.
    pub async fn order_content(&self, execution_id: &ExecutionId) -> Result<Option<OrderContent>> {
        let sql = "SELECT manifest, input FROM executions WHERE execution_id = $1";
        let row = sqlx::query(sql).bind(execution_id.as_str()).fetch_optional(&self.read).await;
        let Some(row) = row.map_err(read_failed)? else { return Ok(None) };
        let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
        Ok(Some(OrderContent { manifest: from_json("manifest", &text("manifest")?)?, input: text("input")? }))
    }

    /// Returns executions that have not ended, oldest first. Lost executions are included, since their node may return.
    pub async fn open_executions(&self) -> Result<Vec<ExecutionRecord>> {
        let sql = format!(
            "SELECT {RECORD} FROM executions WHERE state IN ('pending', 'assigned', 'starting', 'running', 'lost')
             ORDER BY created_at_ms, execution_id"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(execution).collect()
    }

    /// Returns the resources that open executions occupy on their assigned nodes.
    pub async fn assignments(&self) -> Result<Vec<(ExecutionId, NodeId, Amounts)>> {
        let sql = "SELECT execution_id, node_id, demand FROM executions
             WHERE state IN ('assigned', 'starting', 'running', 'lost') AND node_id IS NOT NULL";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        let assigned = |row: &AnyRow| {
            let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
            let demand: PlacementRequest = from_json("demand", &text("demand")?)?;
            Ok((ExecutionId::parse(text("execution_id")?)?, NodeId::parse(text("node_id")?)?, demand.amounts))
        };
        rows.iter().map(assigned).collect()
    }

    /// Returns ended executions, newest first.
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

    /// Returns the stored bytes of an execution's events.
    pub async fn event_bytes(&self, execution_id: &ExecutionId) -> Result<u64> {
        let sql = "SELECT events_bytes FROM executions WHERE execution_id = $1";
        let row = sqlx::query(sql).bind(execution_id.as_str()).fetch_optional(&self.read).await;
        let Some(row) = row.map_err(read_failed)? else { return Ok(0) };
        let bytes: i64 = row.try_get("events_bytes").map_err(read_failed)?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// Returns the newest executions that match a filter, newest first.
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

    /// Returns encoded events after a sequence number, in order.
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

/// Returns a filter's WHERE clause, and its parameters from `$2` on. `json_each` is specific to SQLite.
fn conditions(filter: &ExecutionFilter) -> (String, Vec<String>) {
    let (mut conditions, mut texts) = (Vec::new(), Vec::new());
    let mut parameter = |text: &str| {
        texts.push(text.to_owned());
        format!("${}", texts.len() + 1)
    };
    if !filter.states.is_empty() {
        // Names of a closed set, so no escaping is needed.
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
