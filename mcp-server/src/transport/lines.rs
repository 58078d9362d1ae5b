//! Reads bounded lines of bytes; reads are cancel safe at every await.

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::{
    bytes::{Bytes, BytesMut},
    codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Decoder as _},
};

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Line without its line end, which the last line of a stream may lack.
    Whole(Bytes),
    /// Line above the bound, skipped to its end.
    TooLong,
}

#[derive(Debug)]
pub struct Lines<R> {
    read: R,
    buffer: BytesMut,
    codec: AnyDelimiterCodec,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(read: R, line_bytes_max: usize) -> Self {
        let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), line_bytes_max);
        Self { read, buffer: BytesMut::new(), codec, ended: false }
    }

    /// Returns the next line that is not empty; `None` at the end.
    pub async fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let decoded = match self.ended {
                false => self.codec.decode(&mut self.buffer),
                true => self.codec.decode_eof(&mut self.buffer),
            };
            match decoded {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) => return Ok(Some(Line::Whole(line))),
                Err(AnyDelimiterCodecError::MaxChunkLengthExceeded) => return Ok(Some(Line::TooLong)),
                Err(AnyDelimiterCodecError::Io(error)) => return Err(error),
                Ok(None) if self.ended => return Ok(None),
                Ok(None) => self.ended = self.read.read_buf(&mut self.buffer).await? == 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_beyond_the_bound_is_passed_over_and_the_rest_is_read() {
        let long = "x".repeat(100);
        let text = format!("one\n\n  \n{long}\ntwo\r\n{long}{long}\nthree");
        let mut lines = Lines::new(text.as_bytes(), 10);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            read.push(line);
        }
        let whole = |text: &'static str| Line::Whole(Bytes::from_static(text.as_bytes()));
        let expected = [whole("one"), Line::TooLong, whole("two\r"), Line::TooLong, whole("three")];
        assert_eq!(read, expected);
    }
}
