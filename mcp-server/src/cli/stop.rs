//! `aegis stop`: ends the daemon and waits until it has.

use std::{path::Path, time::Duration};

use cluster_core::{
    fs::{DataDirectory, LOCK_FILE},
    types::error::{Error, ErrorCode, Result},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;

/// Above the daemon's own bounds for stopping.
const STOP_TIME_MAX: Duration = Duration::from_secs(40);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub async fn run(context: &Context) -> Result<()> {
    let data_dir = context.data_dir()?;
    let client = context.client()?;
    let owner = owner_of(&data_dir);
    match client.post::<Value>("/v1/shutdown", &json!({})).await {
        Ok(_) => {}
        Err(error) if error.code() == ErrorCode::Unavailable && !data_dir.join(LOCK_FILE).exists() => {
            return context.output.show(&json!({ "stopped": false }), || "No daemon runs.".to_owned());
        }
        Err(error) if error.code() == ErrorCode::Unavailable && DataDirectory::own(&data_dir).is_ok() => {
            return context.output.show(&json!({ "stopped": false }), || "No daemon runs.".to_owned());
        }
        Err(error) => return Err(error),
    }
    let deadline = Instant::now() + STOP_TIME_MAX;
    // The daemon has ended when its lock is free, or another's: an assistant may have started a new one.
    while owner_of(&data_dir) == owner && DataDirectory::own(&data_dir).is_err() {
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorCode::Timeout, "the daemon did not end")
                .remedy("its process id is in the file lock of the data directory"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    context.output.show(&json!({ "stopped": true }), || "The daemon has ended.".to_owned())
}

/// The process that has, or had last, the lock.
fn owner_of(data_dir: &Path) -> Option<String> {
    std::fs::read_to_string(data_dir.join(LOCK_FILE)).ok().filter(|owner| !owner.trim().is_empty())
}
