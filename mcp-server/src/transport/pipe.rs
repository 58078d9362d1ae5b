//! The client's side of `aegis mcp`: stdin and stdout, byte for byte, to and from the daemon.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cluster_core::{Error, ErrorCode, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
};

use super::handshake;

const CHUNK_BYTES: usize = 64 * 1024;

/// Copies until the assistant closes stdin (a clean end) or the daemon goes away (an error).
pub async fn run<I, O>(socket: &Path, mut input: I, mut output: O) -> Result<()>
where
    I: AsyncRead + Unpin + Send + 'static,
    O: AsyncWrite + Unpin,
{
    let gone = |e: std::io::Error| {
        Error::new(ErrorCode::Unavailable, "the connection to the aegis daemon broke").source(e)
    };
    let mut stream = UnixStream::connect(socket).await.map_err(|e| {
        Error::new(ErrorCode::Unavailable, format!("no aegis daemon answers at {}", socket.display()))
            .remedy("start it with `aegis up`")
            .source(e)
    })?;
    let (mut read, mut write) = stream.split();
    handshake::shake(&mut read, &mut write).await?;
    let (mut read, mut write) = stream.into_split();
    // A task of its own: what was asked last is sent before the end of stdin is passed on, while
    // answers are still being read.
    let stdin_ended = Arc::new(AtomicBool::new(false));
    let upstream = tokio::spawn({
        let stdin_ended = Arc::clone(&stdin_ended);
        async move {
            tokio::io::copy(&mut input, &mut write).await?;
            // Before the daemon hears of it: it may close before this task is seen as finished.
            stdin_ended.store(true, Ordering::Release);
            write.shutdown().await
        }
    });
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = read.read(&mut chunk).await.map_err(gone)?;
        if count == 0 {
            break;
        }
        // Flushed at once: the assistant waits for this very line.
        let written = async {
            output.write_all(&chunk[..count]).await?;
            output.flush().await
        };
        if written.await.is_err() {
            // The assistant closed its end: nobody is left to talk to.
            return Ok(());
        }
    }
    // The daemon closed. That is right when stdin ended first, and its death otherwise.
    if stdin_ended.load(Ordering::Acquire) {
        return Ok(());
    }
    upstream.abort();
    Err(Error::new(ErrorCode::Unavailable, "the aegis daemon ended while the assistant was connected")
        .remedy("see aegis.log in the data directory; the next start of `aegis mcp` starts it again"))
}
