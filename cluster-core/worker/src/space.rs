//! Size and free space of a disk, and the bounds that follow from them.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// On the disk of the data directory; below it no new work is taken.
pub const DISK_BYTES_MIN: u64 = 128 * 1024 * 1024;

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
    pub fn image_bounds(self, percent: u32) -> ImageBounds {
        let part = |percent: u64| self.total / 100 * percent;
        ImageBounds { bytes_max: part(u64::from(percent)), free_min: IMAGES_FREE_MIN.min(part(10)) }
    }

    pub fn is_nearly_full(self) -> bool {
        self.free < RUNNING_FREE_MIN.min(self.total / 20)
    }
}

/// Free space below which unused images go, whatever their share: well above what stops new work.
const IMAGES_FREE_MIN: u64 = 8 * DISK_BYTES_MIN;

/// Free space below which running executions are ended: twice what stops new work.
const RUNNING_FREE_MIN: u64 = 2 * DISK_BYTES_MIN;

/// Bounds of what images may take of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageBounds {
    /// All brought images together.
    pub bytes_max: u64,
    /// Free space that is restored by removing images.
    pub free_min: u64,
}
