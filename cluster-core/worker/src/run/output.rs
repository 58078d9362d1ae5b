//! From the container's output to its execution's log, in pieces that readers can page through, with secrets
//! masked.
//!
//! The beginning is written as it comes, until the output budget is used up. The end is written once the
//! container has ended. The gap between them is an event with its size. Where reading continues is told by
//! content ([`Position`]); where the engine has dropped that place, the gap says so.

use std::time::Duration;

use aegis_engine::{OutputPiece, OutputTime, log_file_mb};
use aegis_types::{
    error::Result,
    execution::view::{EventKind, Stream},
};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{Stream as OutputStream, StreamExt as _};
use tokio::time::Instant;

use super::{ENGINE_RETRY, patiently_written};
use crate::{
    event_log::EventLog,
    position::{Position, Seeker, Track},
    state::{Run, Shared},
};

/// Tries to write the rest of an ended container's output.
const OUTPUT_RETRIES: usize = 5;
/// Lines that come together become one event: an event a line would cost a write a line.
const OUTPUT_PIECES_MAX: usize = 256;
/// How long a line that comes close behind others waits for the next.
const OUTPUT_GATHER: Duration = Duration::from_millis(20);
/// Readers page by events, so that one must be a small part of a page.
const OUTPUT_EVENT_BYTES_MAX: usize = 8 * 1024;
/// Shorter secrets match unrelated output too often to mask.
const SECRET_BYTES_MIN: usize = 4;
/// Kept of the end of a stream whose beginning has used up the budget: the last lines of a build say why it
/// failed, and the last one may be a result.
const TAIL_BYTES: usize = 256 * 1024;
const MIB: u64 = 1024 * 1024;

/// Writes the beginning of what the container of the latest iteration writes into the log, without what is there
/// already. Returns when the container ends or the budget is used up, with the time from which on the rest is to be
/// read. `None`: from the beginning.
pub(super) async fn follow(shared: &Shared, run: &Run, name: &str) -> Result<Option<OutputTime>> {
    if run.log.is_truncated() {
        return Ok(None);
    }
    let mut reading = Reading::new(&run.log, secrets(run), file_bytes(shared));
    let output = shared.engine.follow_output(name);
    read(run, output, true, &mut reading).await?;
    Ok(reading.settled_until(&run.log))
}

/// Writes what is not in the log yet of the output of a container that has ended.
pub(super) async fn collect(shared: &Shared, run: &Run, name: &str, since: Option<OutputTime>) -> Result<()> {
    let mut reading = Reading::new(&run.log, secrets(run), file_bytes(shared));
    read(run, shared.engine.output(name, since), false, &mut reading).await?;
    if reading.is_lost() {
        reading = reading.without_places(&run.log)?;
        read(run, shared.engine.output(name, None), false, &mut reading).await?;
    }
    reading.finish(&run.log)
}

fn file_bytes(shared: &Shared) -> u64 {
    u64::from(log_file_mb(shared.output_mb())) * MIB
}

async fn read(
    run: &Run,
    output: impl OutputStream<Item = Result<OutputPiece>>,
    follow: bool,
    reading: &mut Reading,
) -> Result<()> {
    let mut output = std::pin::pin!(output.fuse());
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
                Ok(piece) => reading.take(&piece),
                Err(error) => failure = Some(error),
            }
        }
        reading.write(&run.log, false)?;
        if follow && run.log.is_truncated() {
            return Ok(());
        }
        written_at = Some(Instant::now());
        if let Some(error) = failure {
            return Err(error);
        }
    }
    // A followed stream may end before the container does: what is held back then is read again.
    reading.write(&run.log, !follow)
}

/// Reads an ended container's output to its end. What cannot be written (a full disk) is tried again;
/// what still cannot be is told as cut off.
pub(super) async fn finish(shared: &Shared, run: &Run, name: &str, since: Option<OutputTime>) {
    let mut output = collect(shared, run, name, since).await;
    for _ in 0..OUTPUT_RETRIES {
        let Err(error) = output else { return };
        tracing::warn!(container = %name, error = %error.chain(), "its output could not be kept");
        tokio::time::sleep(ENGINE_RETRY).await;
        output = collect(shared, run, name, None).await;
    }
    if output.is_err() {
        let mark = EventKind::Output { stream: Stream::Stdout, data: Bytes::new(), truncated: true };
        patiently_written(run, mark).await;
    }
}

