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

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;

use super::{
    encoding,
    view::{EventKind, EventView, Stream},
};
use crate::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    ids::ExecutionId,
};

/// Output kept of one execution; the rest is dropped behind a mark.
pub const OUTPUT_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Events handed out at a time.
const READ_BYTES_MAX: u64 = 256 * 1024;
/// No event comes near it: an output event has at most a few dozen KiB.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a log says about its execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub last_sequence: u64,
    /// The container was started.
    pub running: bool,
    pub ended: bool,
}

#[derive(Debug)]
pub struct EventLog {
    execution_id: ExecutionId,
    attempt: u32,
    path: PathBuf,
    inner: Mutex<Inner>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Where the event with number `index + 1` begins.
    offsets: Vec<u64>,
    length: u64,
    stdout_bytes: u64,
    stderr_bytes: u64,
    truncated: bool,
}

impl EventLog {
    pub fn open(path: &Path, execution_id: ExecutionId, attempt: u32) -> Result<Self> {
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
            stdout_bytes: 0,
            stderr_bytes: 0,
            truncated: false,
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
        Ok(Self { execution_id, attempt, path: path.to_owned(), inner: Mutex::new(inner), progress })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Bytes of output that are in the log, by stream.
    pub fn output_bytes(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.stdout_bytes, inner.stderr_bytes)
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
            (inner.stdout_bytes + inner.stderr_bytes, inner.truncated)
        };
        if truncated {
            return Ok(false);
        }
        let left = OUTPUT_BYTES_MAX.saturating_sub(used);
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
        if let EventKind::Output { stream, data, truncated } = kind {
            self.truncated |= truncated;
            match stream {
                Stream::Stdout => self.stdout_bytes += data.len() as u64,
                Stream::Stderr => self.stderr_bytes += data.len() as u64,
            }
        }
    }
}

fn note(progress: &mut Progress, event: &EventView) {
    progress.last_sequence = event.sequence;
    progress.running |= matches!(event.kind, EventKind::IterationStarted { .. });
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

    fn log(path: &Path) -> EventLog {
        EventLog::open(path, ExecutionId::parse("exec-1").unwrap(), 1).unwrap()
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
        assert!(second.progress().borrow().running);
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
