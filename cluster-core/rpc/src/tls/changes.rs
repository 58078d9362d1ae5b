//! When certificate files may hold something else: as the system tells of it, and once a minute.
//!
//! The directories are watched and not the files: most tools put a new file in the place of the old one,
//! and mounted secrets change a link beside it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::credentials::REVIEW_INTERVAL;

/// Certificate and key are two files: both are mostly there when this is over.
const SETTLE: Duration = Duration::from_millis(300);

/// Ends its watching when it is dropped.
#[derive(Debug)]
pub struct Changes {
    changes: mpsc::Receiver<()>,
    _watcher: Option<RecommendedWatcher>,
}

impl Changes {
    pub fn of(files: &[&Path]) -> Self {
        // One is enough: whoever reads it looks at all files.
        let (changed, changes) = mpsc::channel(1);
        let watcher = watcher(files, changed);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "certificate files cannot be watched; they are looked at once a minute");
        }
        Self { changes, _watcher: watcher.ok() }
    }

    /// Waits until it is worth a look.
    pub async fn next(&mut self) {
        // The pause also finds changes on file systems that tell of none.
        match tokio::time::timeout(REVIEW_INTERVAL, self.changes.recv()).await {
            Ok(Some(())) => {
                tokio::time::sleep(SETTLE).await;
                let _ = self.changes.try_recv();
            }
            // Without a watcher.
            Ok(None) => tokio::time::sleep(REVIEW_INTERVAL).await,
            Err(_) => {}
        }
    }
}

fn watcher(files: &[&Path], changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Being read is no change, and it is we who read.
        if event.is_ok_and(|event| event.kind.is_access()) {
            return;
        }
        // Full: somebody is about to look anyway.
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
