//! Waits for SQLite, whose threads know nothing of simulated time.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

/// Between looks.
const REAL_PAUSE: Duration = Duration::from_micros(20);
/// For a thread to begin to run on a machine that is busy.
const REAL_START: Duration = Duration::from_millis(5);
const THREADS: &str = "/proc/self/task";
/// As the kernel shortens their names.
const NAME: &str = "(sqlx-sqlite-";

/// The threads of SQLite in this process. Those of tests that run beside this one count too, which costs a
/// moment and no more.
#[derive(Default)]
pub struct Sqlite {
    /// Their number tells when to look for them again.
    threads: u64,
    stats: Vec<PathBuf>,
}

impl Sqlite {
    /// Returns once every thread waits for a request: what was asked before is done then.
    pub fn settle(&mut self) {
        while self.is_busy() {
            std::thread::sleep(REAL_PAUSE);
        }
    }

    fn is_busy(&mut self) -> bool {
        let threads = fs::metadata(THREADS).unwrap().nlink();
        if threads != self.threads {
            let tasks = fs::read_dir(THREADS).unwrap();
            let stats = tasks.map(|task| task.unwrap().path().join("stat"));
            let named = |stat: &PathBuf| fs::read_to_string(stat).is_ok_and(|stat| stat.contains(NAME));
            self.stats = stats.filter(named).collect();
            self.threads = threads;
            // A thread has no name and asks for nothing until it has begun to run.
            std::thread::sleep(REAL_START);
            return true;
        }
        self.stats.iter().any(|stat| {
            // A thread that has ended is not busy.
            let stat = fs::read_to_string(stat).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('S'))
        })
    }
}
