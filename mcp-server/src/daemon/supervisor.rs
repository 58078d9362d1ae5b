//! Notifies systemd for services of `Type=notify`. Without systemd nothing is sent.

use sd_notify::NotifyState;

/// Sends a state. A failure is only logged, since the node works without a supervisor.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
