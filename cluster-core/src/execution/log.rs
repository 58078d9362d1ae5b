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
    sync::{Mutex, MutexGuard, PoisonError},
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
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Where the event with number `index + 1` begins.
    offsets: Vec<u64>,
    length: u64,
    /// Of all iterations.
    output_bytes: u64,
    truncated: bool,
    written: Written,
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
            file,
            offsets: Vec::new(),
            length: 0,
            output_bytes: 0,
            truncated: false,
            written: Written::default(),
        };
        let mut progress = Progress::default();
        let mut rest = Bytes::from(bytes);
        let total = rest.len() as u64;
        while let Some(event) = next_event(&mut rest) {
            inner.offsets.push(inner.length);
            inner.length = total - rest.len() as u64;
            inner.count(&event.kind);
            note(&mut progress, &event);
        }
        inner.file.set_len(inner.length).map_err(failed)?;
        inner.file.seek(SeekFrom::Start(inner.length)).map_err(failed)?;
        let progress = watch::channel(progress).0;
        let inner = Mutex::new(inner);
        Ok(Self { execution_id, attempt, path: path.to_owned(), output_bytes_max, inner, progress })
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
        (!inner.truncated).then(|| Bytes::copy_from_slice(last))
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
        let event = EventView {
            sequence: inner.offsets.len() as u64 + 1,
            attempt: self.attempt,
            time_ms: now_ms(),
            kind,
        };
        let bytes = encoding::to_wire(&self.execution_id, &event).encode_length_delimited_to_vec();
        let written = inner.file.write_all(&bytes).and_then(|()| match event.kind.state() {
            Some(_) => inner.file.sync_data(),
            None => Ok(()),
        });
        if let Err(error) = written {
            // Half an event must not stay before the next one.
            let length = inner.length;
            let _ = inner.file.set_len(length).and_then(|()| inner.file.seek(SeekFrom::Start(length)));
            return Err(Error::new(
                ErrorCode::Storage,
                format!("the event log {} cannot be written", self.path.display()),
            )
            .remedy("free some disk space on the node")
            .source(error));
        }
        let at = inner.length;
        inner.offsets.push(at);
        inner.length += bytes.len() as u64;
        inner.count(&event.kind);
        self.progress.send_modify(|progress| note(progress, &event));
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
            let first = usize::try_from(sequence).unwrap_or(usize::MAX);
            let Some(&start) = inner.offsets.get(first) else { return Ok(Vec::new()) };
            let mut end = inner.length;
            let mut count = inner.offsets.len() - first;
            if end - start > READ_BYTES_MAX {
                let fits =
                    inner.offsets[first..].iter().take_while(|at| **at - start <= READ_BYTES_MAX).count();
                count = fits.saturating_sub(1).max(1);
                end = inner.offsets.get(first + count).copied().unwrap_or(inner.length);
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
