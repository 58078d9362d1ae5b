//! Output of a container, as kept by the engine.
//!
//! Engines split a line of more than 16 KiB into parts. Docker's driver `local`, the only driver that keeps bytes
//! unchanged, then loses the line's end (seen with 20.10; later versions keep it). The next line would be joined to it,
//! so [`Parts`] restores the end. An end lost at the very end of the output, or after a full last part, cannot be
//! detected.

use aegis_types::{error::Result, execution::view::Stream as OutputStream};
use bollard::{
    container::LogOutput,
    query_parameters::{LogsOptions, LogsOptionsBuilder},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Engine, refused};

/// Size of every part of a split line except the last.
const PART_BYTES: usize = 16 * 1024;
/// Bytes that the driver `local` adds to a line (26 to 30 seen), and to a part of a line.
const FRAME_BYTES: u64 = 32;
const PART_FRAME_BYTES: u64 = 160;
/// Enough for the longest line that counts as a result, and one more.
const LAST_PARTS: &str = "6";

/// Piece of one stream, as kept by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPiece {
    pub stream: OutputStream,
    /// The engine's time stamp; the parts of a long line share one.
    pub time: Bytes,
    pub data: Bytes,
}

/// Second of a piece of output, as Unix time by the engine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputTime(i32);

impl OutputTime {
    /// Returns the second of an engine's time stamp; `None` if the text is not a time stamp.
    pub fn of_stamp(stamp: &str) -> Option<Self> {
        let time = OffsetDateTime::parse(stamp, &Rfc3339).ok()?;
        i32::try_from(time.unix_timestamp()).ok().map(Self)
    }
}

impl OutputPiece {
    /// Returns whether the piece is a part of a split line.
    pub fn is_part(&self) -> bool {
        self.data.len() >= PART_BYTES
    }

    /// Returns an upper bound of the piece's size in the engine's log, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        let frame = if self.is_part() { PART_FRAME_BYTES } else { FRAME_BYTES };
        self.data.len() as u64 + frame
    }
}

impl Engine {
    /// Follows the container's output from the engine's first piece until the container ends.
    ///
    /// Engines sometimes end a followed stream early when the container ends (seen with 20.10). Only a read after the
    /// end is surely complete.
    pub fn follow_output(&self, name: &str) -> impl Stream<Item = Result<OutputPiece>> + Send + use<> {
        self.pieces(name, LogsOptionsBuilder::new().follow(true))
    }

    /// Reads the container's output, from the second of a piece on if one is given.
    pub fn output(
        &self,
        name: &str,
        since: Option<OutputTime>,
    ) -> impl Stream<Item = Result<OutputPiece>> + Send + use<> {
        self.pieces(name, LogsOptionsBuilder::new().since(since.map_or(0, |time| time.0)))
    }

    fn pieces(
        &self,
        name: &str,
        options: LogsOptionsBuilder,
    ) -> impl Stream<Item = Result<OutputPiece>> + Send + use<> {
        let options = options.stdout(true).stderr(true).timestamps(true).build();
        let [mut stdout, mut stderr] = [Parts::default(), Parts::default()];
        self.read(name, options).map_ok(move |(stream, stamped)| {
            let (time, data) = split_stamp(stamped);
            let parts = match stream {
                OutputStream::Stdout => &mut stdout,
                OutputStream::Stderr => &mut stderr,
            };
            OutputPiece { stream, time, data: parts.joined(data) }
        })
    }

    /// Returns the last line of the container's stdout, regardless of earlier output.
    pub async fn last_line(&self, name: &str) -> Result<Bytes> {
        let options = LogsOptionsBuilder::new().stdout(true).tail(LAST_PARTS).build();
        let mut output = std::pin::pin!(self.read(name, options));
        let (mut text, mut parts) = (BytesMut::new(), Parts::default());
        while let Some(piece) = output.next().await {
            text.extend_from_slice(&parts.joined(piece?.1));
        }
        let text = text.freeze();
        let end = text.strip_suffix(b"\n").map_or(text.len(), <[u8]>::len);
        let begin = memchr::memrchr(b'\n', &text[..end]).map_or(0, |at| at + 1);
        Ok(text.slice(begin..end))
    }

    fn read(
        &self,
        name: &str,
        options: LogsOptions,
    ) -> impl Stream<Item = Result<(OutputStream, Bytes)>> + Send + use<> {
        let pieces = self.docker.logs(name, Some(options));
        pieces.map_err(|e| refused("read the container's output", e)).map_ok(|output| match output {
            LogOutput::StdErr { message } => (OutputStream::Stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
                (OutputStream::Stdout, message)
            }
        })
    }
}

/// Splits the engine's time stamp from the container's output.
fn split_stamp(mut stamped: Bytes) -> (Bytes, Bytes) {
    match memchr::memchr(b' ', &stamped) {
        Some(at) => {
            let data = stamped.split_off(at + 1);
            stamped.truncate(at);
            (stamped, data)
        }
        None => (Bytes::new(), stamped),
    }
}

/// State of one stream within split lines.
#[derive(Debug, Default)]
struct Parts {
    /// The last piece was a full part.
    in_line: bool,
    /// The last piece was the last part of a line, without a line end.
    lacks_end: bool,
}

impl Parts {
    /// Returns the next piece, preceded by the missing line end if there is one. The same pieces always give the same
    /// bytes.
    fn joined(&mut self, piece: Bytes) -> Bytes {
        let has_end = piece.ends_with(b"\n");
        let is_full = piece.len() == PART_BYTES && !has_end;
        let lacked_end = std::mem::replace(&mut self.lacks_end, self.in_line && !is_full && !has_end);
        self.in_line = is_full;
        if lacked_end { [b"\n", &piece[..]].concat().into() } else { piece }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(pieces: &[&str]) -> String {
        let mut parts = Parts::default();
        let joined = pieces.iter().map(|piece| parts.joined(Bytes::copy_from_slice(piece.as_bytes())));
        joined.map(|piece| String::from_utf8(piece.to_vec()).unwrap()).collect()
    }

    #[test]
    fn long_line_gets_its_lost_end_back() {
        let full = "x".repeat(PART_BYTES);
        let expected = format!("a\n{full}{full}yy\nb\n");
        assert_eq!(joined(&["a\n", &full, &full, "yy", "b\n"]), expected);
        assert_eq!(joined(&["a\n", &full, &full, "yy\n", "b\n"]), expected);
        // The next line may be as long.
        assert_eq!(joined(&[&full, "yy", &full, "zz", "b\n"]), format!("{full}yy\n{full}zz\nb\n"));
    }

    #[test]
    fn second_is_that_of_the_stamp() {
        assert_eq!(OutputTime::of_stamp("1970-01-01T00:01:40.999999999Z"), Some(OutputTime(100)));
        assert_eq!(OutputTime::of_stamp(""), None);
    }

    #[test]
    fn what_was_not_in_parts_stays_as_it_is() {
        let full = "x".repeat(PART_BYTES);
        for pieces in [&["a", "b", "c\n"][..], &["a\n", ""], &[&full], &[&full, "end"], &[&full, "end\n"]] {
            assert_eq!(joined(pieces), pieces.concat());
        }
    }
}
