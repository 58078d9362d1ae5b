//! Detects whether a container ended with its engine. A worker in a container was down at that time as well, and
//! engines forget their events when they stop.

use bollard::models::ContainerState;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Engine;

/// Network that the engine recreates at start, unless it left its containers running.
const MADE_AT_START: &str = "bridge";

impl Engine {
    /// Returns whether the engine was started after the container. `false` if unknown.
    pub(super) async fn has_started_since(&self, state: &ContainerState) -> bool {
        let Ok(network) = self.docker.inspect_network(MADE_AT_START, None).await else { return false };
        is_before(state.started_at.as_deref(), network.created.as_deref())
    }
}

fn is_before(one: Option<&str>, other: Option<&str>) -> bool {
    let time = |text: Option<&str>| OffsetDateTime::parse(text?, &Rfc3339).ok();
    matches!((time(one), time(other)), (Some(one), Some(other)) if one < other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_compared_whatever_their_zone_and_digits() {
        let is_before = |one, other| is_before(Some(one), Some(other));
        assert!(is_before("2026-11-21T12:57:35.53Z", "2026-11-21T13:57:49.152445008+01:00"));
        assert!(!is_before("2026-11-21T12:57:49.2Z", "2026-11-21T12:57:49.152445008Z"));
        assert!(!is_before("", "2026-11-21T12:57:49Z") && !super::is_before(None, None));
    }
}
