//! All write commands. Each is atomic, and the number of changed rows shows whether its condition held.

use aegis_config::layers::Scope;
use aegis_types::{
    ids::{CommandId, EnrolmentTokenId, NodeId},
    node::{Desired, NodeRecord, Observed, OnDeadline},
    text::to_name,
};
use sqlx::{Any, Transaction};

use super::{
    AccessWrite, AgentWrite, AuditWrite, ConfigWrite, DeploymentRow, ExecutionWrite, HostRow, RolloutRow,
    SecretWrite, TokenRecord, to_json,
};
use crate::changed::{Changed, done};

/// A typed write.
#[derive(Debug, Clone)]
pub enum Write {
    /// Runs several writes atomically: the changes of one decision.
    Together(Vec<Write>),
    SetMeta {
        name: &'static str,
        value: String,
    },

    /// Stores the complete record of a node, new or not.
    PutNode(Box<NodeRecord>),
    SetDesired {
        node_id: NodeId,
        desired: Desired,
        deadline_ms: Option<i64>,
        on_deadline: OnDeadline,
    },
    /// Unpins the key, and deletes the node's open commands and its bound tokens.
    RemoveNode {
        node_id: NodeId,
        now_ms: i64,
    },
    SetObserved {
        node_id: NodeId,
        observed: Observed,
        last_heartbeat_ms: Option<i64>,
    },

    CreateToken(TokenRecord),
    /// Spends an open, unexpired token and pins the key, or does neither.
    SpendToken {
        token_id: EnrolmentTokenId,
        node: Box<NodeRecord>,
        now_ms: i64,
    },

    /// Deletes tokens that expired before this time.
    PruneTokens {
        before_ms: i64,
    },

    /// Revokes an open token.
    RevokeToken {
        token_id: EnrolmentTokenId,
        now_ms: i64,
    },

    QueueCommand {
        command_id: CommandId,
        node_id: NodeId,
        body: String,
        now_ms: i64,
    },
    /// Deletes acknowledged commands, only those of the node itself.
    AcknowledgeCommands {
        node_id: NodeId,
        command_ids: Vec<CommandId>,
    },

    Execution(ExecutionWrite),
    Config(Box<ConfigWrite>),
    Secret(SecretWrite),
    Agent(Box<AgentWrite>),
    Access(AccessWrite),
    Audit(AuditWrite),

    PutDeployment(Box<DeploymentRow>),
    PutRollout(Box<RolloutRow>),
    PutHost(HostRow),
    ForgetHost {
        host: String,
        port: u16,
    },
}

