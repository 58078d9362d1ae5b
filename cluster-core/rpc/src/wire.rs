//! Definitions for both ends of a connection: opening a byte stream, and its limits.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// Size limit of a message. Input, manifest and envelope of the largest order fit.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Interval for both ends. A silently lost connection is noticed within 15 s.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Byte stream to a peer, over any transport.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

impl std::fmt::Debug for dyn ByteStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

/// Opens a byte stream to one peer.
pub type Connector = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> + Send + Sync>;
