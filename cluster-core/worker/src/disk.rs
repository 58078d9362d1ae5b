//! The disk of a worker's engine: how full it is, and what is done for room.
//!
//! One task looks every few seconds, and ends with the supervisor. Images that no execution uses are removed first. An
//! execution whose workspace outgrows the policy is ended. Where the disk is nearly full all the same, executions are
//! ended one at a time, the largest first, before the journal's own reserve is used.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use aegis_engine::{DiskUsage, home_volume, workspace_volume};
use aegis_types::{
    clock::now_ms,
    execution::limits::{IMAGE_DISK_PERCENT_DEFAULT, WORKSPACE_MB_DEFAULT},
};
use tokio::time::Instant;

use crate::{
    space::Disk,
    state::{Run, Shared},
};

/// Between looks. A disk that takes 200 MB/s fills by 1 GB meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The engine measures for a tenth of the time at most.
const USAGE_PAUSE_FACTOR: u32 = 10;
/// The space of an ended execution is waited for, before another one is ended.
const FREED_WITHIN: Duration = Duration::from_secs(30);
const MIB: u64 = 1024 * 1024;

/// Space that a running execution takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Usage<K> {
    execution: K,
    layer: u64,
    workspace: u64,
}

/// Why an execution is ended for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Workspace { bytes_max: u64 },
    DiskFull { bytes: u64 },
}

impl Reason {
    fn message(self) -> String {
        match self {
            Reason::Workspace { bytes_max } => {
                format!("its workspace has more than {} MiB, which the node's policy allows", bytes_max / MIB)
            }
            Reason::DiskFull { bytes } => {
                format!("the node's disk is nearly full, and it took the most space, {} MiB", bytes / MIB)
            }
        }
    }
}

/// Chooses executions to end: each above the workspace bound; else, on a disk that is nearly full, the largest one.
/// `waits` holds while the space of an earlier choice is not free yet.
fn choose_ends<K>(usages: Vec<Usage<K>>, disk: Disk, workspace_max: u64, waits: bool) -> Vec<(K, Reason)> {
    let (over, within): (Vec<_>, Vec<_>) =
        usages.into_iter().partition(|usage| usage.workspace > workspace_max);
    if !over.is_empty() {
        let reason = Reason::Workspace { bytes_max: workspace_max };
        return over.into_iter().map(|usage| (usage.execution, reason)).collect();
    }
    if waits || !disk.is_nearly_full() {
        return Vec::new();
    }
    let sized =
        within.into_iter().map(|usage| (usage.layer.saturating_add(usage.workspace), usage.execution));
    let largest = sized.filter(|(bytes, _)| *bytes > 0).max_by_key(|(bytes, _)| *bytes);
    largest.map(|(bytes, execution)| (execution, Reason::DiskFull { bytes })).into_iter().collect()
}

/// Starts the task.
pub(super) fn spawn(shared: &Arc<Shared>) {
    tokio::spawn(watch(Arc::downgrade(shared)));
}

async fn watch(shared: Weak<Shared>) {
    let (mut root, mut room) = (None, Room::default());
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        if root.is_none() {
            root = root_directory(&shared).await;
        }
        // The data directory of a node in a container lies on the engine's disk as a rule.
        let path = root.clone().unwrap_or_else(|| shared.data_path.clone());
        remove_images(&shared, &path).await;
        if let Some(disk) = measure(path).await {
            room.end_for_room(&shared, disk).await;
        }
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

async fn remove_images(shared: &Shared, path: &Path) {
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
    open_runs(shared).into_iter().map(|run| run.journaled.order.manifest.image.clone()).collect()
}

fn open_runs(shared: &Shared) -> Vec<Arc<Run>> {
    let runs = shared.runs();
    runs.values().filter(|run| !run.log.progress().borrow().ended).cloned().collect()
}

/// State of the task between looks.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The engine is not asked for its usage before.
    measured_until: Option<Instant>,
    /// The execution that was ended last for a full disk.
    ended: Option<(Arc<Run>, Instant)>,
}