/// One read of a container's output, from the beginning of what the engine has.
struct Reading {
    writers: [Writer; 2],
    secrets: Vec<Vec<u8>>,
    /// An upper bound of what the engine's log holds of the pieces so far.
    stored: u64,
    /// Size of one file of the engine's log. An engine that has dropped a file still has a full one.
    file_bytes: u64,
    /// The engine has dropped the place where reading was to continue.
    has_dropped: bool,
    /// The engine keeps a line in parts. A read from its middle on might miss an end that [`OutputPiece`]s were given.
    has_parts: bool,
}

impl Reading {
    fn new(log: &EventLog, secrets: Vec<Vec<u8>>, file_bytes: u64) -> Self {
        let writers = [Writer::new(log, Stream::Stdout), Writer::new(log, Stream::Stderr)];
        Self { writers, secrets, stored: 0, file_bytes, has_dropped: false, has_parts: false }
    }

    /// True after a read that has not met the place of one of the streams.
    fn is_lost(&self) -> bool {
        self.writers.iter().any(|writer| writer.seeker.is_seeking())
    }

    /// Returns another read that takes all that the engine still has as the end of the streams.
    fn without_places(self, log: &EventLog) -> Result<Self> {
        end_head(log)?;
        let mut next = Self { has_dropped: true, ..Self::new(log, self.secrets, self.file_bytes) };
        for (writer, before) in next.writers.iter_mut().zip(&self.writers) {
            if before.seeker.is_seeking() && !matches!(writer.part, Part::End) {
                writer.seeker = Seeker::new(None);
            }
        }
        Ok(next)
    }

    /// Returns the second from which on a later read must begin, where all that was taken is in the log: that of the
    /// older of the two places where the streams continue. A stream without a place has written nothing.
    fn settled_until(&self, log: &EventLog) -> Option<OutputTime> {
        let is_settled = |writer: &Writer| {
            writer.pending.is_empty() && matches!(writer.part, Part::Head) && !writer.seeker.is_seeking()
        };
        if self.has_parts || !self.writers.iter().all(is_settled) {
            return None;
        }
        let places = self.writers.iter().filter_map(|writer| log.kept(writer.stream).position);
        places.map(|place| OutputTime::of_stamp(&place.time)).min().flatten()
    }

    fn take(&mut self, piece: &OutputPiece) {
        self.stored += piece.stored_bytes();
        self.has_parts |= piece.is_part();
        let writer = match piece.stream {
            Stream::Stdout => &mut self.writers[0],
            Stream::Stderr => &mut self.writers[1],
        };
        writer.take(piece);
    }

    /// Writes what is certain by now. The beginning ends with the budget, or where a second file of the engine's
    /// log may begin: only an open file is safe from being dropped before it is read.
    fn write(&mut self, log: &EventLog, all: bool) -> Result<()> {
        for writer in &mut self.writers {
            writer.write(log, &self.secrets, all)?;
        }
        let is_head = self.writers.iter().any(|writer| matches!(writer.part, Part::Head));
        if is_head && self.stored >= self.file_bytes {
            end_head(log)?;
        }
        if is_head && log.is_truncated() {
            for writer in &mut self.writers {
                writer.end_head();
            }
        }
        Ok(())
    }

    /// Writes the ends of both streams, behind a gap where one is.
    fn finish(&mut self, log: &EventLog) -> Result<()> {
        let may_have_dropped = self.has_dropped || self.stored >= self.file_bytes;
        for writer in &mut self.writers {
            let at_least = may_have_dropped && writer.seeker.is_doubtful();
            writer.finish(log, at_least)?;
        }
        log.note_output_end();
        Ok(())
    }
}

/// Marks the end of the beginning, once.
fn end_head(log: &EventLog) -> Result<()> {
    if log.is_truncated() {
        return Ok(());
    }
    let mark = EventKind::Output { stream: Stream::Stdout, data: Bytes::new(), truncated: true };
    log.append_output(mark, None)
}

/// Part of a stream that is being read.
enum Part {
    Head,
    /// The latest bytes behind the beginning, and how many came before them.
    Tail {
        latest: BytesMut,
        skipped: u64,
    },
    /// The gap is in the log: the end is written as it comes.
    End,
}

/// Joins pieces of one stream and never cuts a character in two.
struct Writer {
    stream: Stream,
    seeker: Seeker,
    track: Track,
    /// Bytes taken in this read behind the place where it continues.
    taken: u64,
    /// Bytes in hand that may not be complete.
    pending: BytesMut,
    part: Part,
}

