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

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::sync::watch;

use super::{
    encoding,
    view::{EventKind, EventView, Stream},
};
use crate::{
    clock::now_ms,
    error::{Error, ErrorCode, Failure, Result},
    ids::ExecutionId,
};

/// Of a line that may be a result.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// What the next iteration is told of this one's errors.
const STDERR_TAIL_BYTES: usize = 2048;
/// Events handed out at a time.
const READ_BYTES_MAX: u64 = 256 * 1024;
/// No event comes near it: an output event has at most a few dozen KiB.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a log says about its execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub last_sequence: u64,
    /// The latest whose container was started; 0 before the first.
    pub iteration: u32,
    /// When that was, in Unix milliseconds.
    pub iteration_started_ms: i64,
    pub ended: bool,
}

/// How an iteration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IterationEnd {
    Completed,
    Failed { failure: Failure, exit_code: Option<i32>, stderr_tail: String },
}

/// What the latest iteration wrote, as far as others need it.
#[derive(Debug, Default)]
struct Written {
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// The last line of stdout that has something in it, and what comes after it.
    line: BytesMut,
    next_line: BytesMut,
    stderr_tail: BytesMut,
    end: Option<IterationEnd>,
}

#[derive(Debug)]
pub struct EventLog {
    execution_id: ExecutionId,
    attempt: u32,
    path: PathBuf,
    output_bytes_max: u64,
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
    /// Of all iterations.
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
        while let Some(event) = next_event(&mut rest) {
            let at = inner.length;
            inner.events.push((event.sequence, at));
            inner.length = total - rest.len() as u64;
            inner.count(&event.kind);
            note(&mut progress, &event);
        }
        inner.file.set_len(inner.length).map_err(failed)?;
        (&*inner.file).seek(SeekFrom::Start(inner.length)).map_err(failed)?;
        let synced = AtomicU64::new(0);
        let progress = watch::channel(progress).0;
        let inner = Mutex::new(inner);
        Ok(Self { execution_id, attempt, path: path.to_owned(), output_bytes_max, inner, synced, progress })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Bytes of the latest iteration's output that are in the log, by stream.
    pub fn output_bytes(&self) -> (u64, u64) {
        let written = &self.lock().written;
        (written.stdout_bytes, written.stderr_bytes)
    }

    /// How the latest iteration ended, where that is told already.
    pub fn iteration_end(&self) -> Option<IterationEnd> {
        self.lock().written.end.clone()
    }

    /// The end of what the latest iteration wrote to stderr.
    pub fn stderr_tail(&self) -> String {
        String::from_utf8_lossy(&self.lock().written.stderr_tail).into_owned()
    }

    /// The last line of the latest iteration's stdout. None where not all of it is in the log.
    pub fn last_line(&self) -> Option<Bytes> {
        let inner = self.lock();
        let Written { line, next_line, .. } = &inner.written;
        let last = if next_line.is_empty() { line } else { next_line };
        (!inner.truncated && !inner.has_gap).then(|| Bytes::copy_from_slice(last))
    }

    /// Bytes on disk.
    pub fn length(&self) -> u64 {
        self.lock().length
    }

    /// Appends an event, on disk before anybody is told. What shows a state is synced.
    pub fn append(&self, kind: EventKind) -> Result<()> {
        let mut inner = self.lock();
        if self.progress.borrow().ended {
            return Ok(());
        }
        self.write(&mut inner, kind)
    }

    fn write(&self, inner: &mut Inner, kind: EventKind) -> Result<()> {
        let sequence = match kind {
            EventKind::Gap { last, .. } => last,
            _ => inner.last_sequence() + 1,
        };
        let event = EventView { sequence, attempt: self.attempt, time_ms: now_ms(), kind };
        let bytes = encoding::to_wire(&self.execution_id, &event).encode_length_delimited_to_vec();
        let is_synced = event.kind.state().is_some() || matches!(event.kind, EventKind::Gap { .. });
        let written = (&*inner.file).write_all(&bytes).and_then(|()| match is_synced {
            true => inner.file.sync_data(),
            false => Ok(()),
        });
        if let Err(error) = written {
            // Half an event must not stay before the next one.
            let length = inner.length;
            let _ = inner.file.set_len(length).and_then(|()| (&*inner.file).seek(SeekFrom::Start(length)));
            return Err(Error::new(
                ErrorCode::Storage,
                format!("the event log {} cannot be written", self.path.display()),
            )
            .remedy("free some disk space on the node")
            .source(error));
        }
        let at = inner.length;
        if is_synced {
            self.synced.fetch_max(sequence, Ordering::AcqRel);
        }
        inner.events.push((sequence, at));
        inner.length += bytes.len() as u64;
        inner.count(&event.kind);
        self.progress.send_modify(|progress| note(progress, &event));
        Ok(())
    }

