//! Waits for SQLite, whose threads do not know simulated time.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Pause between checks.
const REAL_PAUSE: Duration = Duration::from_micros(20);
/// Longest time for a new thread to begin to run on a machine that is busy.
const REAL_START_MAX: Duration = Duration::from_secs(1);
const THREADS: &str = "/proc/self/task";
const OWN_STAT: &str = "/proc/thread-self/stat";
/// Name of SQLite's threads, as the kernel shortens it.
const NAME: &str = "(sqlx-sqlite-";

/// SQLite's threads in this process. The threads of concurrent tests count too, which only costs a moment.
#[derive(Default)]
pub struct Sqlite {
    /// Number of threads; a change triggers a new search.
    threads: u64,
    stats: Vec<PathBuf>,
    /// Time since when a thread made by this one has not begun to run.
    unnamed_since: Option<Instant>,
    /// Threads that never get their own name, for example those of other tests.
    nameless: HashSet<String>,
}

/// Parses number and name of a thread from `stat`: `7 (name) S ...`.
fn identity(stat: &str) -> Option<(&str, &str)> {
    stat.rsplit_once(") ")?.0.split_once(' ')
}

impl Sqlite {
    /// Returns once every thread waits for a request, so that earlier requests are done.
    pub fn settle(&mut self) {
        while self.is_busy() {
            std::thread::sleep(REAL_PAUSE);
        }
    }

    fn is_busy(&mut self) -> bool {
        let threads = fs::metadata(THREADS).unwrap().nlink();
        if threads != self.threads || self.unnamed_since.is_some() {
            self.look(threads);
            return true;
        }
        self.stats.iter().any(|stat| {
            // A thread that has ended is not busy.
            let stat = fs::read_to_string(stat).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('S'))
        })
    }

    /// Finds the threads. A new one bears the name of the thread that made it until it begins to run, and asks for
    /// nothing before.
    fn look(&mut self, threads: u64) {
        let own = fs::read_to_string(OWN_STAT).unwrap();
        let (own_id, own_name) = identity(&own).unwrap();
        let mut unnamed = Vec::new();
        self.stats.clear();
        for task in fs::read_dir(THREADS).unwrap() {
            let path = task.unwrap().path().join("stat");
            let stat = fs::read_to_string(&path).unwrap_or_default();
            match identity(&stat) {
                Some((_, name)) if name.starts_with(NAME) => self.stats.push(path),
                Some((id, name)) if name == own_name && id != own_id && !self.nameless.contains(id) => {
                    unnamed.push(id.to_owned());
                }
                _ => {}
            }
        }
        self.threads = threads;
        let since = self.unnamed_since.unwrap_or_else(Instant::now);
        if since.elapsed() >= REAL_START_MAX {
            self.nameless.extend(unnamed.drain(..));
        }
        self.unnamed_since = (!unnamed.is_empty()).then_some(since);
    }
}