impl Writer {
    fn new(log: &EventLog, stream: Stream) -> Self {
        let kept = log.kept(stream);
        let part = match (kept.is_skipped, log.is_truncated()) {
            (true, _) => Part::End,
            (false, true) => Part::Tail { latest: BytesMut::new(), skipped: 0 },
            (false, false) => Part::Head,
        };
        let seeker = match kept.position {
            Some(position) => Seeker::new(Some(position)),
            // A log of a worker before positions has the bytes alone.
            None => Seeker::behind(kept.bytes),
        };
        let track = Track::default();
        Self { stream, seeker, track, taken: 0, pending: BytesMut::new(), part }
    }

    fn take(&mut self, piece: &OutputPiece) {
        let passed = self.seeker.pass(&piece.time, piece.data.len());
        let data = &piece.data[passed..];
        if !data.is_empty() {
            let seeker = &self.seeker;
            self.track.mark(self.taken, || Position { bytes: passed as u64, ..seeker.piece() });
            self.pending.extend_from_slice(data);
            self.taken += data.len() as u64;
        }
    }

    fn write(&mut self, log: &EventLog, secrets: &[Vec<u8>], all: bool) -> Result<()> {
        mask(&mut self.pending, secrets);
        let held = if all { 0 } else { held_back(&self.pending, secrets) };
        let mut ready = self.pending.split_to(self.pending.len() - held);
        if matches!(self.part, Part::Head) {
            self.write_head(log, &mut ready)?;
        }
        if !ready.is_empty() && matches!(self.part, Part::Head) {
            self.end_head();
        }
        match &mut self.part {
            Part::Head => {}
            Part::Tail { latest, skipped } => {
                latest.unsplit(ready);
                let over = latest.len().saturating_sub(TAIL_BYTES);
                latest.advance(over);
                *skipped += over as u64;
                self.track.forget_before(self.taken - (latest.len() + self.pending.len()) as u64);
            }
            Part::End => self.append(log, ready)?,
        }
        Ok(())
    }

    /// Writes as much as the budget lets through, and the mark when it is used up.
    fn write_head(&mut self, log: &EventLog, ready: &mut BytesMut) -> Result<()> {
        while !ready.is_empty() && !log.is_truncated() {
            let room = usize::try_from(log.output_room()).unwrap_or(usize::MAX);
            if room == 0 {
                return end_head(log);
            }
            let piece = ready.split_to(piece_length(ready).min(room));
            self.append_piece(log, piece, ready.len())?;
        }
        Ok(())
    }

    fn end_head(&mut self) {
        if matches!(self.part, Part::Head) {
            self.part = Part::Tail { latest: BytesMut::new(), skipped: 0 };
        }
    }

    /// Writes the end of the stream, from the beginning of a line where there is one.
    fn finish(&mut self, log: &EventLog, at_least: bool) -> Result<()> {
        let Part::Tail { latest, skipped } = std::mem::replace(&mut self.part, Part::End) else {
            return Ok(());
        };
        let (mut latest, mut bytes) = (latest, skipped);
        if bytes > 0 || at_least {
            let cut = if bytes > 0 { line_start(&latest) } else { 0 };
            latest.advance(cut);
            bytes += cut as u64;
            let position = self.track.position(self.taken - latest.len() as u64);
            log.append_output(EventKind::OutputSkipped { stream: self.stream, bytes, at_least }, position)?;
        }
        self.append(log, latest)
    }

    fn append(&mut self, log: &EventLog, mut ready: BytesMut) -> Result<()> {
        while !ready.is_empty() {
            let piece = ready.split_to(piece_length(&ready));
            self.append_piece(log, piece, ready.len())?;
        }
        Ok(())
    }

    /// Appends one event; `behind`: bytes after the piece that are ready and not written.
    fn append_piece(&mut self, log: &EventLog, piece: BytesMut, behind: usize) -> Result<()> {
        let position = self.track.position(self.taken - (behind + self.pending.len()) as u64);
        let data = piece.freeze();
        log.append_output(EventKind::Output { stream: self.stream, data, truncated: false }, position)
    }
}

/// Bytes before the first line that begins in `bytes`; without one, before the first whole character.
fn line_start(bytes: &[u8]) -> usize {
    match memchr::memchr(b'\n', bytes) {
        Some(at) if at + 1 < bytes.len() => at + 1,
        _ => bytes.iter().take(3).take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count(),
    }
}

/// Returns the secrets to mask, longest first, so that a secret that contains another is masked as a whole.
pub(super) fn secrets(run: &Run) -> Vec<Vec<u8>> {
    let values = run.journaled.order.secrets.0.values().filter(|value| value.len() >= SECRET_BYTES_MIN);
    let mut values = values.map(|value| value.as_bytes().to_vec()).collect::<Vec<_>>();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values
}

/// Masks secrets without changing the length, so that reading after a restart continues where the log ends.
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

