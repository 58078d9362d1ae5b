//! Keys of removed nodes. No node is admitted with one of them again: a copy of the key may have been the
//! reason for the removal.

use std::collections::{BTreeMap, HashMap};

use aegis_identity::PublicKey;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};

/// A deployment names this many of a node's keys at most, the newest.
const NAMED_MAX: usize = 16;

#[derive(Debug, Default)]
pub struct RevokedKeys {
    owners: HashMap<[u8; 32], NodeId>,
    /// Oldest first.
    of_node: BTreeMap<NodeId, Vec<[u8; 32]>>,
}

impl RevokedKeys {
    /// Takes the stored keys, oldest first.
    pub fn new(stored: Vec<(NodeId, [u8; 32])>) -> Self {
        let mut keys = Self::default();
        for (node_id, key) in stored {
            keys.insert(node_id, key);
        }
        keys
    }

    pub(super) fn insert(&mut self, node_id: NodeId, key: [u8; 32]) {
        if self.owners.insert(key, node_id.clone()).is_none() {
            self.of_node.entry(node_id).or_default().push(key);
        }
    }

    /// Returns the thumbprints of a node's newest revoked keys, oldest first.
    pub(super) fn thumbprints(&self, node_id: &NodeId) -> Vec<String> {
        let keys = self.of_node.get(node_id).map(Vec::as_slice).unwrap_or_default();
        let newest = &keys[keys.len().saturating_sub(NAMED_MAX)..];
        newest.iter().filter_map(|key| PublicKey::parse(key).ok()).map(|key| key.thumbprint()).collect()
    }

    /// Refuses a key that was revoked.
    pub(super) fn check(&self, key: &PublicKey, remedy: &str) -> Result<()> {
        let Some(owner) = self.owners.get(key.as_bytes()) else { return Ok(()) };
        Err(Error::new(
            ErrorCode::NodeRemoved,
            format!("the key {} was revoked when node {owner} was removed", &key.thumbprint()[..16]),
        )
        .remedy(remedy))
    }
}
