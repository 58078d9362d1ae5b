//! Samples what the container of an execution uses, while it runs.

use std::{convert::Infallible, sync::PoisonError, time::Duration};

use aegis_types::execution::view::EventKind;

use crate::state::{Run, Shared};

/// Most containers that do real work run for longer.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// A sample costs the engine about a millisecond.
const INTERVAL: Duration = Duration::from_secs(5);

/// Samples the container of one iteration until this future is dropped.
pub(super) async fn sample(shared: &Shared, run: &Run, name: &str, iteration: u32) -> Infallible {
    let mut progress = run.log.progress();
    if progress.wait_for(|progress| progress.iteration >= iteration).await.is_err() {
        // The log lives as long as the run.
        return std::future::pending().await;
    }
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        take(shared, run, name, iteration).await;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Takes one sample, unless the container has ended or the engine is unreachable.
pub(super) async fn take(shared: &Shared, run: &Run, name: &str, iteration: u32) {
    match shared.engine.sample(name).await {
        Ok(Some(sample)) => run.usage.lock().unwrap_or_else(PoisonError::into_inner).note(iteration, sample),
        Ok(None) => {}
        Err(error) => tracing::debug!(container = name, error = %error.chain(), "no sample of its usage"),
    }
}

/// Returns the event that tells the usage. `None` where no sample was taken.
pub(super) fn event(run: &Run) -> Option<EventKind> {
    let total = run.usage.lock().unwrap_or_else(PoisonError::into_inner).total()?;
    Some(EventKind::Usage { cpu_ms: total.cpu_ms, memory_peak_bytes: total.memory_bytes })
}
