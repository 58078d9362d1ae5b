//! What a container wrote, as the engine kept it.
//!
//! Engines keep a line of more than 16 KiB in parts. Docker's driver `local`, the one that keeps bytes as they
//! are, loses the line's end then (seen with 20.10; later versions keep it), so that the next line would be
//! joined to it: [`Parts`] puts the end back. What cannot be told is left: an end that the engine lost at the
//! very end of the output, or of a line whose length is a multiple of a part.

use aegis_types::{error::Result, execution::view::Stream as OutputStream};
use bollard::{
    container::LogOutput,
    query_parameters::{LogsOptions, LogsOptionsBuilder},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Engine, refused};

/// Of a line that the engine keeps in parts, all but the last have so many bytes.
const PART_BYTES: usize = 16 * 1024;
/// Bytes that the driver `local` adds to a line (26 to 30 seen), and to a part of one.
const FRAME_BYTES: u64 = 32;
const PART_FRAME_BYTES: u64 = 160;
/// Enough for the longest line that counts as a result, and one more.
const LAST_PARTS: &str = "6";

/// A piece of one stream, as the engine kept it.
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
    /// Returns the second of an engine's time stamp. `None` where it is not one.
    pub fn of_stamp(stamp: &str) -> Option<Self> {
        let time = OffsetDateTime::parse(stamp, &Rfc3339).ok()?;
        i32::try_from(time.unix_timestamp()).ok().map(Self)
    }
}

impl OutputPiece {
    /// Whether the engine keeps the line of the piece in parts.
    pub fn is_part(&self) -> bool {
        self.data.len() >= PART_BYTES
    }

    /// An upper bound of what the piece takes in the engine's log, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        let frame = if self.is_part() { PART_FRAME_BYTES } else { FRAME_BYTES };
        self.data.len() as u64 + frame
    }
}

impl Engine {
    /// Follows the container's output from the beginning of what the engine has, until the container ends.
    ///
    /// Engines end a followed stream early at times when the container ends (seen with 20.10): only
    /// a read after the end is sure to be complete.
    pub fn follow_output(&self, name: &str) -> impl Stream<Item = Result<OutputPiece>> + Send + use<> {
        self.pieces(name, LogsOptionsBuilder::new().follow(true))
    }

    /// Reads what there is of the container's output, from the second of a piece on where one is given.
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

    /// The last line on the container's stdout, however much came before it.
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

/// Separates the engine's time stamp from what the container wrote.
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

/// Where one stream is within a line that was kept in parts.
#[derive(Debug, Default)]
struct Parts {
    /// The last piece was a full part.
    in_line: bool,
    /// The last piece was the last part of a line, and had no end.
    lacks_end: bool,
}

impl Parts {
    /// The next piece, after the end that the one before it should have had. The same pieces give the same
    /// bytes each time they are read.
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
    fn a_long_line_ends_before_the_next_one_whether_the_engine_kept_its_end_or_not() {
        let full = "x".repeat(PART_BYTES);
        let expected = format!("a\n{full}{full}yy\nb\n");
        assert_eq!(joined(&["a\n", &full, &full, "yy", "b\n"]), expected);
        assert_eq!(joined(&["a\n", &full, &full, "yy\n", "b\n"]), expected);
        // The next one may be as long.
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
