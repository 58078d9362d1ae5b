//! Intents of a worker for a container, written to the journal before it acts. After a crash they tell the next process
//! why a container has ended or is missing.

use std::{fs, io};

use aegis_fs::write_synced_elsewhere;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::state::Run;

const STARTING_FILE: &str = "starting.json";
const STOPPING_FILE: &str = "stopping.json";

/// Written before a container is started: one that is gone may have run, and is not made again.
#[derive(Serialize, Deserialize)]
pub(super) struct StartIntent {
    pub iteration: u32,
}

impl StartIntent {
    pub fn is_noted(run: &Run, iteration: u32) -> bool {
        read::<Self>(run, STARTING_FILE).is_some_and(|found| found.iteration == iteration)
    }

    /// Not synced: it is for a killed process. With the machine the container goes too, and a start that
    /// the disk does not know of is repeated then.
    pub fn write(&self, run: &Run) {
        let written = serde_json::to_vec(self).map_err(io::Error::from);
        tell(written.and_then(|bytes| fs::write(run.directory.join(STARTING_FILE), bytes)));
    }
}

/// Why a container is stopped from outside.
#[derive(Serialize, Deserialize)]
pub(super) enum Stop {
    Cancelled(String),
    TimedOut,
    /// Its image and workspace were not ready in time.
    NotReady,
    IterationTimedOut,
    /// Ended for room on the disk, with the reason.
    NoRoom(String),
}

/// Written before a container is stopped: an end that this worker brought about is not taken for the
/// container's own by the process that finds it.
#[derive(Serialize, Deserialize)]
pub(super) struct StopIntent {
    pub iteration: u32,
    pub stop: Stop,
}

impl StopIntent {
    /// Reads the intent of an earlier process to stop this iteration.
    pub fn read(run: &Run, iteration: u32) -> Option<Stop> {
        read::<Self>(run, STOPPING_FILE).filter(|found| found.iteration == iteration).map(|found| found.stop)
    }

    /// A full disk must not keep a container from being stopped.
    pub async fn write(&self, run: &Run) {
        let written = match serde_json::to_vec(self) {
            Ok(bytes) => write_synced_elsewhere(run.directory.join(STOPPING_FILE), bytes).await,
            Err(error) => Err(error.into()),
        };
        tell(written);
    }
}

fn read<T: DeserializeOwned>(run: &Run, file: &str) -> Option<T> {
    let bytes = fs::read(run.directory.join(file)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn tell(written: io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(%error, "what is to be done with a container cannot be noted");
    }
}
