//! What both ends of a connection have in common: how a byte stream is had, and its bounds.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// Input, manifest and envelope of the largest order fit.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Both ends: a connection that is gone without a word is noticed within 15 s.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A byte stream to a peer, whatever it runs over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl std::fmt::Debug for dyn Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

/// Opens a byte stream, to one peer.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Wire>>> + Send + Sync>;
