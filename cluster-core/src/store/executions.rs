//! Executions and their events, as they are stored.

use sqlx::{Row as _, any::AnyRow};

use super::{Store, from_json, read_failed, unreadable};
use crate::{
    agents::AgentReference,
    cluster::peer::Amounts,
    error::{Failure, Result},
    execution::{
        artifacts::Artifacts,
        lifecycle::{Life, State},
        manifest::{Demand, Manifest},
        order::Attempt,
        request::Submission,
        retention::Ended,
        view::ExecutionView,
    },
    ids::{ExecutionId, NodeId},
};

/// An execution as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionRecord {
    pub execution_id: ExecutionId,
    /// The registered one that it runs, in the version that it was resolved to.
    pub agent: Option<AgentReference>,
    pub state: State,
    pub manifest: Manifest,
    pub demand: Demand,
    pub input: String,
    pub node_id: Option<NodeId>,
    pub attempt: u32,
    /// Attempts that may have run in all, and those that were given up because their node was lost.
    pub max_attempts: u32,
    pub lost_attempts: u32,
    /// What the numbers of this attempt's events come after: its node counts from 1.
    pub sequence_base: u64,
    pub iteration: u32,
    pub exit_code: Option<i32>,
    pub result: Option<String>,
    pub failure: Option<Failure>,
    /// What was kept of it, once it has ended.
    pub artifacts: Option<Artifacts>,
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
    pub fn pending(submission: Submission, request_digest: String, now_ms: i64) -> Self {
        Self {
            execution_id: ExecutionId::mint(),
            agent: submission.agent,
            state: State::Pending,
            manifest: submission.manifest,
            demand: submission.demand,
            input: submission.input,
            node_id: None,
            attempt: 0,
            max_attempts: submission.max_attempts,
            lost_attempts: 0,
            sequence_base: 0,
            iteration: 0,
            exit_code: None,
            result: None,
            failure: None,
            artifacts: None,
            cancel_reason: None,
            created_at_ms: now_ms,
            started_at_ms: None,
            ended_at_ms: None,
            last_sequence: 0,
            idempotency_key: submission.idempotency_key,
            request_digest,
        }
    }

    /// The assignment of this moment.
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }

    pub fn life(&self) -> Life {
        Life {
            state: self.state,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            lost_attempts: self.lost_attempts,
            is_cancelled: self.cancel_reason.is_some(),
        }
    }

    pub fn view(&self) -> ExecutionView {
        ExecutionView {
            execution_id: self.execution_id.clone(),
            agent: self.agent.clone(),
            state: self.state,
            image: self.manifest.image.clone(),
            node_id: self.node_id.clone(),
            attempt: self.attempt,
            iteration: self.iteration,
            exit_code: self.exit_code,
            result: self.result.clone(),
            failure: self.failure.clone(),
            artifacts: self.artifacts.clone(),
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
        self.one_execution("SELECT * FROM executions WHERE execution_id = $1", execution_id.as_str()).await
    }

    pub async fn execution_by_key(&self, idempotency_key: &str) -> Result<Option<ExecutionRecord>> {
        self.one_execution("SELECT * FROM executions WHERE idempotency_key = $1", idempotency_key).await
    }

    async fn one_execution(&self, sql: &'static str, key: &str) -> Result<Option<ExecutionRecord>> {
        let row = sqlx::query(sql).bind(key).fetch_optional(&self.read).await.map_err(read_failed)?;
        row.as_ref().map(execution).transpose()
    }

    /// Executions that have not ended, oldest first. A lost one is among them: its node may return.
    pub async fn open_executions(&self) -> Result<Vec<ExecutionRecord>> {
        let sql = "SELECT * FROM executions
             WHERE state IN ('pending', 'assigned', 'starting', 'running', 'lost')
             ORDER BY created_at_ms, execution_id";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
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
        let sql = "SELECT execution_id, ended_at_ms, events_bytes FROM executions
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
            })
        };
        rows.iter().map(ended).collect()
    }

    /// The newest executions, newest first.
    pub async fn recent_executions(&self, limit: u32) -> Result<Vec<ExecutionRecord>> {
        let sql = "SELECT * FROM executions ORDER BY created_at_ms DESC, execution_id DESC LIMIT $1";
        let rows =
            sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.read).await.map_err(read_failed)?;
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

fn execution(row: &AnyRow) -> Result<ExecutionRecord> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    let maybe = |column| row.try_get::<Option<String>, _>(column).map_err(read_failed);
    let number = |column| row.try_get::<i64, _>(column).map_err(read_failed);
    let time = |column| row.try_get::<Option<i64>, _>(column).map_err(read_failed);
    let state = text("state")?;
    Ok(ExecutionRecord {
        execution_id: ExecutionId::parse(text("execution_id")?)?,
        agent: maybe("agent")?.map(|text| text.parse()).transpose()?,
        state: State::from_name(&state).ok_or_else(|| unreadable("execution state", &state))?,
        manifest: from_json("manifest", &text("manifest")?)?,
        demand: from_json("demand", &text("demand")?)?,
        input: text("input")?,
        node_id: maybe("node_id")?.map(NodeId::parse).transpose()?,
        attempt: u32::try_from(number("attempt")?).map_err(|e| unreadable("attempt", e))?,
        max_attempts: u32::try_from(number("max_attempts")?).map_err(|e| unreadable("max_attempts", e))?,
        lost_attempts: u32::try_from(number("lost_attempts")?).map_err(|e| unreadable("lost_attempts", e))?,
        sequence_base: u64::try_from(number("sequence_base")?).map_err(|e| unreadable("sequence", e))?,
        iteration: u32::try_from(number("iteration")?).map_err(|e| unreadable("iteration", e))?,
        result: maybe("result")?,
        exit_code: time("exit_code")?.and_then(|code| i32::try_from(code).ok()),
        failure: maybe("failure")?.map(|json| from_json("failure", &json)).transpose()?,
        artifacts: maybe("artifacts")?.map(|json| from_json("artifacts", &json)).transpose()?,
        cancel_reason: maybe("cancel_reason")?,
        created_at_ms: number("created_at_ms")?,
        started_at_ms: time("started_at_ms")?,
        ended_at_ms: time("ended_at_ms")?,
        last_sequence: u64::try_from(number("last_sequence")?).map_err(|e| unreadable("sequence", e))?,
        idempotency_key: maybe("idempotency_key")?,
        request_digest: text("request_digest")?,
    })
}
