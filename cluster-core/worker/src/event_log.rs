//! The event log of one execution on its worker: numbered, written before it is sent, read again from
//! any number.
//!
//! The file is a run of length-delimited events in the wire's encoding. A torn tail, as a crash leaves
//! it, is cut off when the log is opened: what it held was never sent.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aegis_proto::aegis::runtime::v1 as pb;
use aegis_rpc::event_encoding;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Failure, Result},
    execution::view::{EventKind, EventView, Stream},
    ids::ExecutionId,
};
use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::{sync::watch, time::Instant};

use super::position::Position;

/// Longest line that may be a result.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Size of the end of stderr that the next iteration is given.
const STDERR_TAIL_BYTES: usize = 2048;
/// Events handed out at a time.
const READ_BYTES_MAX: u64 = 256 * 1024;
/// No event comes near it: an output event has at most a few dozen KiB.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Progress of an execution, as far as its log has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub last_sequence: u64,
    /// The latest whose container was started; 0 before the first.
    pub iteration: u32,
    /// When that was, on the monotonic clock; of an earlier process, as the wall clock tells it. `None` before the first.
    pub iteration_started: Option<Instant>,
    /// When the first container that the log knows of was started, in the same way.
    pub first_started: Option<Instant>,
    pub ended: bool,
}

/// How an iteration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IterationEnd {
    Completed,
    Failed { failure: Failure, exit_code: Option<i32>, stderr_tail: String },
}

/// Ends of the output of the latest iteration, for its result and the next iteration.
#[derive(Debug, Default)]
struct Written {
    stdout: Kept,
    stderr: Kept,
    /// The last line of stdout that has something in it, and what comes after it.
    line: BytesMut,
    next_line: BytesMut,
    /// The end of stdout is in the log, or in this process's hands to be so.
    is_end_known: bool,
    stderr_tail: BytesMut,
    end: Option<IterationEnd>,
}

/// State of one stream of the latest iteration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    pub bytes: u64,
    /// Position at which the next read continues. `None` before the first byte, and in logs of workers that had no
    /// positions.
    pub position: Option<Position>,
    /// The gap between beginning and end is in the log: what follows is the end.
    pub is_skipped: bool,
}

