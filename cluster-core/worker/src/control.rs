//! State of a worker that its controller has set, kept over restarts in `worker.json`.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use aegis_fs::{DataDirectory, write_error, write_synced};
use aegis_identity::PublicKey;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::ClusterId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const CONTROL_FILE: &str = "worker.json";

/// Content of `worker.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    draining: bool,
    epoch: u64,
    #[serde(default)]
    owner: String,
    /// Whose epoch it is: cluster id and thumbprint of the controller's key. Empty in an older file.
    #[serde(default)]
    epoch_of: String,
}

/// One a worker.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    /// Names this journal on its containers' labels: two nodes may share an engine.
    owner: String,
    draining: AtomicBool,
    /// The highest epoch seen: an earlier controller is not obeyed.
    epoch: AtomicU64,
    /// The process is to end once nothing runs. Not kept: a node that is started again works again.
    closing: AtomicBool,
    /// Whose epoch that is. Its lock makes changes come one after the other: many calls of a new
    /// controller come at once.
    changing: Mutex<String>,
}

impl Control {
    pub(super) fn open(data: &DataDirectory) -> Result<Self> {
        let path = data.path().join(CONTROL_FILE);
        let unreadable = || Error::new(ErrorCode::Storage, format!("{} cannot be read", path.display()));
        let kept: Kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                unreadable().remedy("restore it from a backup of the data directory").source(error)
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                return Err(unreadable().remedy("give it back to the user that runs the node").source(error));
            }
        };
        let is_new = kept.owner.is_empty();
        let control = Self {
            owner: if is_new { Uuid::new_v4().to_string() } else { kept.owner },
            draining: AtomicBool::new(kept.draining),
            epoch: AtomicU64::new(kept.epoch),
            closing: AtomicBool::new(false),
            changing: Mutex::new(kept.epoch_of.clone()),
            path,
        };
        if is_new {
            control.write(kept.draining, kept.epoch, &kept.epoch_of)?;
        }
        Ok(control)
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Stored before it holds, so that a restart does not undo it.
    pub fn set_draining(&self, draining: bool) -> Result<()> {
        let epoch_of = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(draining, self.epoch.load(Ordering::Acquire), &epoch_of)?;
        self.draining.store(draining, Ordering::Release);
        Ok(())
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Takes no new work until the process ends.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn takes_no_work(&self) -> bool {
        self.is_draining() || self.is_closing()
    }

    /// Refuses a controller of an earlier epoch than one that was obeyed. `Unavailable` where that cannot be
    /// remembered, which says nothing of what the call was about.
    pub fn check_epoch(&self, epoch: u64) -> Result<()> {
        if epoch == self.epoch.load(Ordering::Acquire) {
            return Ok(());
        }
        let epoch_of = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.epoch.load(Ordering::Acquire);
        if epoch < known {
            return Err(Error::new(
                ErrorCode::Fenced,
                format!("the controller's epoch {epoch} is before {known}, which this node has obeyed"),
            )
            .remedy("end the older controller; if its clock is behind, correct the clock and restart it"));
        }
        if epoch > known {
            self.write(self.is_draining(), epoch, &epoch_of).map_err(|error| {
                Error::new(ErrorCode::Unavailable, error.message().to_owned()).source(error)
            })?;
            self.epoch.store(epoch, Ordering::Release);
        }
        Ok(())
    }

    /// Follows a controller that has proven itself. Epochs of another cluster or key say nothing about
    /// those of this one. An older file does not say whose its epoch is, and keeps it.
    pub fn follow(&self, cluster_id: &ClusterId, key: &PublicKey) -> Result<()> {
        let now = format!("{cluster_id} {}", key.thumbprint());
        let mut epoch_of = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if *epoch_of == now {
            return Ok(());
        }
        let epoch = if epoch_of.is_empty() { self.epoch.load(Ordering::Acquire) } else { 0 };
        self.write(self.is_draining(), epoch, &now)?;
        self.epoch.store(epoch, Ordering::Release);
        *epoch_of = now;
        Ok(())
    }

    fn write(&self, draining: bool, epoch: u64, epoch_of: &str) -> Result<()> {
        let epoch_of = epoch_of.to_owned();
        let kept = Kept { draining, epoch, owner: self.owner.clone(), epoch_of };
        let bytes = serde_json::to_vec(&kept)
            .map_err(|error| Error::internal("the worker's state cannot be written").source(error))?;
        write_synced(&self.path, &bytes).map_err(|error| write_error(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_identity::NodeKey;

    #[test]
    fn a_new_epoch_may_come_by_many_calls_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::own(directory.path()).unwrap();
        let control = Control::open(&data).unwrap();
        for epoch in 1..=50 {
            std::thread::scope(|threads| {
                let calls: Vec<_> = (0..8).map(|_| threads.spawn(|| control.check_epoch(epoch))).collect();
                for call in calls {
                    call.join().unwrap().unwrap();
                }
            });
        }
        assert_eq!(Control::open(&data).unwrap().check_epoch(49).unwrap_err().code(), ErrorCode::Fenced);
    }

    #[test]
    fn epoch_belongs_to_its_cluster_and_key() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::own(directory.path()).unwrap();
        let path = directory.path().join(CONTROL_FILE);
        fs::write(&path, r#"{"draining":true,"epoch":7,"owner":"o"}"#).unwrap();
        let [first, second] = ["c-1", "c-2"].map(|id| ClusterId::parse(id).unwrap());
        let [key, other] = [(); 2].map(|()| NodeKey::generate().unwrap().public());
        let fenced = |control: &Control, epoch| control.check_epoch(epoch).unwrap_err().code();
        let control = Control::open(&data).unwrap();
        control.follow(&first, &key).unwrap();
        assert_eq!(fenced(&control, 6), ErrorCode::Fenced, "an older file keeps its epoch");
        control.check_epoch(u64::MAX).unwrap();
        control.follow(&first, &key).unwrap();
        assert_eq!(fenced(&control, 8), ErrorCode::Fenced);
        control.follow(&second, &key).unwrap();
        control.check_epoch(2).unwrap();
        let control = Control::open(&data).unwrap();
        assert_eq!(fenced(&control, 1), ErrorCode::Fenced, "kept over a restart");
        control.follow(&second, &other).unwrap();
        control.check_epoch(1).unwrap();
        assert!(control.is_draining());
    }
}