impl Write {
    pub(super) async fn run(&self, to: &mut Transaction<'_, Any>) -> Changed {
        match self {
            Write::Together(writes) => {
                let mut changed = 0;
                for write in writes {
                    changed += Box::pin(write.run(to)).await?;
                }
                Ok(changed)
            }
            Write::SetMeta { name, value } => {
                let sql = "INSERT INTO meta (name, value) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value";
                done(sqlx::query(sql).bind(*name).bind(value), to).await
            }
            Write::PutNode(node) => put_node(node, to).await,
            Write::SetDesired { node_id, desired, deadline_ms, on_deadline } => {
                let sql = "UPDATE nodes SET desired = $1, drain_deadline_ms = $2, drain_on_deadline = $3
                     WHERE node_id = $4";
                let query = sqlx::query(sql)
                    .bind(to_name(desired))
                    .bind(*deadline_ms)
                    .bind(to_name(on_deadline))
                    .bind(node_id.as_str());
                done(query, to).await
            }
            Write::RemoveNode { node_id, now_ms } => remove_node(node_id, *now_ms, to).await,
            Write::SetObserved { node_id, observed, last_heartbeat_ms } => {
                let sql = "UPDATE nodes SET observed = $1,
                     last_heartbeat_ms = COALESCE($2, last_heartbeat_ms) WHERE node_id = $3";
                let query =
                    sqlx::query(sql).bind(to_name(observed)).bind(*last_heartbeat_ms).bind(node_id.as_str());
                done(query, to).await
            }
            Write::CreateToken(token) => create_token(token, to).await,
            Write::SpendToken { token_id, node, now_ms } => {
                let sql = "UPDATE enrolment_tokens SET spent_at_ms = $1, spent_by = $2
                     WHERE token_id = $3 AND spent_at_ms IS NULL AND revoked_at_ms IS NULL
                     AND expires_at_ms > $1
                     AND (node_id IS NULL OR node_id = $2)";
                let query =
                    sqlx::query(sql).bind(*now_ms).bind(node.node_id.as_str()).bind(token_id.as_str());
                match done(query, to).await? {
                    0 => Ok(0),
                    _ => put_node(node, to).await,
                }
            }
            Write::PruneTokens { before_ms } => {
                let sql = "DELETE FROM enrolment_tokens WHERE expires_at_ms < $1";
                done(sqlx::query(sql).bind(*before_ms), to).await
            }
            Write::RevokeToken { token_id, now_ms } => {
                let sql = "UPDATE enrolment_tokens SET revoked_at_ms = $1
                     WHERE token_id = $2 AND spent_at_ms IS NULL AND revoked_at_ms IS NULL";
                done(sqlx::query(sql).bind(*now_ms).bind(token_id.as_str()), to).await
            }
            Write::QueueCommand { command_id, node_id, body, now_ms } => {
                let sql = "INSERT INTO commands (command_id, node_id, body, created_at_ms)
                     VALUES ($1, $2, $3, $4)";
                let query = sqlx::query(sql)
                    .bind(command_id.as_str())
                    .bind(node_id.as_str())
                    .bind(body)
                    .bind(*now_ms);
                done(query, to).await
            }
            Write::AcknowledgeCommands { node_id, command_ids } => {
                let mut changed = 0;
                for command_id in command_ids {
                    let sql = "DELETE FROM commands WHERE command_id = $1 AND node_id = $2";
                    let query = sqlx::query(sql).bind(command_id.as_str()).bind(node_id.as_str());
                    changed += done(query, to).await?;
                }
                Ok(changed)
            }
            Write::Execution(write) => write.run(to).await,
            Write::Config(write) => write.run(to).await,
            Write::Secret(write) => write.run(to).await,
            Write::Agent(write) => write.run(to).await,
            Write::Access(write) => write.run(to).await,
            Write::Audit(write) => write.run(to).await,
            Write::PutDeployment(row) => put_deployment(row, to).await,
            Write::PutRollout(row) => {
                let sql = "INSERT INTO rollouts (rollout_id, state, record, created_at_ms, idempotency_key)
                     VALUES ($1, $2, $3, $4, $5)
                     ON CONFLICT (rollout_id) DO UPDATE SET state = excluded.state, record = excluded.record";
                let query = sqlx::query(sql)
                    .bind(row.rollout_id.as_str())
                    .bind(&row.state)
                    .bind(&row.record)
                    .bind(row.created_at_ms)
                    .bind(row.idempotency_key.clone());
                done(query, to).await
            }
            Write::PutHost(row) => {
                let sql = "INSERT INTO approved_hosts (host, port, record) VALUES ($1, $2, $3)
                     ON CONFLICT (host, port) DO UPDATE SET record = excluded.record";
                let query = sqlx::query(sql).bind(&row.host).bind(i64::from(row.port)).bind(&row.record);
                done(query, to).await
            }
            Write::ForgetHost { host, port } => {
                let sql = "DELETE FROM approved_hosts WHERE host = $1 AND port = $2";
                done(sqlx::query(sql).bind(host).bind(i64::from(*port)), to).await
            }
        }
    }
}