#[derive(Debug)]
pub struct EventLog {
    execution_id: ExecutionId,
    attempt: u32,
    path: PathBuf,
    output_bytes_max: u64,
    /// Held while an event is written, and synced where it shows a state. Readers do not wait for it.
    writing: Mutex<()>,
    inner: Mutex<Inner>,
    /// Number of the last event that is known to be on disk.
    synced: AtomicU64,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct Inner {
    file: Arc<File>,
    /// Number and place of each event. Numbers grow by one, but over a gap.
    events: Vec<(u64, u64)>,
    length: u64,
    /// Size of the output of all iterations.
    output_bytes: u64,
    truncated: bool,
    /// Events were lost, and output with them.
    has_gap: bool,
    written: Written,
    /// The event with which the execution ended.
    end: Option<EventKind>,
}

impl EventLog {
    /// `output_bytes_max`: what is kept of the execution's output; the rest is dropped behind a mark.
    pub fn open(path: &Path, execution_id: ExecutionId, attempt: u32, output_bytes_max: u64) -> Result<Self> {
        let failed = |e: std::io::Error| {
            Error::new(ErrorCode::Storage, format!("the event log {} cannot be opened", path.display()))
                .source(e)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let mut inner = Inner {
            file: Arc::new(file),
            events: Vec::new(),
            length: 0,
            output_bytes: 0,
            truncated: false,
            has_gap: false,
            written: Written::default(),
            end: None,
        };
        let mut progress = Progress::default();
        let mut rest = Bytes::from(bytes);
        let total = rest.len() as u64;
        while let Some((event, position)) = next_event(&mut rest) {
            let at = inner.length;
            inner.events.push((event.sequence, at));
            inner.length = total - rest.len() as u64;
            inner.count(&event.kind, position);
            note(&mut progress, &event);
        }
        inner.file.set_len(inner.length).map_err(failed)?;
        (&*inner.file).seek(SeekFrom::Start(inner.length)).map_err(failed)?;
        let synced = AtomicU64::new(0);
        let progress = watch::channel(progress).0;
        let (writing, inner, path) = (Mutex::default(), Mutex::new(inner), path.to_owned());
        Ok(Self { execution_id, attempt, path, output_bytes_max, writing, inner, synced, progress })
    }

    fn begin_writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// State of one stream of the latest iteration.
    pub fn kept(&self, stream: Stream) -> Kept {
        self.lock().written.stream(stream).clone()
    }

    /// Bytes that the output budget still lets through.
    pub fn output_room(&self) -> u64 {
        let inner = self.lock();
        if inner.truncated { 0 } else { self.output_bytes_max.saturating_sub(inner.output_bytes) }
    }

    /// True once the output budget has ended the beginning of the output.
    pub fn is_truncated(&self) -> bool {
        self.lock().truncated
    }

    /// Notes that all output of the latest iteration to its end, but for marked gaps, is in the log.
    pub fn note_output_end(&self) {
        self.lock().written.is_end_known = true;
    }

    /// How the latest iteration ended, where that is told already.
    pub fn iteration_end(&self) -> Option<IterationEnd> {
        self.lock().written.end.clone()
    }

    /// The end of what the latest iteration wrote to stderr.
    pub fn stderr_tail(&self) -> String {
        String::from_utf8_lossy(&self.lock().written.stderr_tail).into_owned()
    }

    /// Returns the last line of the latest iteration's stdout. Returns `None` unless the log is known to have the end of
    /// stdout.
    pub fn last_line(&self) -> Option<Bytes> {
        let inner = self.lock();
        let Written { line, next_line, is_end_known, .. } = &inner.written;
        let last = if next_line.is_empty() { line } else { next_line };
        let is_known = !inner.has_gap && (!inner.truncated || *is_end_known);
        is_known.then(|| Bytes::copy_from_slice(last))
    }

    /// Bytes on disk.
    pub fn length(&self) -> u64 {
        self.lock().length
    }

    /// Appends an event on a thread that may block: what shows a state is on disk when this returns.
    ///
    /// # Cancel safety
    /// The event may be appended though the caller has gone.
    pub async fn append_synced(self: &Arc<Self>, kind: EventKind) -> Result<()> {
        let log = Arc::clone(self);
        let appended = tokio::task::spawn_blocking(move || log.append(kind)).await;
        appended.map_err(|error| Error::internal("appending an event ended").source(error))?
    }

    /// Appends an event, on disk before anybody is told. What shows a state is synced.
    pub fn append(&self, kind: EventKind) -> Result<()> {
        self.append_output(kind, None)
    }

    /// Appends output or a mark of skipped output, with the place where reading continues behind it.
    pub fn append_output(&self, kind: EventKind, position: Option<Position>) -> Result<()> {
        let writing = self.begin_writing();
        let progress = *self.progress.borrow();
        // A start that is told is not told again, by a caller that does not know of the one who has gone.
        let is_told =
            matches!(kind, EventKind::IterationStarted { iteration } if iteration <= progress.iteration);
        if progress.ended || is_told {
            return Ok(());
        }
        self.write(&writing, kind, position)
    }

    fn write(&self, _: &MutexGuard<'_, ()>, kind: EventKind, position: Option<Position>) -> Result<()> {
        let (file, length, last) = {
            let inner = self.lock();
            (Arc::clone(&inner.file), inner.length, inner.last_sequence())
        };
        let sequence = match kind {
            EventKind::Gap { last, .. } => last,
            _ => last + 1,
        };
        let event = EventView { sequence, attempt: self.attempt, time_ms: now_ms(), kind };
        let mut wire = event_encoding::to_wire(&self.execution_id, &event);
        if let Some(pb::execution_event::Event::Output(chunk)) = &mut wire.event {
            chunk.position = position.as_ref().map(Position::to_wire);
        }
        let bytes = wire.encode_length_delimited_to_vec();
        let is_synced = event.kind.state().is_some() || matches!(event.kind, EventKind::Gap { .. });
        let written = (&*file).write_all(&bytes).and_then(|()| match is_synced {
            true => file.sync_data(),
            false => Ok(()),
        });
        if let Err(error) = written {
            // Half an event must not stay before the next one.
            let _ = file.set_len(length).and_then(|()| (&*file).seek(SeekFrom::Start(length)));
            return Err(Error::new(
                ErrorCode::Storage,
                format!("the event log {} cannot be written", self.path.display()),
            )
            .remedy("free some disk space on the node")
            .source(error));
        }
        if is_synced {
            self.synced.fetch_max(sequence, Ordering::AcqRel);
        }
        let mut inner = self.lock();
        inner.events.push((sequence, length));
        inner.length += bytes.len() as u64;
        inner.count(&event.kind, position);
        self.progress.send_modify(|progress| note(progress, &event));
        Ok(())
    }

    /// Makes the log continue after `sequence`, which the controller has stored, where it ends before.
    ///
    /// The end of a log may be lost with the machine's power. Numbers that the controller knows are never given to
    /// other events: a gap that the controller is told of covers them, and an end that was written with a lower
    /// number is repeated behind it. No result is derived from output with a hole in it.
    pub async fn ensure_reaches(self: &Arc<Self>, sequence: u64) -> Result<()> {
        if sequence <= self.progress.borrow().last_sequence {
            return Ok(());
        }
        let log = Arc::clone(self);
        let appended = tokio::task::spawn_blocking(move || log.fill_gap(sequence)).await;
        appended.map_err(|error| Error::internal("appending an event ended").source(error))?
    }

    fn fill_gap(&self, sequence: u64) -> Result<()> {
        let writing = self.begin_writing();
        let (last, end) = {
            let inner = self.lock();
            (inner.last_sequence(), inner.end.clone())
        };
        if sequence <= last {
            return Ok(());
        }
        tracing::warn!(execution_id = %self.execution_id, last, sequence, "events of the log are lost");
        self.write(&writing, EventKind::Gap { first: last + 1, last: sequence.saturating_add(1) }, None)?;
        match end {
            Some(end) => self.write(&writing, end, None),
            None => Ok(()),
        }
    }

    /// Puts all events up to `sequence` on disk, where they are not yet.
    ///
    /// Events that the controller has received must outlive a power cut here: the log would otherwise continue with
    /// other events under the same numbers.
    pub async fn sync(&self, sequence: u64) -> Result<()> {
        if self.synced.load(Ordering::Acquire) >= sequence {
            return Ok(());
        }
        let file = Arc::clone(&self.lock().file);
        let reached = self.progress.borrow().last_sequence;
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
        let failed = |source: std::io::Error| {
            Error::new(ErrorCode::Storage, format!("the event log {} cannot be synced", self.path.display()))
                .source(source)
        };
        synced.map_err(|e| failed(std::io::Error::other(e)))?.map_err(failed)?;
        self.synced.fetch_max(reached, Ordering::AcqRel);
        Ok(())
    }

    /// Events after a number, some at a time; empty at the end of what there is.
    pub fn read_after(&self, sequence: u64) -> Result<Vec<EventView>> {
        let (bytes, count) = {
            let inner = self.lock();
            let first = inner.events.partition_point(|(number, _)| *number <= sequence);
            let Some(&(_, start)) = inner.events.get(first) else { return Ok(Vec::new()) };
            let mut end = inner.length;
            let mut count = inner.events.len() - first;
            if end - start > READ_BYTES_MAX {
                let fits =
                    inner.events[first..].iter().take_while(|(_, at)| at - start <= READ_BYTES_MAX).count();
                count = fits.saturating_sub(1).max(1);
                end = inner.events.get(first + count).map_or(inner.length, |(_, at)| *at);
            }
            let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
            inner.file.read_exact_at(&mut bytes, start).map_err(|e| {
                Error::new(
                    ErrorCode::Storage,
                    format!("the event log {} cannot be read", self.path.display()),
                )
                .source(e)
            })?;
            (Bytes::from(bytes), count)
        };
        let mut rest = bytes;
        let mut events = Vec::with_capacity(count);
        while let Some((event, _)) = next_event(&mut rest) {
            events.push(event);
        }
        Ok(events)
    }
}

impl Inner {
    fn last_sequence(&self) -> u64 {
        self.events.last().map_or(0, |(number, _)| *number)
    }

