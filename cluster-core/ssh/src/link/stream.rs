//! A connection of a node to its controller through the link, which knows whose link it came by.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use aegis_types::ids::NodeId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::SshStream;

/// One connection of a node to its controller, through the link. It knows which node's link it came
/// by, and hands that to gRPC handlers as [`LinkPeer`].
pub struct LinkStream {
    pub(super) node: NodeId,
    pub(super) io: SshStream,
}

/// The node whose link carries the connection: who attests on it may only be that node.
#[derive(Debug, Clone)]
pub struct LinkPeer {
    pub node: NodeId,
}

impl LinkStream {
    pub fn node(&self) -> &NodeId {
        &self.node
    }
}

impl fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkStream({})", self.node)
    }
}

impl tonic::transport::server::Connected for LinkStream {
    type ConnectInfo = LinkPeer;
    fn connect_info(&self) -> LinkPeer {
        LinkPeer { node: self.node.clone() }
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
