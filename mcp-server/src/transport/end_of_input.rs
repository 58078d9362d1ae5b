//! Notices the end of what a client sends. rmcp keeps a connection for some seconds after it, so that calls
//! can still be answered; requests that last as long as their client listens have to end at once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Reads like what it wraps, and cancels the token where that ends or breaks.
#[derive(Debug)]
pub struct EndOfInput<R> {
    input: R,
    ended: CancellationToken,
}

impl<R> EndOfInput<R> {
    pub fn new(input: R, ended: CancellationToken) -> Self {
        Self { input, ended }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for EndOfInput<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = ready!(Pin::new(&mut self.input).poll_read(context, buffer));
        if read.is_err() || (room > 0 && buffer.filled().len() == before) {
            self.ended.cancel();
        }
        Poll::Ready(read)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_is_noticed_and_not_before() {
        let ended = CancellationToken::new();
        let mut input = EndOfInput::new(&b"abc"[..], ended.clone());
        let mut buffer = [0; 2];
        for expected in [2, 1] {
            assert_eq!(input.read(&mut buffer).await.unwrap(), expected);
            assert!(!ended.is_cancelled());
        }
        assert_eq!(input.read(&mut buffer).await.unwrap(), 0);
        assert!(ended.is_cancelled());
    }
}
