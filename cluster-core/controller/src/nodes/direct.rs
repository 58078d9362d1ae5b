//! The direct link: the controller dials a node at the address that it registered.
//!
//! Tasks: one watcher a node, which tells the membership whether the node answers; it ends with the
//! node's entry.

use std::{io, sync::Arc, time::Duration};

use aegis_config::endpoint::is_loopback;
use aegis_rpc::{
    paced_channel::PacedChannel,
    tls::{self, Credentials, Expect, HostPort, refusal},
    wire::{ByteStream, Connector},
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use crate::handle::Controller;

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between looks at a node that answers: with the probe's own limit, a death is noticed within 15 s.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(10);
/// Between looks at one that does not, for a network that heals: one that starts again says so itself.
const ABSENCE_INTERVAL: Duration = Duration::from_secs(5);

/// Credentials and rules by which a controller dials nodes.
#[derive(Debug, Clone, Default)]
pub struct DirectAccess {
    /// `None` without TLS. The controller then reaches nodes on this machine alone.
    pub credentials: Option<Credentials>,
    /// The operator allows plaintext over networks.
    pub allow_insecure: bool,
    pub plain: Plain,
}

/// How connections in plaintext are opened: by this machine, or in a simulated network.
#[derive(Clone)]
pub struct Plain(Arc<dyn Fn(HostPort) -> Connector + Send + Sync>);

impl Plain {
    pub fn of(dials: impl Fn(HostPort) -> Connector + Send + Sync + 'static) -> Self {
        Self(Arc::new(dials))
    }
}

impl Default for Plain {
    fn default() -> Self {
        Self::of(in_plaintext)
    }
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plain")
    }
}

impl DirectAccess {
    /// Changes with the certificate that is presented. A client of an earlier version must be replaced.
    pub fn version(&self) -> u64 {
        self.credentials.as_ref().map_or(0, |credentials| *credentials.version().borrow())
    }

    /// How to reach a node at an address it names; the address is judged, nothing is dialled yet. `is_near`:
    /// the node is on this machine, and may name its loopback.
    pub fn dial(&self, node_id: &NodeId, address: &str, is_near: bool) -> Result<Connector> {
        let url = Url::parse(address).map_err(|e| {
            Error::invalid(format!("the address of {node_id} cannot be read: {e}"))
                .remedy("advertise https://HOST:PORT")
        })?;
        let to = HostPort::of(&url)?;
        if is_loopback(to.host()) && !is_near {
            return Err(Error::new(
                ErrorCode::Forbidden,
                format!("{node_id} is on another machine and names an address of the controller's loopback"),
            )
            .remedy(
                "set spec.cluster.advertise_address to an address on which the controller finds the node",
            ));
        }
        match url.scheme() {
            "https" => {
                let credentials = self.credentials.clone().ok_or_else(|| {
                    Error::new(
                        ErrorCode::FailedPrecondition,
                        format!("{node_id} is reached by https, and this controller has no certificates"),
                    )
                    .remedy("set spec.cluster.advertise_address: https://HOST:PORT on the controller")
                })?;
                Ok(under_tls(credentials, to, node_id.clone()))
            }
            "http" if is_loopback(to.host()) || self.allow_insecure => Ok((self.plain.0)(to)),
            _ => Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("{url} is not on this machine and not under TLS"),
            )
            .remedy(
                "advertise https://HOST:PORT; or set spec.network.allow_insecure_bind: true on both nodes",
            )),
        }
    }
}

fn under_tls(credentials: Credentials, to: HostPort, node_id: NodeId) -> Connector {
    Arc::new(move || {
        let (credentials, to, expect) = (credentials.clone(), to.clone(), Expect::Node(node_id.clone()));
        Box::pin(async move {
            let (connection, _) = tls::client::connect(&credentials, &to, expect, false).await?;
            Ok(Box::new(connection) as Box<dyn ByteStream>)
        })
    })
}

fn in_plaintext(to: HostPort) -> Connector {
    Arc::new(move || {
        let to = to.clone();
        Box::pin(async move { Ok(Box::new(to.connect().await?) as Box<dyn ByteStream>) })
    })
}

/// Whether the node's address takes a connection, and over TLS is who it must be. For a node that registers: its
/// process has just spoken.
pub async fn reach(node_id: &NodeId, dial: &Connector) -> Result<()> {
    in_time(node_id, async { dial().await.map(drop) }).await
}

/// Whether the node's process answers, and over TLS is who it must be. The kernel takes connections for one that is
/// stopped.
async fn probe(node_id: &NodeId, channel: &PacedChannel) -> Result<()> {
    in_time(node_id, channel.ping()).await
}

async fn in_time(node_id: &NodeId, asking: impl Future<Output = io::Result<()>>) -> Result<()> {
    let unreachable = |why: String| {
        Error::new(ErrorCode::Unavailable, format!("{node_id} cannot be reached from the controller: {why}"))
            .remedy("advertise an address on which the node listens")
    };
    match timeout(PROBE_TIMEOUT, asking).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refused(node_id, error).unwrap_or_else(|error| unreachable(error.to_string()))),
        Err(_) => Err(unreachable("no answer".into())),
    }
}

fn refused(node_id: &NodeId, error: io::Error) -> std::result::Result<Error, io::Error> {
    refusal::of(node_id.as_str(), &error).ok_or(error)
}

/// Looks at a node again and again until the guard goes. `channel` is the node's present one.
pub fn watch(
    controller: Controller,
    node_id: NodeId,
    channel: impl Fn() -> Option<PacedChannel> + Send + 'static,
) -> DropGuard {
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        let mut up = true;
        loop {
            let pause = if up { PRESENCE_INTERVAL } else { ABSENCE_INTERVAL };
            if ended.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            let Some(channel) = channel() else { return };
            let Some(answer) = ended.run_until_cancelled(probe(&node_id, &channel)).await else { return };
            match &answer {
                Err(error) if up => tracing::warn!(%node_id, error = %error.chain(), "does not answer"),
                Ok(()) if !up => tracing::info!(%node_id, "answers again"),
                _ => {}
            }
            up = answer.is_ok();
            if controller.set_link(node_id.clone(), up).await.is_err() {
                return;
            }
        }
    });
    guard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_dialled_for_nodes_of_this_machine_alone() {
        let access = DirectAccess { allow_insecure: true, ..DirectAccess::default() };
        let node_id = NodeId::parse("edge-1").unwrap();
        let code = |address: &str, is_near| {
            access.dial(&node_id, address, is_near).map(drop).map_err(|error| error.code())
        };
        for address in
            ["http://127.0.0.1:22", "http://localhost:22", "https://[::1]:8088", "http://127.1.2.3:1"]
        {
            assert_eq!(code(address, false), Err(ErrorCode::Forbidden), "{address}");
        }
        assert_eq!(code("http://127.0.0.1:50056", true), Ok(()));
        assert_eq!(code("http://192.0.2.1:50056", false), Ok(()));
    }
}
