//! Waits for changes of certificate files: notifications of the system, and a timeout of one minute.
//!
//! The directories are watched rather than the files. Most tools replace a file by a new one, and mounted secrets
//! change a link in the same directory.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::credentials::REVIEW_INTERVAL;

/// Delay after a change, since certificate and key are two files that change one after the other.
const SETTLE: Duration = Duration::from_millis(300);

/// Watcher of files, which stops when dropped.
#[derive(Debug)]
pub struct Changes {
    changes: mpsc::Receiver<()>,
    _watcher: Option<RecommendedWatcher>,
}

impl Changes {
    pub fn of(files: &[&Path]) -> Self {
        // A capacity of one suffices: the reader checks all files.
        let (changed, changes) = mpsc::channel(1);
        let watcher = watcher(files, changed);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "certificate files cannot be watched; they are looked at once a minute");
        }
        Self { changes, _watcher: watcher.ok() }
    }

    /// Waits until the files may have changed.
    pub async fn next(&mut self) {
        // The timeout also finds changes on file systems without notifications.
        match tokio::time::timeout(REVIEW_INTERVAL, self.changes.recv()).await {
            Ok(Some(())) => {
                tokio::time::sleep(SETTLE).await;
                let _ = self.changes.try_recv();
            }
            // There is no watcher.
            Ok(None) => tokio::time::sleep(REVIEW_INTERVAL).await,
            Err(_) => {}
        }
    }
}

fn watcher(files: &[&Path], changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reads are no changes, and this process reads the files itself.
        if event.is_ok_and(|event| event.kind.is_access()) {
            return;
        }
        // Full: a check is pending anyway.
        let _ = changed.try_send(());
    })?;
    let mut directories: Vec<PathBuf> = files
        .iter()
        .filter_map(|path| path.parent())
        .map(|parent| if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
        .collect();
    directories.sort();
    directories.dedup();
    for directory in directories {
        watcher.watch(&directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