async fn put_node(node: &NodeRecord, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "INSERT INTO nodes (node_id, role, public_key, desired, observed, capabilities, address, link,
             site, version, sealed, registered_at_ms, last_heartbeat_ms, drain_deadline_ms, drain_on_deadline,
             bound_tags, bound_size)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
         ON CONFLICT (node_id) DO UPDATE SET role = excluded.role, public_key = excluded.public_key,
             desired = excluded.desired, observed = excluded.observed, capabilities = excluded.capabilities,
             address = excluded.address, link = excluded.link, site = excluded.site,
             version = excluded.version, sealed = excluded.sealed,
             registered_at_ms = excluded.registered_at_ms, last_heartbeat_ms = excluded.last_heartbeat_ms,
             drain_deadline_ms = excluded.drain_deadline_ms, drain_on_deadline = excluded.drain_on_deadline,
             bound_tags = excluded.bound_tags, bound_size = excluded.bound_size";
    let query = sqlx::query(sql)
        .bind(node.node_id.as_str())
        .bind(to_name(&node.role))
        .bind(node.public_key.map(|key| key.to_vec()))
        .bind(to_name(&node.desired))
        .bind(to_name(&node.observed))
        .bind(to_json(&node.capabilities))
        .bind(&node.address)
        .bind(to_name(&node.link))
        .bind(node.site.as_ref().map(to_json))
        .bind(&node.version)
        .bind(i64::from(node.sealed))
        .bind(node.registered_at_ms)
        .bind(node.last_heartbeat_ms)
        .bind(node.drain_deadline_ms)
        .bind(to_name(&node.on_deadline))
        .bind(node.bound_tags.as_ref().map(to_json))
        .bind(node.bound_size.as_ref().map(to_json));
    done(query, to).await
}

async fn remove_node(node_id: &NodeId, now_ms: i64, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "INSERT INTO revoked_keys (public_key, node_id, revoked_at_ms)
         SELECT public_key, node_id, $1 FROM nodes WHERE node_id = $2 AND public_key IS NOT NULL
         ON CONFLICT (public_key) DO NOTHING";
    done(sqlx::query(sql).bind(now_ms).bind(node_id.as_str()), to).await?;
    let sql = "UPDATE nodes SET desired = $1, observed = $2, public_key = NULL, site = NULL,
         drain_deadline_ms = NULL WHERE node_id = $3";
    let query = sqlx::query(sql)
        .bind(to_name(&Desired::Removed))
        .bind(to_name(&Observed::Offline))
        .bind(node_id.as_str());
    let removed = done(query, to).await?;
    // The next node of this name is another machine: it must not inherit commands, tenant or layer.
    for sql in ["DELETE FROM commands WHERE node_id = $1", "DELETE FROM node_assignments WHERE node_id = $1"]
    {
        done(sqlx::query(sql).bind(node_id.as_str()), to).await?;
    }
    let scope = Scope::Node(node_id.clone()).to_string();
    done(sqlx::query("DELETE FROM config_layers WHERE scope = $1").bind(scope), to).await?;
    let sql = "UPDATE enrolment_tokens SET revoked_at_ms = $1
         WHERE node_id = $2 AND spent_at_ms IS NULL AND revoked_at_ms IS NULL";
    done(sqlx::query(sql).bind(now_ms).bind(node_id.as_str()), to).await?;
    Ok(removed)
}

async fn create_token(token: &TokenRecord, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "INSERT INTO enrolment_tokens (token_id, secret_hash, node_id, role, created_at_ms,
             expires_at_ms, tags)
         VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let query = sqlx::query(sql)
        .bind(token.token_id.as_str())
        .bind(token.secret_hash.to_vec())
        .bind(token.node_id.as_ref().map(|id| id.as_str().to_owned()))
        .bind(to_name(&token.role))
        .bind(token.created_at_ms)
        .bind(token.expires_at_ms)
        .bind(token.tags.as_ref().map(to_json));
    done(query, to).await
}

async fn put_deployment(row: &DeploymentRow, to: &mut Transaction<'_, Any>) -> Changed {
    let sql = "INSERT INTO deployments (deployment_id, host, state, record, created_at_ms, idempotency_key)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (deployment_id) DO UPDATE SET state = excluded.state, record = excluded.record";
    let query = sqlx::query(sql)
        .bind(row.deployment_id.as_str())
        .bind(&row.host)
        .bind(&row.state)
        .bind(&row.record)
        .bind(row.created_at_ms)
        .bind(row.idempotency_key.clone());
    done(query, to).await
}