/// Returns how many bytes fit into one event without splitting a character.
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

    const FILE: u64 = 64 * MIB;

    fn log(path: &std::path::Path, budget: u64) -> EventLog {
        let log =
            EventLog::open(path, aegis_types::ids::ExecutionId::parse("exec-1").unwrap(), 1, budget).unwrap();
        if log.progress().borrow().iteration == 0 {
            log.append(EventKind::IterationStarted { iteration: 1 }).unwrap();
        }
        log
    }

    /// Lines of both streams with stamps of their own.
    fn pieces(count: usize) -> Vec<OutputPiece> {
        let piece = |number: usize| OutputPiece {
            stream: if number.is_multiple_of(5) { Stream::Stderr } else { Stream::Stdout },
            time: format!("2026-01-01T00:00:00.{number:09}Z").into(),
            data: format!("line {number} \u{20ac}\n").into(),
        };
        (0..count).map(piece).collect()
    }

    fn text(pieces: &[OutputPiece], stream: Stream) -> Vec<u8> {
        pieces.iter().filter(|piece| piece.stream == stream).flat_map(|piece| piece.data.to_vec()).collect()
    }

    fn read(log: &EventLog, pieces: &[OutputPiece], ended: bool, file_bytes: u64) {
        let mut reading = Reading::new(log, Vec::new(), file_bytes);
        for some in pieces.chunks(7) {
            some.iter().for_each(|piece| reading.take(piece));
            reading.write(log, false).unwrap();
        }
        reading.write(log, ended).unwrap();
        if ended && reading.is_lost() {
            reading = reading.without_places(log).unwrap();
            pieces.iter().for_each(|piece| reading.take(piece));
            reading.write(log, ended).unwrap();
        }
        if ended {
            reading.finish(log).unwrap();
        }
    }

    /// Head, gap and tail of a stream as its log tells them.
    fn told(log: &EventLog, wanted: Stream) -> (Vec<u8>, Option<(u64, bool)>, Vec<u8>) {
        let (mut head, mut gap, mut tail, mut after) = (Vec::new(), None, Vec::new(), 0);
        loop {
            let events = log.read_after(after).unwrap();
            let Some(last) = events.last() else { return (head, gap, tail) };
            after = last.sequence;
            for event in events {
                match event.kind {
                    EventKind::Output { stream, data, .. } if stream == wanted => {
                        if gap.is_some() {
                            tail.extend(data)
                        } else {
                            head.extend(data)
                        }
                    }
                    EventKind::OutputSkipped { stream, bytes, at_least } if stream == wanted => {
                        assert_eq!(gap.replace((bytes, at_least)), None);
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn interrupted_reads_write_each_byte_once() {
        let directory = tempfile::tempdir().unwrap();
        let pieces = pieces(300);
        let path = directory.path().join("events");
        for cut in (0..pieces.len()).step_by(11) {
            read(&log(&path, MIB), &pieces[..cut], false, FILE);
        }
        read(&log(&path, MIB), &pieces, true, FILE);
        for stream in [Stream::Stdout, Stream::Stderr] {
            assert!(told(&log(&path, MIB), stream) == (text(&pieces, stream), None, Vec::new()));
        }
    }

    #[test]
    fn a_later_read_begins_where_everything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(&directory.path().join("events"), MIB);
        let mut reading = Reading::new(&log, vec![b"hidden".to_vec()], FILE);
        let piece = |seconds: u32, data: &'static str| OutputPiece {
            stream: Stream::Stdout,
            time: Bytes::from(format!("2026-01-01T00:00:{seconds:02}.5Z")),
            data: Bytes::from_static(data.as_bytes()),
        };
        assert_eq!(reading.settled_until(&log), None);
        let mut settled = |piece: OutputPiece| {
            reading.take(&piece);
            reading.write(&log, false).unwrap();
            reading.settled_until(&log)
        };
        assert_eq!(settled(piece(1, "a\n")), OutputTime::of_stamp("2026-01-01T00:00:01Z"));
        assert_eq!(settled(piece(2, "hid")), None, "it may be a secret");
        assert!(settled(piece(3, "e\n")).is_some());
        let part = Bytes::from(vec![b'x'; 16 * 1024]);
        assert_eq!(settled(OutputPiece { data: part, ..piece(4, "") }), None, "its line is kept in parts");
    }

    #[test]
    fn a_read_from_a_second_on_writes_each_byte_once() {
        let directory = tempfile::tempdir().unwrap();
        let spread = |(number, piece): (usize, OutputPiece)| OutputPiece {
            time: format!("2026-01-01T00:00:{:02}.{number:09}Z", number / 10).into(),
            ..piece
        };
        let pieces: Vec<_> = pieces(300).into_iter().enumerate().map(spread).collect();
        for cut in (1..pieces.len()).step_by(7) {
            let log = log(&directory.path().join(format!("events-{cut}")), MIB);
            let mut reading = Reading::new(&log, Vec::new(), FILE);
            pieces[..cut].iter().for_each(|piece| reading.take(piece));
            reading.write(&log, false).unwrap();
            let since = reading.settled_until(&log).unwrap();
            let is_read = |piece: &&OutputPiece| {
                OutputTime::of_stamp(std::str::from_utf8(&piece.time).unwrap()).unwrap() >= since
            };
            let rest: Vec<_> = pieces.iter().filter(is_read).cloned().collect();
            read(&log, &rest, true, FILE);
            for stream in [Stream::Stdout, Stream::Stderr] {
                assert!(told(&log, stream) == (text(&pieces, stream), None, Vec::new()), "{cut}");
            }
        }
    }

    #[test]
    fn output_beyond_the_budget_keeps_both_ends() {
        let directory = tempfile::tempdir().unwrap();
        let pieces = pieces(60_000);
        let log = log(&directory.path().join("events"), 10_000);
        read(&log, &pieces[..1000], false, FILE);
        assert!(log.is_truncated());
        assert_eq!(log.kept(Stream::Stdout).bytes + log.kept(Stream::Stderr).bytes, 10_000);
        read(&log, &pieces, true, FILE);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (all, (head, gap, tail)) = (text(&pieces, stream), told(&log, stream));
            let skipped = gap.map_or(0, |(bytes, at_least)| {
                assert!(!at_least);
                usize::try_from(bytes).unwrap()
            });
            assert!(all.starts_with(&head) && all.ends_with(&tail));
            assert_eq!(head.len() + skipped + tail.len(), all.len(), "{stream:?}");
            assert!(stream == Stream::Stderr || (skipped > 0 && tail.starts_with(b"line ")));
        }
        assert_eq!(log.last_line().unwrap(), "line 59999 \u{20ac}\n");
    }

    #[test]
    fn log_without_positions_is_continued_by_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let pieces = pieces(300);
        let log = log(&directory.path().join("events"), MIB);
        for piece in &pieces[..100] {
            let (stream, data) = (piece.stream, piece.data.clone());
            log.append_output(EventKind::Output { stream, data, truncated: false }, None).unwrap();
        }
        read(&log, &pieces[..200], false, FILE);
        read(&log, &pieces, true, FILE);
        for stream in [Stream::Stdout, Stream::Stderr] {
            assert!(told(&log, stream) == (text(&pieces, stream), None, Vec::new()));
        }
    }

    #[test]
    fn output_that_the_engine_dropped_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let pieces = pieces(1000);
        let log = log(&directory.path().join("events"), MIB);
        read(&log, &pieces[..100], false, FILE);
        read(&log, &pieces[500..], true, FILE);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (head, gap, tail) = told(&log, stream);
            assert!(head == text(&pieces[..100], stream), "{stream:?}");
            assert!(gap.is_some_and(|(_, at_least)| at_least), "{gap:?}");
            assert!(text(&pieces[500..], stream).ends_with(&tail) && !tail.is_empty());
        }
    }

    #[test]
    fn head_ends_before_a_second_file_of_the_engine() {
        let directory = tempfile::tempdir().unwrap();
        let pieces = pieces(3000);
        let log = log(&directory.path().join("events"), MIB);
        read(&log, &pieces, false, 20_000);
        assert!(log.is_truncated());
        let written = log.kept(Stream::Stdout).bytes + log.kept(Stream::Stderr).bytes;
        assert!(written <= 20_000, "{written}");
        read(&log, &pieces, true, 20_000);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (head, gap, tail) = told(&log, stream);
            assert!(gap.is_none() && [head, tail].concat() == text(&pieces, stream));
        }
    }

    #[test]
    fn interrupted_end_is_continued_behind_the_gap() {
        let directory = tempfile::tempdir().unwrap();
        let (path, cut) = (directory.path().join("events"), directory.path().join("cut"));
        let pieces = pieces(60_000);
        read(&log(&path, 10_000), &pieces, true, FILE);
        let whole = told(&log(&path, 10_000), Stream::Stdout);
        let bytes = std::fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(bytes.len() / 40) {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            read(&log(&cut, 10_000), &pieces, true, FILE);
            assert!(told(&log(&cut, 10_000), Stream::Stdout) == whole, "{length}");
        }
    }
}
