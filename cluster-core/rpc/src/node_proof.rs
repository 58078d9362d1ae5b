//! Proof of identity of a node at a loopback port. The first process that binds such a port owns it. Before a call is
//! sent to a node's port, the listener proves that it holds the node's key by signing a nonce of the caller. A unix
//! socket in the node's own directory does not need this.
//!
//! The caller sends 32 bytes and the node 64. Then the connection belongs to the protocol. A relay gains nothing: the
//! node that could sign listens at no other address.

use std::{io, time::Duration};

use aegis_identity::{NodeKey, PublicKey, random};
use aegis_types::ids::NodeId;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

const NONCE_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
const LIMIT: Duration = Duration::from_secs(5);

fn statement(node_id: &NodeId, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let mut text = b"aegis node at its link's port, version 1\0".to_vec();
    text.extend_from_slice(node_id.as_str().as_bytes());
    text.push(0);
    text.extend_from_slice(nonce);
    text
}

/// Verifies the proof, on the controller's side.
pub async fn demand(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    node_id: &NodeId,
    key: &PublicKey,
) -> io::Result<()> {
    let nonce = random::<NONCE_BYTES>().map_err(io::Error::other)?;
    let mut signature = [0; SIGNATURE_BYTES];
    let shown = async {
        stream.write_all(&nonce).await?;
        stream.flush().await?;
        stream.read_exact(&mut signature).await
    };
    timeout(LIMIT, shown).await.map_err(|_| not_the_node(node_id))?.map_err(|_| not_the_node(node_id))?;
    key.verify(&statement(node_id, &nonce), &signature).map_err(|_| not_the_node(node_id))
}

fn not_the_node(node_id: &NodeId) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("who listens at the port of {node_id} on its host does not show that it is {node_id}"),
    )
}

/// Sends the proof, on the node's side.
pub(super) async fn show(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    node_id: &NodeId,
    key: &NodeKey,
) -> io::Result<()> {
    let showing = async {
        let mut nonce = [0; NONCE_BYTES];
        stream.read_exact(&mut nonce).await?;
        stream.write_all(&key.sign(&statement(node_id, &nonce))).await?;
        stream.flush().await
    };
    timeout(LIMIT, showing).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn between(node: &str, key: NodeKey, asked: &str, pinned: PublicKey) -> io::Result<()> {
        let (mut here, mut there) = tokio::io::duplex(256);
        let node = NodeId::parse(node).unwrap();
        let shown = tokio::spawn(async move { show(&mut there, &node, &key).await });
        let answer = demand(&mut here, &NodeId::parse(asked).unwrap(), &pinned).await;
        shown.await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn the_pinned_key_for_that_very_name_is_taken_and_nothing_else() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let (public, others) = (key.public(), other.public());
        between("edge-1", key, "edge-1", public).await.unwrap();
        assert!(between("edge-1", other, "edge-1", public).await.is_err());
        let key = NodeKey::generate().unwrap();
        let public = key.public();
        assert!(between("edge-2", key, "edge-1", public).await.is_err());
        let (mut here, there) = tokio::io::duplex(256);
        drop(there);
        let error = demand(&mut here, &NodeId::parse("edge-1").unwrap(), &others).await.unwrap_err();
        assert!(error.to_string().contains("does not show that it is edge-1"), "{error}");
    }
}
