//! The disk of a worker's engine: how full it is, and what is done for room.
//!
//! One task looks every few seconds, and ends with the supervisor. Images that no execution uses go first.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use nix::sys::statvfs::statvfs;

use super::{
    images::ImageBounds,
    policy::IMAGE_DISK_PERCENT_DEFAULT,
    supervisor::{DISK_BYTES_MIN, Shared},
};
use crate::clock::now_ms;

/// Between looks. A disk that takes 200 MB/s fills by 1 GB meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Free space below which unused images go, whatever their share: well above what stops new work.
const IMAGES_FREE_MIN: u64 = 8 * DISK_BYTES_MIN;

/// Size and free space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    pub total: u64,
    pub free: u64,
}

impl Disk {
    /// Measures the file system of a path.
    pub fn of(path: &Path) -> Option<Self> {
        let found = statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        Some(Self { total: bytes(found.blocks()), free: bytes(found.blocks_available()) })
    }

    /// A small disk restores a tenth of its size rather than a fixed amount.
    fn image_bounds(self, percent: u32) -> ImageBounds {
        let part = |percent: u64| self.total / 100 * percent;
        ImageBounds { bytes_max: part(u64::from(percent)), free_min: IMAGES_FREE_MIN.min(part(10)) }
    }
}

/// Starts the task.
pub(super) fn spawn(shared: &Arc<Shared>) {
    tokio::spawn(watch(Arc::downgrade(shared)));
}

async fn watch(shared: Weak<Shared>) {
    let mut root = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        if root.is_none() {
            root = root_directory(&shared).await;
        }
        // The data directory of a node in a container lies on the engine's disk as a rule.
        let path = root.clone().unwrap_or_else(|| shared.data_path.clone());
        make_room(&shared, &path).await;
    }
}

/// Returns the engine's directory where this process sees it.
async fn root_directory(shared: &Shared) -> Option<PathBuf> {
    let root = shared.engine.root_directory().await.ok()??;
    root.is_dir().then_some(root)
}

async fn measure(path: PathBuf) -> Option<Disk> {
    // A dead network file system holds its caller.
    tokio::task::spawn_blocking(move || Disk::of(&path)).await.ok()?
}

async fn make_room(shared: &Shared, path: &Path) {
    while let Some(disk) = measure(path.to_owned()).await {
        let percent = shared.policy.load().max_image_disk_percent.unwrap_or(IMAGE_DISK_PERCENT_DEFAULT);
        let waited_for = || images_waited_for(shared);
        match shared.images.evict_one(waited_for, disk, disk.image_bounds(percent), now_ms()).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(error = %error.chain(), "unused images are not removed now");
                return;
            }
        }
    }
}

/// Returns the images of executions that have not ended.
pub(super) fn images_waited_for(shared: &Shared) -> HashSet<String> {
    let runs = shared.runs();
    let open = runs.values().filter(|run| !run.log.progress().borrow().ended);
    open.map(|run| run.journaled.order.manifest.image.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_disk_keeps_a_tenth_free_of_images() {
        const GIB: u64 = 1024 * 1024 * 1024;
        let bounds = |total| Disk { total, free: 0 }.image_bounds(50);
        assert_eq!(bounds(100 * GIB), ImageBounds { bytes_max: 50 * GIB, free_min: GIB });
        assert_eq!(bounds(800), ImageBounds { bytes_max: 400, free_min: 80 });
        assert!(Disk::of(Path::new("/")).is_some_and(|disk| disk.total > disk.free));
        assert_eq!(Disk::of(Path::new("/no/such/place")), None);
    }
}