    fn count(&mut self, kind: &EventKind, position: Option<Position>) {
        match kind {
            EventKind::IterationStarted { .. } => self.written = Written::default(),
            EventKind::IterationCompleted { .. } => self.written.end = Some(IterationEnd::Completed),
            EventKind::IterationFailed { failure, exit_code, stderr_tail, .. } => {
                self.written.end = Some(IterationEnd::Failed {
                    failure: failure.clone(),
                    exit_code: *exit_code,
                    stderr_tail: stderr_tail.clone(),
                });
            }
            EventKind::Output { stream, data, truncated } => {
                self.truncated |= truncated;
                self.output_bytes += data.len() as u64;
                self.written.take(*stream, data);
                self.written.move_to(*stream, position);
            }
            EventKind::OutputSkipped { stream, .. } => {
                self.written.skip(*stream);
                self.written.move_to(*stream, position);
            }
            EventKind::Gap { .. } => self.has_gap = true,
            kind if kind.state().is_some_and(aegis_types::execution::lifecycle::State::is_final) => {
                self.end = Some(kind.clone());
            }
            _ => {}
        }
    }
}

impl Written {
    fn stream(&self, stream: Stream) -> &Kept {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn stream_mut(&mut self, stream: Stream) -> &mut Kept {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn move_to(&mut self, stream: Stream, position: Option<Position>) {
        if position.is_some() {
            self.stream_mut(stream).position = position;
        }
    }

    /// Starts the end of a stream behind a gap. Lines are not joined over it.
    fn skip(&mut self, stream: Stream) {
        self.stream_mut(stream).is_skipped = true;
        match stream {
            Stream::Stdout => {
                self.line.clear();
                self.next_line.clear();
            }
            Stream::Stderr => self.stderr_tail.clear(),
        }
    }

    fn take(&mut self, stream: Stream, data: &[u8]) {
        self.stream_mut(stream).bytes += data.len() as u64;
        match stream {
            Stream::Stdout => {
                for part in data.split_inclusive(|byte| *byte == b'\n') {
                    // One byte more than a line may have shows that it is too long.
                    let room = (LINE_BYTES_MAX + 1).saturating_sub(self.next_line.len());
                    self.next_line.extend_from_slice(&part[..part.len().min(room)]);
                    if part.ends_with(b"\n") {
                        let whole = std::mem::take(&mut self.next_line);
                        if !whole.trim_ascii().is_empty() {
                            self.line = whole;
                        }
                    }
                }
            }
            Stream::Stderr => {
                self.stderr_tail.extend_from_slice(data);
                let over = self.stderr_tail.len().saturating_sub(STDERR_TAIL_BYTES);
                self.stderr_tail.advance(over);
            }
        }
    }
}

fn note(progress: &mut Progress, event: &EventView) {
    progress.last_sequence = event.sequence;
    if let EventKind::IterationStarted { iteration } = event.kind {
        progress.iteration = iteration;
        let started = moment(event.time_ms, now_ms(), Instant::now());
        progress.first_started.get_or_insert(started);
        progress.iteration_started = Some(started);
    }
    progress.ended |= event.kind.state().is_some_and(aegis_types::execution::lifecycle::State::is_final);
}

/// Reads the next event and the position in the output after it. Returns `None` at the end, and at a torn or damaged
/// tail.
fn next_event(rest: &mut Bytes) -> Option<(EventView, Option<Position>)> {
    let mut ahead = rest.clone();
    let length = prost::decode_length_delimiter(&mut ahead).ok()?;
    if length > EVENT_BYTES_MAX || length > ahead.len() {
        return None;
    }
    let mut wire = pb::ExecutionEvent::decode(ahead.split_to(length)).ok()?;
    // Zeros at the end of a file read as an event without anything.
    if wire.sequence == 0 {
        return None;
    }
    let position = match &mut wire.event {
        Some(pb::execution_event::Event::Output(chunk)) => chunk.position.take().map(Position::from_wire),
        _ => None,
    };
    let event = event_encoding::from_wire(wire).ok()?;
    *rest = ahead;
    Some((event, position))
}

/// Returns the moment of a wall-clock time on the monotonic clock, where the wall clock stands at `wall_ms` now. A time
/// that is still to come, by a clock that was set back, is now.
fn moment(time_ms: i64, wall_ms: i64, now: Instant) -> Instant {
    let ago = std::time::Duration::from_millis(wall_ms.saturating_sub(time_ms).max(0).unsigned_abs());
    now.checked_sub(ago).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT_BYTES_MAX: u64 = 10 * 1024 * 1024;

    fn log(path: &Path) -> EventLog {
        EventLog::open(path, ExecutionId::parse("exec-1").unwrap(), 1, OUTPUT_BYTES_MAX).unwrap()
    }

    fn output(text: &'static str) -> EventKind {
        EventKind::Output {
            stream: Stream::Stdout,
            data: Bytes::from_static(text.as_bytes()),
            truncated: false,
        }
    }

    #[test]
    fn events_are_numbered_and_read_from_any_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let first = log(&path);
        for kind in [EventKind::Started, EventKind::IterationStarted { iteration: 1 }, output("a")] {
            first.append(kind).unwrap();
        }
        let second = log(&path);
        second.append(output("b")).unwrap();
        let sequences =
            |after| second.read_after(after).unwrap().iter().map(|e| e.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(0), [1, 2, 3, 4]);
        assert_eq!(sequences(2), [3, 4]);
        assert!(sequences(4).is_empty() && sequences(u64::MAX).is_empty());
        assert_eq!(second.kept(Stream::Stdout).bytes, 2);
        assert_eq!(second.progress().borrow().iteration, 1);
    }

    #[test]
    fn lost_tail_becomes_a_gap_and_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let first = log(&path);
        for kind in [EventKind::Started, EventKind::IterationStarted { iteration: 1 }, output("{\"a\":1}\n")]
        {
            first.append(kind).unwrap();
        }
        first.fill_gap(3).unwrap();
        assert_eq!(first.progress().borrow().last_sequence, 3, "nothing is missing");
        first.fill_gap(14).unwrap();
        first.append(output("x")).unwrap();
        let reopened = log(&path);
        reopened.append(EventKind::Completed { result: None }).unwrap();
        let numbers =
            |after| reopened.read_after(after).unwrap().iter().map(|e| e.sequence).collect::<Vec<_>>();
        assert_eq!(numbers(0), [1, 2, 3, 15, 16, 17]);
        assert_eq!((numbers(3), numbers(9), numbers(15)), (vec![15, 16, 17], vec![15, 16, 17], vec![16, 17]));
        let gap = reopened.read_after(3).unwrap().remove(0).kind;
        assert!(matches!(gap, EventKind::Gap { first: 4, last: 15 }), "{gap:?}");
        assert!(reopened.last_line().is_none(), "a result is not derived over a hole");
    }

