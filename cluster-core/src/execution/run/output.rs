//! From the container's output to its execution's log, each byte once, in pieces that readers can page
//! through, with secrets masked.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::time::Instant;

use super::{ENGINE_RETRY, patiently_written};
use crate::{
    error::Result,
    execution::{
        supervisor::{Run, Shared},
        view::{EventKind, Stream},
    },
};

/// Tries to write the rest of an ended container's output.
const OUTPUT_RETRIES: usize = 5;
/// Lines that come together become one event: an event a line would cost a write a line.
const OUTPUT_PIECES_MAX: usize = 256;
/// How long a line that comes close behind others waits for the next.
const OUTPUT_GATHER: Duration = Duration::from_millis(20);
/// Readers page by events, so that one must be a small part of a page.
const OUTPUT_EVENT_BYTES_MAX: usize = 8 * 1024;
/// Shorter values are in too much that is none.
const SECRET_BYTES_MIN: usize = 4;

/// Reads what the container of the latest iteration writes into the log, without what is there already.
pub(super) async fn collect(shared: &Shared, run: &Run, name: &str, follow: bool) -> Result<()> {
    let (stdout_bytes, stderr_bytes) = run.log.output_bytes();
    let secrets = secrets(run);
    let mut writers = [
        Writer::new(Stream::Stdout, stdout_bytes, &secrets),
        Writer::new(Stream::Stderr, stderr_bytes, &secrets),
    ];
    let mut output = std::pin::pin!(shared.engine.output(name, follow).fuse());
    let mut written_at: Option<Instant> = None;
    while let Some(first) = output.next().await {
        let mut pieces = vec![first];
        // What comes after a pause goes on at once; what comes close behind it waits for more.
        let until = written_at.map_or_else(Instant::now, |at| at + OUTPUT_GATHER);
        while pieces.len() < OUTPUT_PIECES_MAX
            && let Ok(Some(piece)) = tokio::time::timeout_at(until, output.next()).await
        {
            pieces.push(piece);
        }
        let mut failure = None;
        for piece in pieces {
            match piece {
                Ok((Stream::Stdout, data)) => writers[0].take(data),
                Ok((Stream::Stderr, data)) => writers[1].take(data),
                Err(error) => failure = Some(error),
            }
        }
        for writer in &mut writers {
            if !writer.write(run, false)? {
                return Ok(());
            }
        }
        written_at = Some(Instant::now());
        if let Some(error) = failure {
            return Err(error);
        }
    }
    // A followed stream may end before the container does: what is held back then is read again.
    for writer in &mut writers {
        writer.write(run, !follow)?;
    }
    Ok(())
}

/// Reads an ended container's output to its end. What cannot be written (a full disk) is tried again;
/// what still cannot be is told as cut off.
pub(super) async fn finish(shared: &Shared, run: &Run, name: &str) {
    let mut output = collect(shared, run, name, false).await;
    for _ in 0..OUTPUT_RETRIES {
        let Err(error) = output else { return };
        tracing::warn!(container = %name, error = %error.chain(), "its output could not be kept");
        tokio::time::sleep(ENGINE_RETRY).await;
        output = collect(shared, run, name, false).await;
    }
    if output.is_err() {
        let mark = EventKind::Output { stream: Stream::Stdout, data: Bytes::new(), truncated: true };
        patiently_written(run, mark).await;
    }
}

/// Joins pieces of one stream and never cuts a character in two.
struct Writer<'a> {
    stream: Stream,
    skip: u64,
    pending: BytesMut,
    secrets: &'a [Vec<u8>],
}

impl<'a> Writer<'a> {
    fn new(stream: Stream, skip: u64, secrets: &'a [Vec<u8>]) -> Self {
        Self { stream, skip, pending: BytesMut::new(), secrets }
    }

    fn take(&mut self, mut data: Bytes) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        self.skip -= skipped as u64;
        self.pending.extend_from_slice(&data.split_off(skipped));
    }

    /// False once the log takes no more.
    fn write(&mut self, run: &Run, all: bool) -> Result<bool> {
        mask(&mut self.pending, self.secrets);
        let held = if all { 0 } else { held_back(&self.pending, self.secrets) };
        let mut ready = self.pending.split_to(self.pending.len() - held);
        while !ready.is_empty() {
            let piece = ready.split_to(piece_length(&ready));
            if !run.log.append_output(self.stream, piece.freeze())? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Values that must not be read: longest first, so that one within another hides none of it.
pub(super) fn secrets(run: &Run) -> Vec<Vec<u8>> {
    let values = run.journaled.order.secrets.0.values().filter(|value| value.len() >= SECRET_BYTES_MIN);
    let mut values = values.map(|value| value.as_bytes().to_vec()).collect::<Vec<_>>();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values
}

/// As many bytes as before, so that what is read again after a restart begins where the log ends.
pub(super) fn mask(bytes: &mut [u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&bytes[from..], secret) {
            bytes[from + at..from + at + secret.len()].fill(b'*');
            from += at + secret.len();
        }
    }
}

/// Bytes at the end that may be the beginning of a character or of a secret.
fn held_back(bytes: &[u8], secrets: &[Vec<u8>]) -> usize {
    let begins = |secret: &Vec<u8>| {
        (1..secret.len().min(bytes.len() + 1)).rev().find(|length| bytes.ends_with(&secret[..*length]))
    };
    let secret = secrets.iter().filter_map(begins).max().unwrap_or(0);
    secret.max(unfinished(bytes))
}

/// What fits into one event, without cutting a character in two.
fn piece_length(bytes: &[u8]) -> usize {
    if bytes.len() <= OUTPUT_EVENT_BYTES_MAX {
        return bytes.len();
    }
    OUTPUT_EVENT_BYTES_MAX - unfinished(&bytes[..OUTPUT_EVENT_BYTES_MAX])
}

/// Bytes at the end that begin a UTF-8 character and do not finish it.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find_map(|back| {
            let first = bytes[bytes.len() - back];
            let length = match first {
                0b1100_0000..=0b1101_1111 => 2,
                0b1110_0000..=0b1110_1111 => 3,
                0b1111_0000..=0b1111_0111 => 4,
                0b1000_0000..=0b1011_1111 => return None,
                _ => 1,
            };
            Some(if length > back { back } else { 0 })
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        for (bytes, held) in [
            (&b"abc"[..], 0),
            (b"a\xc3", 1),
            (b"a\xc3\xa9", 0),
            (b"\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
            (b"\xf0\x9f\x98\x80", 0),
            (b"\x80\x80\x80\x80", 0),
            (b"", 0),
        ] {
            assert_eq!(unfinished(bytes), held, "{bytes:?}");
        }
    }

    #[test]
    fn secrets_are_masked_wherever_they_are_cut() {
        let secrets = [b"hunter22".to_vec()];
        let text = b"the word is hunter22, and hunter22 it is; hunter is none";
        let masked = b"the word is ********, and ******** it is; hunter is none";
        for cut in 0..text.len() {
            let (mut written, mut pending) = (Vec::new(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                pending.extend_from_slice(part);
                mask(&mut pending, &secrets);
                let ready = pending.len() - held_back(&pending, &secrets);
                written.extend(pending.drain(..ready));
            }
            written.extend(pending);
            assert_eq!(written, masked, "cut at {cut}");
        }
    }
}
