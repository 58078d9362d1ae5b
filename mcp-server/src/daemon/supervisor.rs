//! What systemd is told, where it started us with `Type=notify`; without it nothing is said.

use sd_notify::NotifyState;

/// Nobody may listen, and the node works all the same.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