    #[test]
    fn end_below_a_known_number_is_told_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(&directory.path().join("events"));
        for kind in [EventKind::Started, EventKind::Completed { result: Some("1".into()) }] {
            log.append(kind).unwrap();
        }
        log.fill_gap(14).unwrap();
        log.fill_gap(14).unwrap();
        let told = log.read_after(14).unwrap();
        assert_eq!(told.iter().map(|event| event.sequence).collect::<Vec<_>>(), [15, 16]);
        assert!(matches!(told[0].kind, EventKind::Gap { first: 3, last: 15 }));
        assert!(matches!(&told[1].kind, EventKind::Completed { result: Some(result) } if result == "1"));
    }

    #[tokio::test]
    async fn sync_reaches_what_was_appended() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(&directory.path().join("events"));
        log.append(EventKind::Started).unwrap();
        assert_eq!(log.synced.load(Ordering::Acquire), 1, "a state is synced as it is appended");
        log.append(output("a")).unwrap();
        assert_eq!(log.synced.load(Ordering::Acquire), 1);
        log.sync(2).await.unwrap();
        assert_eq!(log.synced.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_torn_tail_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let whole = log(&path);
        whole.append(EventKind::Started).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        whole.append(output("lost")).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in length as usize + 1..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let reopened = log(&path);
            assert_eq!(reopened.progress().borrow().last_sequence, 1);
            reopened.append(output("next")).unwrap();
            assert_eq!(reopened.read_after(0).unwrap().len(), 2);
        }
    }

