//! Writes of executions.

use std::sync::LazyLock;

use aegis_types::{
    execution::{
        artifacts::Artifacts,
        lifecycle::State,
        record::{ExecutionRecord, NewExecution, Unblocked},
    },
    ids::{ExecutionId, NodeId},
};
use sqlx::{Any, Transaction};

use super::{Delivery, deliveries, insertion::Insertion, to_json};
use crate::changed::{Changed, Query, done, signed};

static EVENTS: LazyLock<Insertion> = LazyLock::new(|| {
    Insertion::new("execution_events", &["execution_id", "sequence", "event"], 32, "ON CONFLICT DO NOTHING")
});

#[derive(Debug, Clone)]
pub enum ExecutionWrite {
    /// Creates an execution, unless its id or idempotency key is known.
    Create(Box<NewExecution>),
    /// Assigns a waiting execution, or one whose node did not accept it. Cancelled executions are not assigned.
    Assign {
        execution_id: ExecutionId,
        node_id: NodeId,
        attempt: u32,
    },
    /// Stores that an execution with finished dependencies may be placed.
    Unblock {
        execution_id: ExecutionId,
        unblocked: Unblocked,
    },
    RequestCancel {
        execution_id: ExecutionId,
        reason: String,
    },
    /// Stores events and their effects on the execution, in one step. Events of another attempt than the current one
    /// change nothing.
    Record {
        record: Box<ExecutionRecord>,
        events: Vec<(u64, Vec<u8>)>,
    },
    /// Stores that a hook was notified, or when it is retried.
    SettleDelivery {
        delivery: Delivery,
        due_ms: Option<i64>,
    },
    PruneDeliveries {
        before_ms: i64,
    },
    /// Deletes the events of ended executions.
    DropEvents(Vec<ExecutionId>),
    /// Stores that artifacts of ended executions are no longer kept, with the reason.
    DropArtifacts {
        execution_ids: Vec<ExecutionId>,
        artifacts: Artifacts,
    },
    /// Deletes ended executions completely.
    Forget(Vec<ExecutionId>),
}

impl ExecutionWrite {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Changed {
        match self {
            Self::Create(new) => create(new, to).await,
            Self::Assign { execution_id, node_id, attempt } => {
                let sql = "UPDATE executions SET state = $1, node_id = $2, attempt = $3
                     WHERE execution_id = $4 AND attempt < $3 AND state IN ($1, $5)
                     AND cancel_reason IS NULL";
                let query = sqlx::query(sql)
                    .bind(State::Assigned.name())
                    .bind(node_id.as_str())
                    .bind(i64::from(*attempt))
                    .bind(execution_id.as_str())
                    .bind(State::Pending.name());
                done(query, to).await
            }
            Self::Unblock { execution_id, unblocked } => unblock(execution_id, unblocked, to).await,
            Self::RequestCancel { execution_id, reason } => {
                let sql = "UPDATE executions SET cancel_reason = $1
                     WHERE execution_id = $2 AND cancel_reason IS NULL";
                done(sqlx::query(sql).bind(reason).bind(execution_id.as_str()), to).await
            }
            Self::Record { record, events } => record_events(record, events, to).await,
            Self::SettleDelivery { delivery, due_ms } => deliveries::settle(delivery, *due_ms, to).await,
            Self::PruneDeliveries { before_ms } => {
                let sql = "DELETE FROM hook_deliveries WHERE created_at_ms < $1";
                done(sqlx::query(sql).bind(*before_ms), to).await
            }
            Self::DropEvents(ids) => {
                for id in ids {
                    drop_events(id, to).await?;
                    let sql = "UPDATE executions SET events_bytes = 0 WHERE execution_id = $1";
                    done(sqlx::query(sql).bind(id.as_str()), to).await?;
                }
                Ok(ids.len() as u64)
            }
            Self::DropArtifacts { execution_ids, artifacts } => {
                for id in execution_ids {
                    let sql = "UPDATE executions SET artifacts = $1 WHERE execution_id = $2 AND ended_at_ms IS NOT NULL";
                    done(sqlx::query(sql).bind(to_json(artifacts)).bind(id.as_str()), to).await?;
                }
                Ok(execution_ids.len() as u64)
            }
            Self::Forget(ids) => {
                for id in ids {
                    drop_events(id, to).await?;
                    let sql = "DELETE FROM executions WHERE execution_id = $1 AND ended_at_ms IS NOT NULL";
                    done(sqlx::query(sql).bind(id.as_str()), to).await?;
                }
                Ok(ids.len() as u64)
            }
        }
    }
}

