//! Stored nodes, enrolment tokens and commands.

use aegis_types::{
    error::Result,
    ids::{CommandId, EnrolmentTokenId, NodeId, Tag},
    node::{NodeRecord, Role},
};
use sqlx::{Row as _, any::AnyRow};

use super::{Store, from_json, from_name, read_failed, unreadable};

/// Stored enrolment token, without the secret itself.
#[derive(Debug, Clone)]
pub struct TokenRecord {
    pub token_id: EnrolmentTokenId,
    /// SHA-256.
    pub secret_hash: [u8; 32],
    pub node_id: Option<NodeId>,
    /// Role that the token admits.
    pub role: Role,
    /// Tags that the node may claim; `None` if it may claim any.
    pub tags: Option<Vec<Tag>>,
    pub created_at_ms: i64,
    pub expires_at_ms: i64,
    pub spent: Option<Spent>,
    pub revoked: bool,
}

/// User of a token, and the time of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    pub by: NodeId,
    pub at_ms: i64,
}

impl Store {
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>> {
        let rows = sqlx::query("SELECT * FROM nodes ORDER BY node_id")
            .fetch_all(&self.read)
            .await
            .map_err(read_failed)?;
        rows.iter().map(node).collect()
    }

    /// Returns the keys of removed nodes, each with its node's id, oldest first.
    pub async fn revoked_keys(&self) -> Result<Vec<(NodeId, [u8; 32])>> {
        let sql = "SELECT node_id, public_key FROM revoked_keys ORDER BY revoked_at_ms, public_key";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter()
            .map(|row| {
                let node_id = row.try_get::<String, _>("node_id").map_err(read_failed)?;
                let key = row.try_get::<Vec<u8>, _>("public_key").map_err(read_failed)?;
                Ok((NodeId::parse(node_id)?, bytes32(key)?))
            })
            .collect()
    }

    pub async fn token(&self, token_id: &EnrolmentTokenId) -> Result<Option<TokenRecord>> {
        let row = sqlx::query("SELECT * FROM enrolment_tokens WHERE token_id = $1")
            .bind(token_id.as_str())
            .fetch_optional(&self.read)
            .await
            .map_err(read_failed)?;
        row.as_ref().map(token).transpose()
    }

    /// Returns at most `limit` tokens, newest first.
    pub async fn tokens(&self, limit: u32) -> Result<Vec<TokenRecord>> {
        let sql = "SELECT * FROM enrolment_tokens ORDER BY created_at_ms DESC, token_id LIMIT $1";
        let rows =
            sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter().map(token).collect()
    }

    /// Returns commands that no heartbeat has acknowledged yet, oldest first, with their bodies.
    pub async fn open_commands(&self) -> Result<Vec<(NodeId, CommandId, String)>> {
        let sql = "SELECT command_id, node_id, body FROM commands WHERE acknowledged_ms IS NULL
             ORDER BY created_at_ms, command_id";
        let rows = sqlx::query(sql).fetch_all(&self.read).await.map_err(read_failed)?;
        rows.iter()
            .map(|row| {
                let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
                Ok((NodeId::parse(text("node_id")?)?, CommandId::parse(text("command_id")?)?, text("body")?))
            })
            .collect()
    }
}

fn node(row: &AnyRow) -> Result<NodeRecord> {
    let text = |column| row.try_get::<String, _>(column).map_err(read_failed);
    let time = |column| row.try_get::<Option<i64>, _>(column).map_err(read_failed);
    let key = row.try_get::<Option<Vec<u8>>, _>("public_key").map_err(read_failed)?;
    let site = row.try_get::<Option<String>, _>("site").map_err(read_failed)?;
    let bound_size = row.try_get::<Option<String>, _>("bound_size").map_err(read_failed)?;
    Ok(NodeRecord {
        node_id: NodeId::parse(text("node_id")?)?,
        role: from_name("role", text("role")?)?,
        public_key: key.map(bytes32).transpose()?,
        desired: from_name("desired state", text("desired")?)?,
        observed: from_name("observed state", text("observed")?)?,
        capabilities: from_json("capabilities", &text("capabilities")?)?,
        address: text("address")?,
        link: from_name("link", text("link")?)?,
        site: site.map(|json| from_json("site", &json)).transpose()?,
        version: text("version")?,
        sealed: row.try_get::<i64, _>("sealed").map_err(read_failed)? != 0,
        registered_at_ms: time("registered_at_ms")?,
        last_heartbeat_ms: time("last_heartbeat_ms")?,
        drain_deadline_ms: time("drain_deadline_ms")?,
        on_deadline: from_name("deadline policy", text("drain_on_deadline")?)?,
        bound_tags: tags(row, "bound_tags")?,
        bound_size: bound_size.map(|json| from_json("amounts", &json)).transpose()?,
    })
}

fn token(row: &AnyRow) -> Result<TokenRecord> {
    let hash = row.try_get::<Vec<u8>, _>("secret_hash").map_err(read_failed)?;
    let node_id = row.try_get::<Option<String>, _>("node_id").map_err(read_failed)?;
    Ok(TokenRecord {
        token_id: EnrolmentTokenId::parse(row.try_get::<String, _>("token_id").map_err(read_failed)?)?,
        secret_hash: bytes32(hash)?,
        node_id: node_id.map(NodeId::parse).transpose()?,
        role: from_name("role", row.try_get::<String, _>("role").map_err(read_failed)?)?,
        tags: tags(row, "tags")?,
        created_at_ms: row.try_get("created_at_ms").map_err(read_failed)?,
        expires_at_ms: row.try_get("expires_at_ms").map_err(read_failed)?,
        spent: spent(row)?,
        revoked: row.try_get::<Option<i64>, _>("revoked_at_ms").map_err(read_failed)?.is_some(),
    })
}

fn tags(row: &AnyRow, column: &str) -> Result<Option<Vec<Tag>>> {
    let text = row.try_get::<Option<String>, _>(column).map_err(read_failed)?;
    text.map(|json| from_json("list of tags", &json)).transpose()
}

fn spent(row: &AnyRow) -> Result<Option<Spent>> {
    let at_ms = row.try_get::<Option<i64>, _>("spent_at_ms").map_err(read_failed)?;
    let by = row.try_get::<Option<String>, _>("spent_by").map_err(read_failed)?;
    match (at_ms, by) {
        (Some(at_ms), Some(by)) => Ok(Some(Spent { by: NodeId::parse(by)?, at_ms })),
        _ => Ok(None),
    }
}

fn bytes32(bytes: Vec<u8>) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| unreadable("key", "it has not 32 bytes"))
}