    #[test]
    fn reopened_log_keeps_positions_and_the_gap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let at = |bytes| Some(Position { time: "t".into(), ordinal: 2, bytes });
        {
            let log = log(&path);
            log.append(EventKind::IterationStarted { iteration: 1 }).unwrap();
            log.append_output(output("{\"head\":1}\n"), at(11)).unwrap();
            assert_eq!(log.output_room(), OUTPUT_BYTES_MAX - 11);
            let end = EventKind::Output { stream: Stream::Stdout, data: Bytes::new(), truncated: true };
            log.append_output(end, None).unwrap();
            assert_eq!(log.kept(Stream::Stdout).position, at(11), "a mark moves nothing");
        }
        let log = log(&path);
        assert_eq!((log.output_room(), log.last_line()), (0, None), "the end is not known");
        let skipped = EventKind::OutputSkipped { stream: Stream::Stdout, bytes: 5, at_least: false };
        log.append_output(skipped, at(16)).unwrap();
        log.append_output(output("tail"), at(20)).unwrap();
        log.note_output_end();
        let kept = Kept { bytes: 15, position: at(20), is_skipped: true };
        assert_eq!((log.kept(Stream::Stdout), log.last_line().unwrap()), (kept.clone(), "tail".into()));
        let reopened = super::tests::log(&path);
        assert_eq!((reopened.kept(Stream::Stdout), reopened.last_line()), (kept, None));
        let told = reopened.read_after(3).unwrap();
        assert!(
            matches!(told[0].kind, EventKind::OutputSkipped { bytes: 5, at_least: false, .. }),
            "{told:?}"
        );
    }

    #[test]
    fn line_beyond_the_limit_is_seen_as_too_long() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(&directory.path().join("events"));
        let data = Bytes::from(format!("[1]{}", " ".repeat(LINE_BYTES_MAX)));
        log.append(EventKind::Output { stream: Stream::Stdout, data, truncated: false }).unwrap();
        assert!(log.last_line().unwrap().len() > LINE_BYTES_MAX);
    }
}