impl Room {
    /// Ends executions where there must be room.
    pub async fn end_for_room(&mut self, shared: &Shared, disk: Disk) {
        let runs = open_runs(shared);
        let has_workspace = runs.iter().any(|run| run.journaled.order.manifest.has_workspace());
        if runs.is_empty() || !has_workspace && !disk.is_nearly_full() {
            return;
        }
        if self.measured_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let since = Instant::now();
        let usage = shared.engine.disk_usage().await;
        self.measured_until = Some(Instant::now() + since.elapsed() * USAGE_PAUSE_FACTOR);
        let usage = match usage {
            Ok(usage) => usage,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the space of executions is not known");
                return;
            }
        };
        let usages = runs.into_iter().map(|run| usage_of(shared, run, &usage)).collect();
        let workspace_mb = shared.policy.load().max_workspace_mb.unwrap_or(WORKSPACE_MB_DEFAULT);
        let waits = self
            .ended
            .as_ref()
            .is_some_and(|(run, at)| !run.is_freed.load(Ordering::Acquire) && at.elapsed() < FREED_WITHIN);
        for (run, reason) in choose_ends(usages, disk, u64::from(workspace_mb) * MIB, waits) {
            let message = reason.message();
            tracing::warn!(execution_id = %run.journaled.order.execution_id, reason = message, "ended for room");
            run.end_for_room(message);
            if matches!(reason, Reason::DiskFull { .. }) {
                self.ended = Some((run, Instant::now()));
            }
        }
    }
}

fn usage_of(shared: &Shared, run: Arc<Run>, usage: &DiskUsage) -> Usage<Arc<Run>> {
    let bytes = |found: Option<&u64>| found.copied().unwrap_or(0);
    let attempt = run.journaled.order.attempt();
    let volumes = [workspace_volume(&shared.node_id, &attempt), home_volume(&shared.node_id, &attempt)];
    Usage {
        layer: bytes(usage.containers.get(&shared.container_of(&run))),
        workspace: volumes.iter().map(|volume| bytes(usage.volumes.get(volume))).sum(),
        execution: run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{DISK_BYTES_MIN, ImageBounds};

    const GIB: u64 = 1024 * MIB;

    #[test]
    fn small_disk_keeps_a_tenth_free_of_images() {
        let bounds = |total| Disk { total, free: 0 }.image_bounds(50);
        assert_eq!(bounds(100 * GIB), ImageBounds { bytes_max: 50 * GIB, free_min: GIB });
        assert_eq!(bounds(800), ImageBounds { bytes_max: 400, free_min: 80 });
        assert!(Disk::of(Path::new("/")).is_some_and(|disk| disk.total > disk.free));
        assert_eq!(Disk::of(Path::new("/no/such/place")), None);
    }

    #[test]
    fn full_disk_ends_the_largest_execution_alone() {
        let usage = |execution, layer, workspace| Usage { execution, layer, workspace };
        let all = || vec![usage("a", 5 * MIB, 0), usage("b", MIB, 7 * MIB), usage("c", 0, 7 * MIB)];
        let (full, roomy) =
            (Disk { total: 100 * GIB, free: 200 * MIB }, Disk { total: 100 * GIB, free: GIB });
        let ends = |disk, waits| choose_ends(all(), disk, GIB, waits);
        assert_eq!(ends(full, false), [("b", Reason::DiskFull { bytes: 8 * MIB })]);
        assert_eq!(ends(full, true), [], "its space is waited for");
        assert_eq!(ends(roomy, false), []);
        assert_eq!(choose_ends(vec![usage("a", 0, 0)], full, GIB, false), [], "ending it frees nothing");
        // The reserve of the journal is untouched when executions are ended.
        assert!(full.free > DISK_BYTES_MIN);
    }

    #[test]
    fn workspace_above_its_bound_is_ended_with_room_left() {
        let usage = |execution, workspace| Usage { execution, layer: 9 * GIB, workspace };
        let disk = Disk { total: 100 * GIB, free: 50 * GIB };
        let ends =
            choose_ends(vec![usage("a", GIB), usage("b", GIB + 1), usage("c", 2 * GIB)], disk, GIB, true);
        let reason = Reason::Workspace { bytes_max: GIB };
        assert_eq!(ends, [("b", reason), ("c", reason)]);
        assert!(reason.message().contains("1024 MiB"));
    }
}