    /// Makes the log continue after `sequence`, which the controller has stored, where it ends before.
    ///
    /// The end of a log may be lost with the machine's power. Numbers that the controller knows are never given to
    /// other events: a gap that the controller is told of covers them, and an end that was written with a lower
    /// number is repeated behind it. No result is derived from output with a hole in it.
    pub fn ensure_reaches(&self, sequence: u64) -> Result<()> {
        let mut inner = self.lock();
        let last = inner.last_sequence();
        if sequence <= last {
            return Ok(());
        }
        tracing::warn!(execution_id = %self.execution_id, last, sequence, "events of the log are lost");
        let end = inner.end.clone();
        self.write(&mut inner, EventKind::Gap { first: last + 1, last: sequence.saturating_add(1) })?;
        match end {
            Some(end) => self.write(&mut inner, end),
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

    /// Appends output within the budget; false once nothing more is taken.
    pub fn append_output(&self, stream: Stream, mut data: Bytes) -> Result<bool> {
        let (used, truncated) = {
            let inner = self.lock();
            (inner.output_bytes, inner.truncated)
        };
        if truncated {
            return Ok(false);
        }
        let left = self.output_bytes_max.saturating_sub(used);
        let over = data.len() as u64 > left;
        if over {
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.append(EventKind::Output { stream, data, truncated: over })?;
        Ok(!over)
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
        while let Some(event) = next_event(&mut rest) {
            events.push(event);
        }
        Ok(events)
    }
}

impl Inner {
    fn last_sequence(&self) -> u64 {
        self.events.last().map_or(0, |(number, _)| *number)
    }

    fn count(&mut self, kind: &EventKind) {
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
            }
            EventKind::Gap { .. } => self.has_gap = true,
            kind if kind.state().is_some_and(super::lifecycle::State::is_final) => {
                self.end = Some(kind.clone());
            }
            _ => {}
        }
    }
}

impl Written {
    fn take(&mut self, stream: Stream, data: &[u8]) {
        match stream {
            Stream::Stdout => {
                self.stdout_bytes += data.len() as u64;
                for part in data.split_inclusive(|byte| *byte == b'\n') {
                    let room = LINE_BYTES_MAX.saturating_sub(self.next_line.len());
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
                self.stderr_bytes += data.len() as u64;
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
        progress.iteration_started_ms = event.time_ms;
    }
    progress.ended |= event.kind.state().is_some_and(super::lifecycle::State::is_final);
}

/// None at the end, and at a torn or damaged tail.
fn next_event(rest: &mut Bytes) -> Option<EventView> {
    let mut ahead = rest.clone();
    let length = prost::decode_length_delimiter(&mut ahead).ok()?;
    if length > EVENT_BYTES_MAX || length > ahead.len() {
        return None;
    }
    let event = encoding::decode(&ahead.split_to(length)).ok()?;
    *rest = ahead;
    Some(event)
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
    fn events_are_numbered_and_read_from_any_number_also_after_reopening() {
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
        assert_eq!(second.output_bytes(), (2, 0));
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
        first.ensure_reaches(3).unwrap();
        assert_eq!(first.progress().borrow().last_sequence, 3, "nothing is missing");
        first.ensure_reaches(14).unwrap();
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
        log.ensure_reaches(14).unwrap();
        log.ensure_reaches(14).unwrap();
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
    fn output_stops_at_its_budget_with_a_mark() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(&directory.path().join("events"));
        let chunk = Bytes::from(vec![b'x'; 1024 * 1024]);
        for _ in 0..10 {
            assert!(log.append_output(Stream::Stdout, chunk.clone()).unwrap());
        }
        assert!(!log.append_output(Stream::Stderr, chunk.clone()).unwrap());
        assert!(!log.append_output(Stream::Stdout, chunk).unwrap());
        assert_eq!(log.output_bytes(), (OUTPUT_BYTES_MAX, 0));
        let (mut after, mut last) = (0, None);
        loop {
            let events = log.read_after(after).unwrap();
            let Some(event) = events.last() else { break };
            after = event.sequence;
            last = Some(event.kind.clone());
        }
        assert!(matches!(last, Some(EventKind::Output { truncated: true, .. })));
    }
}
