//! The controller that this node has joined, remembered over restarts: `controller.json`.
//!
//! On plaintext loopback any process that binds the controller's port while the controller is down could
//! answer in its place. A node therefore keeps the cluster id and the key of the first controller that has proven
//! itself, and refuses another until its operator says so. A key in the node's own configuration file is
//! the operator's word and wins.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aegis_fs::write_synced;
use aegis_identity::PublicKey;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::ClusterId,
};
use serde::{Deserialize, Serialize};

const FILE: &str = "controller.json";

/// A controller as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    cluster_id: ClusterId,
    /// Base64.
    public_key: String,
}

/// The one controller that this node obeys.
#[derive(Debug)]
pub struct KnownController {
    path: PathBuf,
    configured: Option<PublicKey>,
    known: Mutex<Option<Known>>,
}

impl KnownController {
    /// Reads what the data directory keeps. `configured`: the key that the node's own file names.
    pub fn open(data: &Path, configured: Option<PublicKey>) -> Result<Self> {
        let path = data.join(FILE);
        let unreadable = || {
            Error::new(ErrorCode::Storage, format!("{} cannot be read", path.display()))
                .remedy("restore it from a backup, or join with `aegis node join URL --new-controller`")
        };
        let known = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| unreadable().source(error))?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable().source(error)),
        };
        Ok(Self { path, configured, known: Mutex::new(known) })
    }

    /// Forgets the controller that a node of this data directory has joined. The node must not run.
    pub fn forget_in(data: &Path) -> Result<()> {
        remove(&data.join(FILE))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a cluster id before anything is signed for it.
    pub fn check_cluster(&self, cluster_id: &ClusterId) -> Result<()> {
        match &*self.lock() {
            Some(known) if self.configured.is_none() && known.cluster_id != *cluster_id => {
                Err(mismatch(format!("it names cluster {cluster_id}, not {}", known.cluster_id)))
            }
            _ => Ok(()),
        }
    }

    /// Checks a controller before anything that it says is believed. `promised`: the thumbprint in the
    /// enrolment token by which this node joins.
    pub fn check(&self, cluster_id: &ClusterId, key: &PublicKey, promised: Option<&str>) -> Result<()> {
        if let Some(configured) = &self.configured {
            return match configured == key {
                true => Ok(()),
                false => Err(mismatch(format!(
                    "its key is {}, and spec.cluster.controller.public_key names {}",
                    short(key),
                    short(configured)
                ))),
            };
        }
        self.check_cluster(cluster_id)?;
        if let Some(known) = &*self.lock() {
            return match known.public_key == key.to_base64() {
                true => Ok(()),
                false => Err(mismatch(format!("it has another key than that one: {}", short(key)))),
            };
        }
        match promised {
            Some(promised) if promised != key.thumbprint() => Err(mismatch(format!(
                "its key is {}, and the enrolment token was made by another controller",
                short(key)
            ))),
            _ => Ok(()),
        }
    }

    /// Remembers a controller that has proven itself. On disk before it returns.
    pub fn remember(&self, cluster_id: &ClusterId, key: &PublicKey) -> Result<()> {
        let mut known = self.lock();
        let now = Known { cluster_id: cluster_id.clone(), public_key: key.to_base64() };
        if known.as_ref() == Some(&now) {
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            Error::new(ErrorCode::Storage, format!("{} cannot be written", self.path.display()))
                .remedy("free some disk space on the node")
                .source(error)
        };
        let bytes = serde_json::to_vec(&now)
            .map_err(|error| Error::internal("the controller cannot be written down").source(error))?;
        write_synced(&self.path, &bytes).map_err(failed)?;
        tracing::info!(%cluster_id, key = %short(key), "remembered the controller");
        *known = Some(now);
        Ok(())
    }

    /// Forgets the controller, since this node is no longer a member.
    pub fn forget(&self) -> Result<()> {
        let mut known = self.lock();
        remove(&self.path)?;
        *known = None;
        Ok(())
    }
}

fn short(key: &PublicKey) -> String {
    key.thumbprint()[..16].to_owned()
}

fn mismatch(why: String) -> Error {
    Error::new(
        ErrorCode::ControllerMismatch,
        format!("the controller at this address is not the one that this node has joined: {why}"),
    )
    .remedy(
        "if the controller was replaced on purpose, stop this node and run \
         `aegis node join URL --new-controller` there, or deploy it again; if not, another process has the port",
    )
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::new(ErrorCode::Storage, format!("{} cannot be removed", path.display())).source(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_identity::NodeKey;

    fn key() -> PublicKey {
        NodeKey::generate().unwrap().public()
    }

    fn code(result: Result<()>) -> ErrorCode {
        result.unwrap_err().code()
    }

    #[test]
    fn first_proven_controller_is_kept_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, other) = (key(), key());
        let [cluster, elsewhere] = ["c-1", "c-2"].map(|id| ClusterId::parse(id).unwrap());
        let known = KnownController::open(directory.path(), None).unwrap();
        assert_eq!(code(known.check(&cluster, &ours, Some("00"))), ErrorCode::ControllerMismatch);
        known.check(&cluster, &ours, Some(&ours.thumbprint())).unwrap();
        known.remember(&cluster, &ours).unwrap();
        let known = KnownController::open(directory.path(), None).unwrap();
        known.check(&cluster, &ours, None).unwrap();
        assert_eq!(code(known.check_cluster(&elsewhere)), ErrorCode::ControllerMismatch);
        for (cluster, key) in [(&cluster, &other), (&elsewhere, &ours)] {
            let promised = key.thumbprint();
            assert_eq!(code(known.check(cluster, key, Some(&promised))), ErrorCode::ControllerMismatch);
        }
        known.forget().unwrap();
        known.check(&elsewhere, &other, None).unwrap();
        KnownController::open(directory.path(), None).unwrap().check(&elsewhere, &other, None).unwrap();
    }

    #[test]
    fn configured_key_wins_over_the_remembered_one() {
        let directory = tempfile::tempdir().unwrap();
        let (older, newer) = (key(), key());
        let cluster = ClusterId::parse("c-1").unwrap();
        KnownController::open(directory.path(), None).unwrap().remember(&cluster, &older).unwrap();
        let known = KnownController::open(directory.path(), Some(newer)).unwrap();
        assert_eq!(code(known.check(&cluster, &older, None)), ErrorCode::ControllerMismatch);
        known.check_cluster(&ClusterId::parse("c-2").unwrap()).unwrap();
        known.check(&cluster, &newer, None).unwrap();
    }
}