async fn create(new: &NewExecution, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "INSERT INTO executions (execution_id, state, manifest, demand, input, attempt, created_at_ms,
             last_sequence, idempotency_key, request_digest, max_attempts, agent, image, workspace, has_artifacts,
             order_bytes, timeout_seconds, labels, retry, queued_at_ms, dependencies, caller, notify)
         VALUES ($1, $2, $3, $4, $5, 0, $6, 0, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
         ON CONFLICT DO NOTHING";
    let NewExecution { record, content } = new;
    let query = sqlx::query(sql)
        .bind(record.execution_id.as_str())
        .bind(record.state.name())
        .bind(to_json(&content.manifest))
        .bind(to_json(&record.demand))
        .bind(&content.input)
        .bind(record.created_at_ms)
        .bind(record.idempotency_key.clone())
        .bind(&record.request_digest)
        .bind(i64::from(record.max_attempts))
        .bind(record.agent.as_ref().map(ToString::to_string))
        .bind(&record.image)
        .bind(record.workspace.as_ref().map(to_json))
        .bind(i64::from(record.has_artifacts))
        .bind(signed(record.order_bytes))
        .bind(signed(record.timeout_seconds))
        .bind(to_json(&record.labels))
        .bind(record.retry.as_ref().map(to_json))
        .bind(record.queued_at_ms)
        .bind(record.dependencies.as_ref().map(to_json))
        .bind(&record.caller)
        .bind(to_json(&record.notify));
    done(query, to).await
}

/// Stores the workspace in the manifest too. `json_set` is specific to SQLite.
async fn unblock(id: &ExecutionId, unblocked: &Unblocked, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "UPDATE executions SET dependencies = NULL, queued_at_ms = $1 WHERE execution_id = $2";
    let changed = done(sqlx::query(sql).bind(unblocked.queued_at_ms).bind(id.as_str()), to).await?;
    if let Some(workspace) = &unblocked.workspace {
        let sql =
            "UPDATE executions SET workspace = $1, manifest = json_set(manifest, '$.workspace', json($1))
             WHERE execution_id = $2";
        done(sqlx::query(sql).bind(to_json(workspace)).bind(id.as_str()), to).await?;
    }
    Ok(changed)
}

async fn record_events(
    record: &ExecutionRecord,
    events: &[(u64, Vec<u8>)],
    to: &mut Transaction<'_, Any>,
) -> Changed {
    let bytes = events.iter().map(|(_, event)| event.len() as u64).sum::<u64>();
    let sql = "UPDATE executions SET state = $1, exit_code = $2, failure = $3, started_at_ms = $4,
             ended_at_ms = $5, last_sequence = $6, node_id = $7, iteration = $8, result = $9,
             lost_attempts = $10, sequence_base = $11, events_bytes = events_bytes + $12, artifacts = $13,
             max_attempts = $14, retries = $17, queued_at_ms = $18, usage = $19,
             input = CASE WHEN $1 IN ('succeeded', 'failed', 'cancelled') THEN '' ELSE input END
         WHERE execution_id = $15 AND attempt = $16";
    let query = sqlx::query(sql)
        .bind(record.state.name())
        .bind(record.exit_code.map(i64::from))
        .bind(record.failure.as_ref().map(to_json))
        .bind(record.started_at_ms)
        .bind(record.ended_at_ms)
        .bind(signed(record.last_sequence))
        .bind(record.node_id.as_ref().map(|node_id| node_id.as_str().to_owned()))
        .bind(i64::from(record.iteration))
        .bind(record.result.clone())
        .bind(i64::from(record.lost_attempts))
        .bind(signed(record.sequence_base))
        .bind(signed(bytes))
        .bind(record.artifacts.as_ref().map(to_json))
        .bind(i64::from(record.max_attempts))
        .bind(record.execution_id.as_str())
        .bind(i64::from(record.attempt))
        .bind(i64::from(record.retries))
        .bind(record.queued_at_ms)
        .bind(record.usage.as_ref().map(to_json));
    let changed = done(query, to).await?;
    if changed > 0 {
        deliveries::insert(record, to).await?;
        let bind = |query: Query<'static>, (sequence, event): &(u64, Vec<u8>)| {
            query.bind(record.execution_id.as_str().to_owned()).bind(signed(*sequence)).bind(event.clone())
        };
        EVENTS.run(events, bind, to).await?;
    }
    Ok(changed)
}

async fn drop_events(id: &ExecutionId, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "DELETE FROM execution_events WHERE execution_id = $1";
    done(sqlx::query(sql).bind(id.as_str()), to).await
}
